"""Corpus metrics: official values, means in percent, bad corpora."""

import functools

import pytest

from calm_jax.evaluation import corpus_metrics


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
  value = corpus_metrics.corpus_bleu(predictions, references)
  assert value == pytest.approx(expected)
  assert 0 < value < 100
  perfect = [texts[0] for texts in references]
  assert corpus_metrics.corpus_bleu(perfect, references) == pytest.approx(100)
  # Another reference can only help, and one of several is enough.
  assert value >= corpus_metrics.corpus_bleu(
    predictions, [texts[:1] for texts in references]
  )


def test_corpus_metrics_are_means_in_percent():
  predictions = ['the cat', 'dog', '']
  references = [['cat'], ['a cat', 'dog house'], ['']]

  def score(name):
    return corpus_metrics.corpus_score(name, predictions, references)

  assert score('exact_match') == (pytest.approx(100 * 2 / 3))
  assert score('token_f1') == (pytest.approx(100 * (1 + 2 / 3 + 1) / 3))
  pytest.importorskip('rouge_score')
  assert score('rouge_l') == (pytest.approx(100 * (2 / 3 + 2 / 3 + 1) / 3))


@pytest.mark.parametrize('name', corpus_metrics.CORPUS_METRICS)
def test_corpus_score_finds_the_metric_and_checks_the_corpus(name):
  pytest.importorskip('sacrebleu')
  pytest.importorskip('rouge_score')
  score = functools.partial(corpus_metrics.corpus_score, name)
  assert score(['a fine day it is'] * 2, [['a fine day it is']] * 2) == (
    pytest.approx(100)
  )
  assert score(['nothing'], [['bad']]) == pytest.approx(0)
  with pytest.raises(ValueError, match='1 predictions and 2 lists'):
    score(['a'], [['a'], ['b']])
  with pytest.raises(ValueError, match='0 predictions'):
    score([], [])
  with pytest.raises(ValueError, match="example 1 must be a list.*'b'"):
    score(['a', 'b'], [['a'], 'b'])
  with pytest.raises(ValueError, match=r'example 0 must be a list.*\[\]'):
    score(['a'], [[]])


def test_rouge_of_several_kinds_by_hand():
  pytest.importorskip('rouge_score')
  predictions, references = ['the cat sat'], [['the cat ran', 'no']]
  for name, expected in [('rouge_1', 2 / 3), ('rouge_2', 1 / 2)]:
    score = corpus_metrics.corpus_score(name, predictions, references)
    assert score == pytest.approx(100 * expected)
  # Sentences in another order: the union over sentences finds all of it.
  predictions, references = ['b c\na d'], [['a d\nb c']]
  lsum = corpus_metrics.corpus_score('rouge_lsum', predictions, references)
  assert lsum == pytest.approx(100)
  whole = corpus_metrics.corpus_score('rouge_l', predictions, references)
  assert whole == pytest.approx(50)


def test_rouge_lsum_finds_sentences_without_line_ends():
  pytest.importorskip('rouge_score')
  lines = 'the cat sat on a red mat .\ndogs ran in the old park .\nbirds flew'
  one_line = lines.replace('\n', ' ')
  references = [
    ['dogs ran to the park .\nthe cat sat on the mat .\nbirds sang']
  ]
  first, second, plain = (
    corpus_metrics.corpus_score('rouge_lsum', [text], references)
    for text in (lines, one_line, one_line.replace('.', ''))
  )
  assert first == second > plain


def test_chrf_takes_unequal_numbers_of_references():
  sacrebleu = pytest.importorskip('sacrebleu')
  predictions = ['the cat sat', 'a dog ran']
  references = [['the cat sat down', 'a cat sat'], ['the dog ran']]
  expected = sacrebleu.corpus_chrf(
    predictions, [['the cat sat down', 'the dog ran'], ['a cat sat', None]]
  ).score
  value = corpus_metrics.corpus_score('chrf', predictions, references)
  assert value == pytest.approx(expected)


def test_unknown_names_list_the_known_ones():
  with pytest.raises(ValueError, match="unknown corpus metric 'bleurt'.*bleu"):
    corpus_metrics.corpus_score('bleurt', ['a'], [['a']])
