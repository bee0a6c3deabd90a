"""How alike two texts are: metrics in [0, 1].

A metric is `metric(prediction, references) -> float`, the best similarity over
the references: 1 for equal texts, 0 for nothing in common. Two empty texts are
alike, an empty and a non-empty one are not. Calibration uses them one example
at a time, reports over a corpus. `metric.seen(text)` is the part of a text that
it looks at (`seen_text`).
"""

import collections
import functools
import importlib
import inspect
import re
import string
from collections.abc import Callable, Sequence

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


def same_text(prediction: str, references: Sequence[str]) -> float:
  """Returns 1 if the texts are equal as they are, but for spaces around; or 0.

  For names of classes: no letter, case or article is overlooked.
  """
  return _best(lambda one, other: 0.0, prediction, references)


def sentence_bleu(prediction: str, references: Sequence[str]) -> float:
  """Scores one sentence by BLEU, as a number in [0, 1].

  sacrebleu's sentence BLEU (Papineni et al., 2002; Post, 2018) with effective
  order, so that sentences shorter than four words can score 1. As for all
  metrics here, the best over the references, each taken alone: counts are not
  clipped by several references together, as they are in `corpus_bleu`.
  """
  return _best(_sentence_bleu_pair, prediction, references)


def chrf(prediction: str, references: Sequence[str]) -> float:
  """Scores character n-grams up to 6 (F-score, beta 2), in [0, 1].

  chrF of Popovic (2015) by sacrebleu, which ignores white space.
  """
  return _best(_chrf_pair, prediction, references)


def _letters_and_digits(text: str) -> str:
  """Returns what rouge-score keeps of a text."""
  return re.sub('[^a-z0-9]+', ' ', text.lower())


def _all_of_it(text: str) -> str:
  return text


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


# Attributes survive the wrappers that gin puts around functions.
vars(rouge_l).update(seen=_letters_and_digits)
vars(token_f1).update(seen=squad_normalize)
vars(exact_match).update(seen=squad_normalize)
vars(same_text).update(seen=_all_of_it)
vars(sentence_bleu).update(seen=_all_of_it)
vars(chrf).update(seen=_all_of_it)

METRICS: dict[str, Metric] = {
  'rouge_l': rouge_l,
  'token_f1': token_f1,
  'exact_match': exact_match,
  'same_text': same_text,
  'sentence_bleu': sentence_bleu,
  'chrf': chrf,
}


def get_metric(metric: str | Metric) -> Metric:
  """Returns a metric, the one that its name gives again.

  Args:
    metric: a name in `METRICS`, 'package.module:function' for one of your own
      (importing it runs that module), or the function itself.

  Raises:
    ValueError: if there is none such, saying what there is, or if it could not
      be found by its name again, as evaluation does from a certificate.
  """
  if isinstance(metric, str):
    found = METRICS.get(metric) or _imported(metric)
  elif callable(metric):
    found = _without_gin(metric)
  else:
    raise ValueError(_unknown(metric))
  name = metric_name(found)
  again = METRICS.get(name) or _imported(name)
  if again is not found:
    raise ValueError(
      f'{found!r} goes by the name {name!r}, but that is {again!r}; give a '
      'function that is found by its name'
    )
  _check_arguments(found, name)
  return found


def metric_name(metric: Metric) -> str:
  """Returns the name by which `get_metric` finds a metric.

  >>> metric_name(rouge_l)
  'rouge_l'

  Raises:
    ValueError: if it has none: a lambda, an object, a function inside another
      one or in the script that runs.
  """
  for name, function in METRICS.items():
    if function is metric:
      return name
  module = getattr(metric, '__module__', None)
  name = getattr(metric, '__qualname__', None)
  if not module or not name or '<' in name or '.' in name:
    raise ValueError(
      f'{metric!r} has no name to be found by again; a metric must be a '
      'function defined with def at the top level of a module'
    )
  if module == '__main__':
    raise ValueError(
      f'{name} is defined in __main__, the script that runs, where no other '
      'job finds it again; put it into a module of its own'
    )
  return f'{module}:{name}'


def _imported(name: str) -> Metric:
  """Imports 'package.module:function'."""
  if not re.fullmatch(r'\w+(\.\w+)*:\w+', name):
    raise ValueError(_unknown(name))
  module, _, function = name.partition(':')
  try:
    found = getattr(importlib.import_module(module), function)
  except (ImportError, AttributeError) as error:
    raise ValueError(
      f'metric {name!r} cannot be imported: {error}; its module must be on '
      'the Python path'
    ) from None
  if not callable(found):
    raise ValueError(f'metric {name!r} is {found!r}, not a function')
  return found


def _unknown(metric) -> str:
  return (
    f'unknown metric {metric!r}; known: {sorted(METRICS)}, or name a '
    "function (prediction, references) -> [0, 1] as 'package.module:function'"
  )


def _without_gin(metric: Metric) -> Metric:
  """Returns the function inside of what gin makes of @module.function.

  Raises:
    ValueError: if gin might bind parameters of it, which a name does not say.
  """
  bare = metric
  while getattr(bare, '__globals__', {}).get('__name__') == 'gin.config':
    bare = bare.__wrapped__
  if bare is metric:
    return metric
  further = list(inspect.signature(bare).parameters)[2:]
  if further:
    raise ValueError(
      f'metric {metric_name(bare)!r} takes {", ".join(further)} besides '
      'prediction and references, and its name would not say what gin binds '
      'them to; write a function of two parameters'
    )
  return bare


def _check_arguments(metric: Metric, name: str) -> None:
  """Checks that a metric can be called with a prediction and references."""
  try:
    inspect.signature(metric).bind('', [''])
  except TypeError as error:
    raise ValueError(
      f'metric {name!r} is not called as f(prediction, references): {error}'
    ) from None
  except ValueError:
    # Some functions written in C do not tell; calling them will.
    return


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


def _chrf_pair(prediction: str, reference: str) -> float:
  if not prediction.strip() or not reference.strip():
    return 0.0
  return _chrf_scorer().sentence_score(prediction, [reference]).score / 100


@functools.cache
def _rouge_scorer():
  """Returns one scorer for the process; building it costs more than scoring."""
  rouge_scorer = require('rouge_score.rouge_scorer', package='rouge-score')
  return rouge_scorer.RougeScorer(['rougeL'], use_stemmer=True)


@functools.cache
def _sentence_bleu_scorer():
  return require('sacrebleu').BLEU(effective_order=True)


@functools.cache
def _chrf_scorer():
  return require('sacrebleu').CHRF()


def require(module: str, *, package: str | None = None):
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
