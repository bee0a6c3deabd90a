"""How alike two texts are: metrics in [0, 1] and the losses made from them.

A metric is `metric(prediction, references) -> float`, the best similarity over
the references: 1 for equal texts, 0 for nothing in common. Two empty texts are
alike, an empty and a non-empty one are not. Calibration uses them one example
at a time, reports over a corpus.
"""

import collections
import functools
import importlib
import re
import string
from collections.abc import Callable, Sequence

import numpy as np

# metric(prediction, references) -> similarity in [0, 1].
Metric = Callable[[str, Sequence[str]], float]


def rouge_l(prediction: str, references: Sequence[str]) -> float:
  """Scores the longest common subsequence of stemmed words (F-measure).

  ROUGE-L of Lin (2004), Section 3, by rouge-score with its Porter stemmer:
  words are runs of a-z and 0-9 after lower-casing, and other letters are
  dropped. Texts without any such word are alike only if they are equal.
  """
  return _best(_rouge_l_pair, prediction, references)


def token_f1(prediction: str, references: Sequence[str]) -> float:
  """Scores the overlap of bags of words (F1), as SQuAD does.

  Texts are normalised as by the official script (Rajpurkar et al., arXiv
  1606.05250); two texts of which that leaves nothing are alike, as in its
  version 2.
  """
  return _best(_token_f1_pair, prediction, references)


def exact_match(prediction: str, references: Sequence[str]) -> float:
  """Returns 1 if the texts are equal after SQuAD's normalisation, else 0."""
  return _best(_exact_match_pair, prediction, references)


def sentence_bleu(prediction: str, references: Sequence[str]) -> float:
  """Scores one sentence by BLEU, as a number in [0, 1].

  sacrebleu's sentence BLEU (Papineni et al., 2002; Post, 2018) with effective
  order, so that sentences shorter than four words can score 1. As for all
  metrics here, the best over the references, each taken alone: counts are not
  clipped by several references together, as they are in `corpus_bleu`.
  """
  return _best(_sentence_bleu_pair, prediction, references)


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
  references = _check_corpus(predictions, references)
  most = max(len(texts) for texts in references)
  # sacrebleu wants one stream per reference number and None for the gaps.
  streams = [
    [texts[number] if number < len(texts) else None for texts in references]
    for number in range(most)
  ]
  bleu = _require('sacrebleu').BLEU()
  score = bleu.corpus_score(list(predictions), streams).score
  return min(100.0, float(score))


def corpus_mean(
  metric: Metric,
  predictions: Sequence[str],
  references: Sequence[Sequence[str]],
) -> float:
  """Returns 100 times the mean of a metric over the examples.

  Args:
    metric: one of `METRICS`, or another of their signature.
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


corpus_rouge_l = functools.partial(corpus_mean, rouge_l)
corpus_token_f1 = functools.partial(corpus_mean, token_f1)
corpus_exact_match = functools.partial(corpus_mean, exact_match)


METRICS: dict[str, Metric] = {
  'rouge_l': rouge_l,
  'token_f1': token_f1,
  'exact_match': exact_match,
  'sentence_bleu': sentence_bleu,
}

# f(predictions, references) -> 0..100.
CORPUS_METRICS: dict[str, Callable[..., float]] = {
  'bleu': corpus_bleu,
  'rouge_l': corpus_rouge_l,
  'token_f1': corpus_token_f1,
  'exact_match': corpus_exact_match,
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


def get_metric(name: str) -> Metric:
  """Returns the metric of this name.

  Raises:
    ValueError: if there is none, naming those there are.
  """
  if name not in METRICS:
    raise ValueError(f'unknown metric {name!r}; known: {sorted(METRICS)}')
  return METRICS[name]


def textual_consistency(
  metric: Metric, early: str | Sequence[str], full: str | Sequence[str]
) -> float | np.ndarray:
  """Returns the loss 1 - metric(early, [full]), in [0, 1].

  How far the early-exit output is from the full model's; needs no labels. CALM
  (arXiv 2207.07061), Section 4, "textual consistency".

  Args:
    metric: one of `METRICS`, or another of their signature.
    early: the early-exit output of one example, or of N.
    full: the full model's.

  Returns:
    A float for one example, [N] for N.

  Raises:
    ValueError: if `early` and `full` are not equally many.
  """

  def loss(early, full):
    return 1.0 - metric(early, [full])

  return _per_example(loss, early, full)


def risk_consistency(
  metric: Metric,
  early: str | Sequence[str],
  full: str | Sequence[str],
  references: Sequence[str] | Sequence[Sequence[str]],
) -> float | np.ndarray:
  """Returns max(0, metric(full, references) - metric(early, references)).

  How much quality the early exit costs, in [0, 1]; an output better than the
  full model's counts as costing nothing. CALM (arXiv 2207.07061), Section 4,
  "risk consistency", with the risk 1 - metric.

  Args:
    metric: one of `METRICS`, or another of their signature.
    early: the early-exit output of one example, or of N.
    full: the full model's.
    references: the references of the one example, or of each of the N.

  Returns:
    A float for one example, [N] for N.

  Raises:
    ValueError: if they are not equally many.
  """

  def loss(early, full, references):
    return max(0.0, metric(full, references) - metric(early, references))

  return _per_example(loss, early, full, references)


def squad_normalize(text: str) -> str:
  """Lower-cases and drops punctuation, the articles a, an, the and spare space.

  The `normalize_answer` of the official SQuAD scripts.

  >>> squad_normalize('The  cat, a dog!')
  'cat dog'
  """
  text = ''.join(
    char for char in text.lower() if char not in string.punctuation
  )
  return ' '.join(re.sub(r'\b(a|an|the)\b', ' ', text).split())


def _best(
  score: Callable[[str, str], float], prediction: str, references: Sequence[str]
) -> float:
  """Returns the best score over the references, after the common cases."""
  if not isinstance(prediction, str):
    raise TypeError(f'the prediction must be a string, not {prediction!r}')
  if isinstance(references, str):
    raise TypeError(
      f'references must be a list of strings, not the string {references!r}; '
      'write [reference] for one'
    )
  if not len(references):
    raise ValueError('references are empty; give at least one')
  # Equal texts need no scoring, and most early exits equal the full output.
  if any(prediction.strip() == reference.strip() for reference in references):
    return 1.0
  # sacrebleu's numbers may be above 1 by a rounding error.
  return min(1.0, max(float(score(prediction, text)) for text in references))


def _per_example(loss, early, *others):
  """Calls a loss for one example, or for each of N."""
  if isinstance(early, str):
    return loss(early, *others)
  numbers = [len(early), *map(len, others)]
  if len(set(numbers)) > 1 or any(isinstance(item, str) for item in others):
    raise ValueError(
      f'outputs and references of {numbers} examples; give equally many'
    )
  rows = zip(early, *others, strict=True)
  return np.array([loss(*row) for row in rows], np.float64)


def _rouge_l_pair(prediction: str, reference: str) -> float:
  return _rouge_scorer().score(reference, prediction)['rougeL'].fmeasure


def _token_f1_pair(prediction: str, reference: str) -> float:
  predicted = squad_normalize(prediction).split()
  expected = squad_normalize(reference).split()
  if not predicted or not expected:
    return float(predicted == expected)
  common = collections.Counter(predicted) & collections.Counter(expected)
  # 2 p r / (p + r) with p = common / predicted and r = common / expected.
  return 2 * common.total() / (len(predicted) + len(expected))


def _exact_match_pair(prediction: str, reference: str) -> float:
  return float(squad_normalize(prediction) == squad_normalize(reference))


def _sentence_bleu_pair(prediction: str, reference: str) -> float:
  if not prediction.strip() or not reference.strip():
    return 0.0
  scorer = _sentence_bleu_scorer()
  return scorer.sentence_score(prediction, [reference]).score / 100


@functools.cache
def _rouge_scorer():
  """Returns one scorer for the process; building it costs more than scoring."""
  rouge_scorer = _require('rouge_score.rouge_scorer', package='rouge-score')
  return rouge_scorer.RougeScorer(['rougeL'], use_stemmer=True)


@functools.cache
def _sentence_bleu_scorer():
  return _require('sacrebleu').BLEU(effective_order=True)


def _require(module: str, *, package: str | None = None):
  """Imports a library of the metrics extra.

  Raises:
    ImportError: if it is missing, naming the extra.
  """
  try:
    return importlib.import_module(module)
  except ImportError as error:
    raise ImportError(
      f'this metric needs {package or module}: pip install calm_jax[metrics]'
    ) from error


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
