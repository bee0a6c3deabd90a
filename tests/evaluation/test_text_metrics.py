"""Text metrics: ranges, identities, hand-computed and official values."""

import collections
import functools
import random
import re
import string
import sys

import numpy as np
import pytest

from calm_jax.evaluation import text_metrics

METRICS = list(text_metrics.METRICS.values())
WORDS = (
  'the a an cat Cat dogs running runs, ran. "quoted" 12 12.5 été naïve 中文 ! '
  '... - well-known it\'s " '
).split(' ')


@pytest.fixture(params=METRICS, ids=text_metrics.METRICS)
def metric(request):
  """Every metric; skipped where its library is not installed."""
  if request.param is text_metrics.rouge_l:
    pytest.importorskip('rouge_score')
  if request.param in (text_metrics.sentence_bleu, text_metrics.chrf):
    pytest.importorskip('sacrebleu')
  return request.param


def random_texts(number, seed=0):
  """Returns texts of 0 to 8 of the words above."""
  rng = random.Random(seed)
  return [
    ' '.join(rng.choices(WORDS, k=rng.randrange(9))) for _ in range(number)
  ]


def test_is_in_0_1_and_finds_the_best_reference(metric):
  texts = random_texts(120)
  for prediction, *references in zip(*[iter(texts)] * 4, strict=True):
    value = metric(prediction, references)
    assert isinstance(value, float)
    assert 0 <= value <= 1
    assert value == max(metric(prediction, [text]) for text in references)
    assert value == metric(prediction, tuple(reversed(references)))


def test_equal_texts_are_alike(metric):
  for text in random_texts(60):
    assert metric(text, [text]) == 1.0
    assert metric(text, ['something else', text]) == 1.0


def test_empty_texts(metric):
  assert metric('', ['']) == 1.0
  assert metric(' \n', ['']) == 1.0
  assert metric('', ['words']) == 0.0
  assert metric('words', ['']) == 0.0
  assert metric('', ['words', '']) == 1.0
  assert metric('cat', ['dog']) == 0.0


@pytest.mark.parametrize('name', ['rouge_l', 'token_f1', 'exact_match'])
def test_is_symmetric(name):
  if name == 'rouge_l':
    pytest.importorskip('rouge_score')
  metric = text_metrics.get_metric(name)
  texts = random_texts(200, seed=1)
  for first, second in zip(texts[::2], texts[1::2], strict=True):
    assert metric(first, [second]) == pytest.approx(metric(second, [first]))


def test_bad_input_is_named(metric):
  with pytest.raises(TypeError, match=r"the string 'cat'.*\[reference\]"):
    metric('cat', 'cat')
  with pytest.raises(TypeError, match='must be a string, not None'):
    metric(None, ['cat'])
  with pytest.raises(ValueError, match='references are empty'):
    metric('cat', [])


def test_rouge_l_by_hand():
  pytest.importorskip('rouge_score')
  # Common subsequence "the cat on mat", 4 of 5 and of 6 words.
  value = text_metrics.rouge_l('the cat on the mat', ['the cat sat on a mat'])
  assert value == pytest.approx(2 * 4 / (5 + 6))
  # Order matters, the stem counts, capitals and punctuation do not.
  assert text_metrics.rouge_l('b a', ['a b']) == pytest.approx(0.5)
  assert text_metrics.rouge_l('Running!', ['runs running']) == pytest.approx(
    2 / 3
  )
  # No a-z or 0-9 at all: alike only if equal.
  assert text_metrics.rouge_l('中文', ['中文']) == 1.0
  assert text_metrics.rouge_l('中文', ['日本']) == 0.0


def test_token_f1_by_hand():
  # {cat, cat, sat} and {cat, sat, down}: 2 in common.
  value = text_metrics.token_f1('The cat, cat sat.', ['a cat sat down'])
  assert value == pytest.approx(2 / 3)
  assert text_metrics.token_f1('the', ['a']) == 1.0
  assert text_metrics.token_f1('the', ['cat']) == 0.0


def test_exact_match_by_hand():
  assert text_metrics.exact_match('The Cat!', ['dog', 'cat']) == 1.0
  assert text_metrics.exact_match('cats', ['cat']) == 0.0
  assert text_metrics.exact_match('theatre', ['atre']) == 0.0


def test_sentence_bleu_by_hand():
  pytest.importorskip('sacrebleu')
  # Precisions 4/5 and 2/4, 3-grams 1/3, 4-grams 0/2 smoothed to 1/4; equally
  # long.
  value = text_metrics.sentence_bleu('a b c x e', ['a b c d e'])
  assert value == pytest.approx((4 / 5 * 2 / 4 * 1 / 3 * 1 / 4) ** 0.25)
  # Effective order: two words can be perfect, and a part of them is not.
  assert text_metrics.sentence_bleu('good morning', ['good morning']) == 1.0
  short = text_metrics.sentence_bleu('good', ['good morning'])
  assert short == pytest.approx(np.exp(1 - 2 / 1))


def official_squad(prediction, references):
  """The official SQuAD 2.0 rules, in their own words: (F1, exact match)."""

  def normalize(text):
    text = ''.join(c for c in text.lower() if c not in set(string.punctuation))
    return ' '.join(re.compile(r'\b(a|an|the)\b').sub(' ', text).split())

  def f1(reference):
    gold, guess = normalize(reference).split(), normalize(prediction).split()
    same = sum(
      (collections.Counter(gold) & collections.Counter(guess)).values()
    )
    if not gold or not guess:
      return float(gold == guess)
    if same == 0:
      return 0.0
    precision, recall = same / len(guess), same / len(gold)
    return 2 * precision * recall / (precision + recall)

  return (
    max(map(f1, references)),
    max(float(normalize(prediction) == normalize(r)) for r in references),
  )


def test_squad_metrics_are_the_official_ones():
  texts = random_texts(1500, seed=2)
  for prediction, *references in zip(*[iter(texts)] * 3, strict=True):
    f1, exact = official_squad(prediction, references)
    assert text_metrics.token_f1(prediction, references) == pytest.approx(f1)
    assert text_metrics.exact_match(prediction, references) == exact


def test_rouge_and_bleu_are_their_libraries():
  rouge_scorer = pytest.importorskip('rouge_score.rouge_scorer')
  sacrebleu = pytest.importorskip('sacrebleu')
  scorer = rouge_scorer.RougeScorer(['rougeL'], use_stemmer=True)
  texts = [text for text in random_texts(200, seed=3) if text.strip(' .-!"')]
  for first, second in zip(texts[::2], texts[1::2], strict=False):
    if first == second:
      continue
    assert text_metrics.rouge_l(first, [second]) == pytest.approx(
      scorer.score(second, first)['rougeL'].fmeasure
    )
    assert text_metrics.sentence_bleu(first, [second]) == pytest.approx(
      sacrebleu.sentence_bleu(first, [second]).score / 100
    )


def test_unknown_names_list_the_known_ones():
  assert text_metrics.get_metric('token_f1') is text_metrics.token_f1
  known = "', '".join(sorted(text_metrics.METRICS))
  with pytest.raises(ValueError, match=f"unknown metric 'bleurt'.*{known}"):
    text_metrics.get_metric('bleurt')


def own_metric(prediction, references):
  """A metric of a user's, found by its name."""
  return float(any(prediction[:1] == text[:1] for text in references))


def test_a_metric_of_ones_own_is_found_by_its_name_again():
  name = text_metrics.metric_name(own_metric)
  assert name == f'{__name__}:own_metric'
  assert text_metrics.get_metric(name) is own_metric
  assert text_metrics.get_metric(own_metric) is own_metric
  for known, function in text_metrics.METRICS.items():
    assert text_metrics.metric_name(function) == known


@pytest.mark.parametrize(
  ('metric', 'message'),
  [
    ('no_such_module:f', 'cannot be imported.*Python path'),
    ('string:no_such_name', 'cannot be imported'),
    ('string:digits', 'not a function'),
    ('string:', 'unknown metric'),
    (':f', 'unknown metric'),
    ('.relative:f', 'unknown metric'),
    (None, 'unknown metric None'),
    (['rouge_l'], 'unknown metric'),
    ('math:sin', r"'math:sin' is not called as f\(prediction, references\)"),
    (lambda prediction, references: 1.0, 'no name to be found by again'),
    (functools.partial(own_metric), 'no name to be found by again'),
  ],
)
def test_metrics_that_cannot_be_named_are_refused(metric, message):
  with pytest.raises(ValueError, match=message):
    text_metrics.get_metric(metric)


def test_a_metric_of_the_script_that_runs_is_refused(monkeypatch):
  monkeypatch.setattr(own_metric, '__module__', '__main__')
  with pytest.raises(ValueError, match='own_metric is defined in __main__'):
    text_metrics.get_metric(own_metric)


def test_a_metric_that_goes_by_the_name_of_another_is_refused():
  def impostor(prediction, references):
    return 1.0

  impostor.__qualname__ = 'own_metric'
  with pytest.raises(ValueError, match='own_metric.*but that is'):
    text_metrics.get_metric(impostor)
  # A decorator that keeps the name and changes the numbers.
  for metric in (own_metric, text_metrics.token_f1):
    halved = functools.wraps(metric)(lambda *texts: 0.5)
    with pytest.raises(ValueError, match=f'{metric.__name__}.*but that is'):
      text_metrics.get_metric(halved)


def test_chrf_is_the_one_of_sacrebleu():
  sacrebleu = pytest.importorskip('sacrebleu')
  texts = [text for text in random_texts(60, seed=3) if text.strip()]
  for first, second in zip(texts[::2], texts[1::2], strict=False):
    expected = sacrebleu.sentence_chrf(first, [second]).score / 100
    assert text_metrics.chrf(first, [second]) == pytest.approx(expected)


@pytest.mark.parametrize(
  ('name', 'module', 'package'),
  [
    ('rouge_l', 'rouge_score', 'rouge-score'),
    ('sentence_bleu', 'sacrebleu', 'sacrebleu'),
    ('chrf', 'sacrebleu', 'sacrebleu'),
  ],
)
def test_a_missing_library_names_the_extra(monkeypatch, name, module, package):
  monkeypatch.setitem(sys.modules, module, None)
  monkeypatch.delitem(sys.modules, 'rouge_score.rouge_scorer', raising=False)
  for cached in (
    text_metrics._rouge_scorer,
    text_metrics._sentence_bleu_scorer,
    text_metrics._chrf_scorer,
  ):
    cached.cache_clear()
  message = rf'{package}: pip install calm_jax\[metrics\]'
  with pytest.raises(ImportError, match=message):
    text_metrics.get_metric(name)('a b', ['a c'])
