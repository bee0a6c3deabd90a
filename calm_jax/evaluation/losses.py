"""The losses that calibration bounds: how far early exit is from full depth.

Three of them, each made from a text metric m in [0, 1]. CALM (arXiv
2207.07061), Section 4, has the first two:

- textual: 1 - m(early, full); needs no references.
- risk: max(0, m(full, references) - m(early, references)); an output better
  than the full model's counts as costing nothing.
- signed: the same without the maximum, in [-1, 1]: the difference of qualities
  that people mean. Mapped to [0, 1] it sits near 1/2, where only a p-value that
  looks at the spread (betting) is of use.
"""

import dataclasses
import numbers
from collections.abc import Callable, Sequence

import numpy as np

from calm_jax.evaluation import seen_text, text_metrics
from calm_jax.evaluation.decoded_dataset import DecodedDataset


@dataclasses.dataclass(frozen=True)
class ConsistencyLoss:
  """A loss of one decode against the full model's, example by example.

  Attributes:
    name: 'textual', 'risk' or 'signed'.
    metric: metric(prediction, references) -> [0, 1], the same whenever asked.
    loss_range: the smallest and the largest value.
    needs_references: whether each example needs reference texts.
    of: (metric, early, full, references) of one example -> the loss.
    scores: what the metric has given before: a grid of settings scores the same
      full output, and many a repeated early one, again and again.
  """

  name: str
  metric: text_metrics.Metric
  loss_range: tuple[float, float]
  needs_references: bool
  of: Callable[..., float]
  scores: dict[tuple[str, tuple[str, ...]], float] = dataclasses.field(
    default_factory=dict, repr=False, compare=False
  )

  @property
  def metric_name(self) -> str:
    """How a certificate names the metric: `get_metric` finds it by this."""
    return text_metrics.metric_name(self.metric)

  def __call__(self, early: DecodedDataset, full: DecodedDataset) -> np.ndarray:
    """Returns the loss of every input, float64 [N].

    Raises:
      ValueError: if references are missing, or the metric gives a number
        outside [0, 1], naming the example.
    """
    return self.of_texts(early.texts, full.texts, full.references)

  def of_texts(
    self,
    early: Sequence[str],
    full: Sequence[str],
    references: Sequence[Sequence[str]] | None = None,
  ) -> np.ndarray:
    """Returns the losses of N outputs, float64 [N].

    Args:
      early: N outputs of early exit.
      full: N outputs of the full model.
      references: N lists of reference texts; textual needs none.

    Raises:
      TypeError: if a single text is given for a list.
      ValueError: as above, or if they are not equally many.
    """
    if references is None:
      references = [()] * len(full)
    for name, texts in (('early', early), ('full', full)):
      if isinstance(texts, str):
        raise TypeError(f'{name} is one text, {texts!r}; give a list of texts')
    counts = [len(early), len(full), len(references)]
    if len(set(counts)) > 1:
      raise ValueError(
        f'outputs and references of {counts} examples; give equally many'
      )
    self.check_references(references)
    losses = [
      self._of_example(number, *row)
      for number, row in enumerate(zip(early, full, references, strict=True))
    ]
    return np.array(losses, np.float64)

  def check_references(self, references: Sequence[Sequence[str]]) -> None:
    """Checks that every example has the references that the loss needs.

    Worth asking before anything is decoded.

    Raises:
      ValueError: naming the first example without.
    """
    missing = [n for n, texts in enumerate(references) if not len(texts)]
    if self.needs_references and missing:
      raise ValueError(
        f'example {missing[0]} has no references, one of {len(missing)} such, '
        f'and the {self.name} loss is measured against them; use the '
        "'textual' loss, which needs none: LOSS='textual', or ('textual', "
        '0.05) in PROMISES'
      )

  def check_sees(self, texts: Sequence[str], *, what: str) -> None:
    """Checks that the metric looks at most of what the texts say.

    Raises:
      ValueError: as `seen_text.check_seen`.
    """
    seen_text.check_seen(self.metric, texts, what=what)

  def _of_example(self, number, early, full, references) -> float:
    def checked(prediction, texts):
      key = prediction, tuple(texts)
      if key in self.scores:
        return self.scores[key]
      value = self.metric(prediction, texts)
      if _is_similarity(value):
        self.scores[key] = min(1.0, max(0.0, float(value)))
        return self.scores[key]
      raise ValueError(
        f'metric {_label(self.metric)} gave {value!r} for example {number}; a '
        'metric must return a number in [0, 1]'
      )

    return self.of(checked, early, full, references)


def _is_similarity(value) -> bool:
  """Whether a metric may return this: a number in [0, 1], but for rounding."""
  is_number = isinstance(value, (numbers.Real, np.bool_))
  # Libraries return 1.0000000000000004 for equal texts.
  return is_number and -1e-9 <= value <= 1 + 1e-9


def _label(metric: text_metrics.Metric) -> str:
  """Returns what to call a metric in an error, also one without a name."""
  try:
    return text_metrics.metric_name(metric)
  except ValueError:
    return repr(metric)


def textual_loss(metric: text_metrics.Metric) -> ConsistencyLoss:
  """Makes the loss 1 - m(early, full), in [0, 1]: no references needed.

  >>> textual_loss(text_metrics.exact_match).of_texts(['a', 'b'], ['a', 'c'])
  array([0., 1.])
  """
  return ConsistencyLoss(
    name='textual',
    metric=metric,
    loss_range=(0.0, 1.0),
    needs_references=False,
    of=lambda m, early, full, _: 1.0 - m(early, [full]),
  )


def risk_loss(metric: text_metrics.Metric) -> ConsistencyLoss:
  """Makes the loss max(0, m(full, references) - m(early, references))."""
  return ConsistencyLoss(
    name='risk',
    metric=metric,
    loss_range=(0.0, 1.0),
    needs_references=True,
    of=lambda *texts: max(0.0, _quality_lost(*texts)),
  )


def signed_loss(metric: text_metrics.Metric) -> ConsistencyLoss:
  """Makes the loss m(full, references) - m(early, references), in [-1, 1].

  >>> loss = signed_loss(text_metrics.exact_match)
  >>> loss.of_texts(['a', 'b', 'c'], ['a', 'c', 'b'], [['a'], ['c'], ['c']])
  array([ 0.,  1., -1.])
  """
  return ConsistencyLoss(
    name='signed',
    metric=metric,
    loss_range=(-1.0, 1.0),
    needs_references=True,
    of=_quality_lost,
  )


def _quality_lost(metric, early, full, references) -> float:
  return metric(full, references) - metric(early, references)


LOSSES: dict[str, Callable[[text_metrics.Metric], ConsistencyLoss]] = {
  'textual': textual_loss,
  'risk': risk_loss,
  'signed': signed_loss,
}


def get_loss(name: str, metric: str | text_metrics.Metric) -> ConsistencyLoss:
  """Returns the loss of this name.

  Args:
    name: one of `LOSSES`.
    metric: whatever `text_metrics.get_metric` takes.

  Raises:
    ValueError: if there is no such loss or metric.
  """
  if name not in LOSSES:
    raise ValueError(f'loss is {name!r}; use one of {sorted(LOSSES)}')
  return LOSSES[name](text_metrics.get_metric(metric))
