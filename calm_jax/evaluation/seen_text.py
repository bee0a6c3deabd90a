"""Which texts a metric can see.

A metric compares what it keeps of two texts: ROUGE-L keeps a-z and 0-9, so that
of a Russian sentence with a year in it nothing but the year is compared. Such a
distance is small whatever is said, and a certificate of it says nothing. So
every metric has an attribute `seen`, a function from a text to the part that it
looks at, and calibration refuses one that ignores much of its texts.
"""

from collections.abc import Iterable

from calm_jax.evaluation import text_metrics

# The share of characters that a metric may ignore: punctuation, articles and
# the accents of languages in Latin script are below.
MOST_IGNORED = 0.25
# The share of texts of which it may ignore more than half: so much of the mean
# distance could be hidden by them.
MOST_BLIND = 0.05
# What a loss is measured by if nobody says, in this order.
DEFAULTS = ('rouge_l', 'chrf')


def ignored_share(metric: text_metrics.Metric, texts: Iterable[str]) -> float:
  """Returns which share of the characters of texts a metric does not look at.

  White space does not count. A metric of one's own that has no attribute `seen`
  is taken to see everything.

  Args:
    metric: the metric.
    texts: the texts, all of them together.

  Returns:
    A share in [0, 1]; 0 for texts without characters.

  >>> round(ignored_share(text_metrics.rouge_l, ['in 2022', 'в 2022']), 3)
  0.091
  >>> ignored_share(text_metrics.chrf, ['в 2022'])
  0.0
  """
  seen = getattr(metric, 'seen', None)
  if seen is None:
    return 0.0
  total = kept = 0
  for text in texts:
    size = _characters(text)
    total += size
    # Lower-casing may make two characters of one.
    kept += min(size, _characters(seen(text)))
  return 1 - kept / total if total else 0.0


def sees(metric: text_metrics.Metric, texts: Iterable[str]) -> bool:
  """Whether a metric looks at enough of the texts, and of nearly each of them.

  >>> sees(text_metrics.rouge_l, ['in May', 'a day in 2022'])
  True
  >>> sees(text_metrics.rouge_l, ['a long sentence in English', 'в мае'])
  False
  """
  texts = [text for text in texts if text.strip()]
  blind = sum(ignored_share(metric, [text]) > 0.5 for text in texts)
  return ignored_share(
    metric, texts
  ) <= MOST_IGNORED and blind <= MOST_BLIND * len(texts)


def default_metric(texts: Iterable[str]) -> str:
  """Returns the name of the first of `DEFAULTS` that sees the texts.

  >>> default_metric(['a cat', 'the dog']), default_metric(['кот', 'собака'])
  ('rouge_l', 'chrf')
  """
  texts = list(texts)
  return next(
    (name for name in DEFAULTS if sees(text_metrics.METRICS[name], texts)),
    DEFAULTS[-1],
  )


def check_seen(
  metric: text_metrics.Metric, texts: Iterable[str], *, what: str
) -> None:
  """Checks that a metric looks at most of what texts say.

  Args:
    metric: the metric.
    texts: the texts.
    what: how errors call them.

  Raises:
    ValueError: if it does not, naming a metric that does.
  """
  texts = list(texts)
  if sees(metric, texts):
    return
  share = ignored_share(metric, texts)
  name = getattr(metric, '__name__', repr(metric))
  example = max(texts, key=lambda text: ignored_share(metric, [text]))
  raise ValueError(
    f'metric {name!r} ignores {share:.0%} of the characters of {what}, most of '
    f'{example[:60]!r} among them: texts that say different things would be '
    f'alike. Use {_that_sees(texts)!r} (LOSS_METRIC), which looks at them all'
  )


def blind_metrics(names: Iterable[str], texts: Iterable[str]) -> list[str]:
  """Returns those metrics, of one text or of a corpus, that do not see texts.

  >>> blind_metrics(['rouge_2', 'bleu', 'token_f1'], ['кот', 'собака'])
  ['rouge_2']
  """
  texts = list(texts)
  blind = []
  for name in dict.fromkeys(names):
    kind = 'rouge_l' if name.startswith('rouge_') else name
    metric = text_metrics.METRICS.get(kind)
    if metric is not None and not sees(metric, texts):
      blind.append(name)
  return blind


def _that_sees(texts: list[str]) -> str:
  """Returns the name of the metric that ignores least."""
  return min(
    ('chrf', *text_metrics.METRICS),
    key=lambda name: ignored_share(text_metrics.METRICS[name], texts),
  )


def _characters(text: str) -> int:
  return len(''.join(text.split()))
