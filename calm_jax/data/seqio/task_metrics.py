"""Corpus metrics in the form seqio's Evaluator calls.

`targets` is a list of reference lists, `predictions` a list of texts; the
numbers come from `calm_jax.evaluation.corpus_metrics`, in percent.
"""

from collections.abc import Callable, Sequence

METRICS = (
  'bleu',
  'chrf',
  'exact_match',
  'rouge_1',
  'rouge_2',
  'rouge_l',
  'rouge_lsum',
  'token_f1',
)


def metric_fns(names: Sequence[str]) -> list[Callable]:
  """Returns one seqio metric function per name.

  Raises:
    ValueError: if a name is not in `METRICS`.
  """
  unknown = [name for name in names if name not in METRICS]
  if unknown:
    raise ValueError(f'Unknown metrics {unknown}; use some of {METRICS}.')
  return [_metric_fn(name) for name in names]


def _metric_fn(name: str) -> Callable:
  # seqio looks at the parameter names, so they must be exactly these two.
  def metric_fn(targets, predictions):
    # Here, because scoring packages are an extra that training lacks no use of.
    from calm_jax.evaluation import corpus_metrics

    return {name: corpus_metrics.corpus_score(name, predictions, targets)}

  metric_fn.__name__ = name
  return metric_fn
