"""Metrics of a whole corpus, 0 to 100, as papers report them."""

import functools
from collections.abc import Callable, Sequence

from calm_jax.evaluation import text_metrics


def corpus_bleu(
  predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> float:
  """Returns sacrebleu's corpus BLEU, 0 to 100.

  Args:
    predictions: [N].
    references: [N], the references of each prediction, not equally many.

  Raises:
    ValueError: if there is nothing to score or the numbers differ.
    ImportError: if sacrebleu is not installed.
  """
  streams = _streams(_check_corpus(predictions, references))
  bleu = text_metrics.require('sacrebleu').BLEU()
  score = bleu.corpus_score(list(predictions), streams).score
  return min(100.0, float(score))


def corpus_mean(
  metric: text_metrics.Metric,
  predictions: Sequence[str],
  references: Sequence[Sequence[str]],
) -> float:
  """Returns 100 times the mean of a metric over the examples.

  Args:
    metric: one of `text_metrics.METRICS`, or another of their signature.
    predictions: [N].
    references: [N], the references of each prediction.

  Raises:
    ValueError: if there is nothing to score or the numbers differ.
  """
  references = _check_corpus(predictions, references)
  scores = [
    metric(prediction, texts)
    for prediction, texts in zip(predictions, references, strict=True)
  ]
  return 100 * sum(scores) / len(scores)


def corpus_chrf(
  predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> float:
  """Returns sacrebleu's corpus chrF, 0 to 100; as `corpus_bleu` otherwise."""
  streams = _streams(_check_corpus(predictions, references))
  chrf = text_metrics.require('sacrebleu').CHRF()
  return float(chrf.corpus_score(list(predictions), streams).score)


def _rouge(
  kind: str, predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> float:
  """Returns 100 times the mean ROUGE F-measure, the best over references.

  By rouge-score with its stemmer, as `rouge_l` is; T5's own evaluation does not
  stem. rougeLsum takes sentences apart as T5 does: at line ends, and after a
  full stop with space around it. CNN/DailyMail's summaries have both, and a
  vocabulary that turns line ends into space leaves only the latter.
  """
  references = _check_corpus(predictions, references)
  if kind == 'rougeLsum':
    predictions = [_sentence_lines(text) for text in predictions]
    references = [list(map(_sentence_lines, texts)) for texts in references]
  scorer = _rouge_scorer(kind)
  best = [
    max(scorer.score(text, prediction)[kind].fmeasure for text in texts)
    for prediction, texts in zip(predictions, references, strict=True)
  ]
  return 100 * sum(best) / len(best)


def _sentence_lines(text: str) -> str:
  return text.replace(' . ', ' .\n')


@functools.cache
def _rouge_scorer(kind: str):
  rouge_scorer = text_metrics.require(
    'rouge_score.rouge_scorer', package='rouge-score'
  )
  return rouge_scorer.RougeScorer([kind], use_stemmer=True)


# f(predictions, references) -> 0..100.
CORPUS_METRICS: dict[str, Callable[..., float]] = {
  'bleu': corpus_bleu,
  'chrf': corpus_chrf,
  'rouge_1': functools.partial(_rouge, 'rouge1'),
  'rouge_2': functools.partial(_rouge, 'rouge2'),
  'rouge_lsum': functools.partial(_rouge, 'rougeLsum'),
  'rouge_l': functools.partial(corpus_mean, text_metrics.rouge_l),
  'token_f1': functools.partial(corpus_mean, text_metrics.token_f1),
  'exact_match': functools.partial(corpus_mean, text_metrics.exact_match),
}


def corpus_score(
  name: str, predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> float:
  """Returns the corpus metric of this name, 0 to 100.

  Raises:
    ValueError: if there is no such metric, or as the metric does.
  """
  if name not in CORPUS_METRICS:
    raise ValueError(
      f'unknown corpus metric {name!r}; known: {sorted(CORPUS_METRICS)}'
    )
  return CORPUS_METRICS[name](predictions, references)


def _streams(references: list[list[str]]) -> list[list[str | None]]:
  """Returns a stream per reference number, None for the gaps, for sacrebleu."""
  most = max(len(texts) for texts in references)
  return [
    [texts[number] if number < len(texts) else None for texts in references]
    for number in range(most)
  ]


def _check_corpus(predictions, references) -> list[list[str]]:
  """Returns the references as lists, after checking the corpus."""
  if not len(predictions) or len(predictions) != len(references):
    raise ValueError(
      f'{len(predictions)} predictions and {len(references)} lists of '
      'references; give equally many, at least one'
    )
  for number, texts in enumerate(references):
    if isinstance(texts, str) or not len(texts):
      raise ValueError(
        f'references of example {number} must be a list of at least one '
        f'string, not {texts!r}'
      )
  return [list(texts) for texts in references]
