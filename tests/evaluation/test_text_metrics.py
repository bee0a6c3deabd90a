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
  if request.param is text_metrics.sentence_bleu:
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


def test_corpus_bleu_takes_unequal_numbers_of_references():
  sacrebleu = pytest.importorskip('sacrebleu')
  predictions = ['the cat sat on the mat', 'a dog ran', 'hello there you']
  references = [
    ['the cat sat on a mat', 'a cat was on the mat'],
    ['the dog ran away'],
    ['hello there', 'hi you', 'hello there you'],
  ]
  expected = sacrebleu.corpus_bleu(
    predictions,
    [
      [references[0][0], references[1][0], references[2][0]],
      [references[0][1], None, references[2][1]],
      [None, None, references[2][2]],
    ],
  ).score
  value = text_metrics.corpus_bleu(predictions, references)
  assert value == pytest.approx(expected)
  assert 0 < value < 100
  perfect = [texts[0] for texts in references]
  assert text_metrics.corpus_bleu(perfect, references) == pytest.approx(100)
  # Another reference can only help, and one of several is enough.
  assert value >= text_metrics.corpus_bleu(
    predictions, [texts[:1] for texts in references]
  )


def test_corpus_metrics_are_means_in_percent():
  predictions = ['the cat', 'dog', '']
  references = [['cat'], ['a cat', 'dog house'], ['']]
  assert text_metrics.corpus_exact_match(predictions, references) == (
    pytest.approx(100 * 2 / 3)
  )
  assert text_metrics.corpus_token_f1(predictions, references) == (
    pytest.approx(100 * (1 + 2 / 3 + 1) / 3)
  )
  pytest.importorskip('rouge_score')
  assert text_metrics.corpus_rouge_l(predictions, references) == (
    pytest.approx(100 * (2 / 3 + 2 / 3 + 1) / 3)
  )


@pytest.mark.parametrize('name', text_metrics.CORPUS_METRICS)
def test_corpus_score_finds_the_metric_and_checks_the_corpus(name):
  pytest.importorskip('sacrebleu')
  pytest.importorskip('rouge_score')
  score = functools.partial(text_metrics.corpus_score, name)
  assert score(['a fine day it is'] * 2, [['a fine day it is']] * 2) == (
    pytest.approx(100)
  )
  assert score(['nothing'], [['common']]) == pytest.approx(0)
  with pytest.raises(ValueError, match='1 predictions and 2 lists'):
    score(['a'], [['a'], ['b']])
  with pytest.raises(ValueError, match='0 predictions'):
    score([], [])
  with pytest.raises(ValueError, match="example 1 must be a list.*'b'"):
    score(['a', 'b'], [['a'], 'b'])
  with pytest.raises(ValueError, match=r'example 0 must be a list.*\[\]'):
    score(['a'], [[]])


def test_unknown_names_list_the_known_ones():
  assert text_metrics.get_metric('token_f1') is text_metrics.token_f1
  known = "exact_match', 'rouge_l', 'sentence_bleu', 'token_f1"
  with pytest.raises(ValueError, match=f"unknown metric 'bleurt'.*{known}"):
    text_metrics.get_metric('bleurt')
  with pytest.raises(ValueError, match="unknown corpus metric 'chrf'.*bleu"):
    text_metrics.corpus_score('chrf', ['a'], [['a']])


def test_losses_by_hand():
  metric = text_metrics.token_f1
  textual = text_metrics.textual_consistency
  risk = text_metrics.risk_consistency
  assert textual(metric, 'red cat', 'red cat') == 0.0
  assert textual(metric, 'red cat', 'red dog') == pytest.approx(0.5)
  assert textual(metric, '', 'red dog') == 1.0
  # F1 against the reference: early 0.5, full 1.
  assert risk(metric, 'red cat', 'red dog', ['red dog']) == pytest.approx(0.5)
  # Better than the full model costs nothing.
  assert risk(metric, 'red dog', 'red cat', ['red dog']) == 0.0


def test_losses_of_many_examples_are_those_of_each(metric):
  early, full, *references = (random_texts(40, seed=seed) for seed in range(4))
  references = list(zip(*references, strict=True))
  textual = text_metrics.textual_consistency(metric, early, full)
  risk = text_metrics.risk_consistency(metric, early, full, references)
  assert textual.shape == risk.shape == (40,)
  assert textual.dtype == risk.dtype == np.float64
  for losses in (textual, risk):
    assert ((losses >= 0) & (losses <= 1)).all()
  for n in range(40):
    assert textual[n] == text_metrics.textual_consistency(
      metric, early[n], full[n]
    )
    assert risk[n] == text_metrics.risk_consistency(
      metric, early[n], full[n], references[n]
    )
  assert not text_metrics.textual_consistency(metric, full, full).any()
  assert not text_metrics.risk_consistency(metric, full, full, references).any()


def test_losses_of_unequal_numbers_are_refused():
  with pytest.raises(ValueError, match=r'of \[2, 1\] examples'):
    text_metrics.textual_consistency(text_metrics.token_f1, ['a', 'b'], ['a'])
  with pytest.raises(ValueError, match='give equally many'):
    text_metrics.textual_consistency(text_metrics.token_f1, ['a', 'b'], 'ab')


@pytest.mark.parametrize(
  ('name', 'module', 'package'),
  [
    ('rouge_l', 'rouge_score', 'rouge-score'),
    ('sentence_bleu', 'sacrebleu', 'sacrebleu'),
  ],
)
def test_a_missing_library_names_the_extra(monkeypatch, name, module, package):
  monkeypatch.setitem(sys.modules, module, None)
  monkeypatch.delitem(sys.modules, 'rouge_score.rouge_scorer', raising=False)
  for cached in (
    text_metrics._rouge_scorer,
    text_metrics._sentence_bleu_scorer,
  ):
    cached.cache_clear()
  message = rf'{package}: pip install calm_jax\[metrics\]'
  with pytest.raises(ImportError, match=message):
    text_metrics.get_metric(name)('a b', ['a c'])
