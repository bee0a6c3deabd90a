"""The losses of calibration: by hand, their ranges, and what they refuse."""

import itertools
import random

import numpy as np
import pytest
from fakes.decoded_fakes import decoded_dataset, same_text

from calm_jax import evaluation
from calm_jax.evaluation import losses, text_metrics

WORDS = 'the a cat Cat dogs running ran. 12 été ! - '.split(' ')


def random_texts(number, seed):
  rng = random.Random(seed)
  return [
    ' '.join(rng.choices(WORDS, k=rng.randrange(9))) for _ in range(number)
  ]


@pytest.fixture(params=text_metrics.METRICS)
def metric(request):
  if request.param == 'rouge_l':
    pytest.importorskip('rouge_score')
  if request.param in ('sentence_bleu', 'chrf'):
    pytest.importorskip('sacrebleu')
  return text_metrics.get_metric(request.param)


def test_losses_by_hand():
  textual = evaluation.textual_loss(text_metrics.token_f1).of_texts
  risk = evaluation.risk_loss(text_metrics.token_f1).of_texts
  signed = evaluation.signed_loss(text_metrics.token_f1).of_texts
  early = ['red cat', 'red cat', '']
  full = ['red cat', 'red dog', 'red dog']
  assert textual(early, full).tolist() == [0.0, 0.5, 1.0]
  # F1 against the reference: early 0.5 and 1, full 1 and 0.5.
  early, full = ['red cat', 'red dog'], ['red dog', 'red cat']
  references = [['red dog'], ['red dog']]
  assert risk(early, full, references).tolist() == [0.5, 0.0]
  assert signed(early, full, references).tolist() == [0.5, -0.5]


def test_laws_of_the_losses(metric):
  early, full, *others = (random_texts(40, seed) for seed in range(4))
  references = list(zip(*others, strict=True))
  # Once either is right to the letter.
  early[0], full[1] = references[0][0], references[1][0]
  textual, risk, signed = (
    evaluation.get_loss(name, metric) for name in ('textual', 'risk', 'signed')
  )
  for loss in (textual, risk, signed):
    found = loss.of_texts(early, full, references)
    assert found.shape == (40,) and found.dtype == np.float64
    low, high = loss.loss_range
    assert ((found >= low) & (found <= high)).all()
    assert not loss.of_texts(full, full, references).any()
    one_by_one = [
      loss.of_texts(*([text] for text in row))[0]
      for row in zip(early, full, references, strict=True)
    ]
    np.testing.assert_array_equal(found, one_by_one)
  np.testing.assert_array_equal(
    textual.of_texts(early, full), textual.of_texts(early, full, references)
  )
  difference = signed.of_texts(early, full, references)
  np.testing.assert_array_equal(
    risk.of_texts(early, full, references), np.maximum(difference, 0)
  )
  np.testing.assert_array_equal(
    signed.of_texts(full, early, references), -difference
  )
  assert difference.min() < 0 < difference.max()


def test_another_reference_never_lowers_a_metric(metric):
  texts = random_texts(90, seed=9)
  for prediction, *references in zip(*[iter(texts)] * 3, strict=True):
    values = {
      metric(prediction, order) for order in itertools.permutations(references)
    }
    assert len(values) == 1
    assert values.pop() >= metric(prediction, references[:1])


def test_decodes_are_compared_by_their_texts():
  references = [('a',), ('b',), ('c',)]
  full = decoded_dataset('abx', [4] * 3, references=references)
  early = decoded_dataset('axc', [1] * 3, references=references)
  found = {
    name: evaluation.get_loss(name, same_text)(early, full).tolist()
    for name in losses.LOSSES
  }
  assert found == {
    'textual': [0.0, 1.0, 1.0],
    'risk': [0.0, 1.0, 0.0],
    'signed': [0.0, 1.0, -1.0],
  }
  # Textual consistency needs no references; the others do and say so.
  bare = decoded_dataset('abx', [4] * 3)
  assert evaluation.textual_loss(same_text)(bare, bare).tolist() == [0.0] * 3
  with pytest.raises(ValueError, match="no references.*'textual' loss"):
    evaluation.risk_loss(same_text)(bare, bare)


def returns(values):
  """Returns a metric that gives these values, one by one."""
  remaining = iter(values)
  return lambda prediction, references: next(remaining)


@pytest.mark.parametrize(
  'bad', [1.5, -0.01, 1.0001, float('nan'), float('inf'), None, '0.5', [0.5]]
)
def test_what_a_metric_may_not_return_is_named(bad):
  loss = evaluation.textual_loss(returns([1.0, bad]))
  with pytest.raises(ValueError, match=r'gave .* for example 1; .*in \[0, 1\]'):
    loss.of_texts(['a', 'b'], ['a', 'b'])


def test_what_a_metric_may_return():
  values = [True, 0, np.float32(0.25), np.bool_(False), 1 + 4e-16, -4e-16]
  found = evaluation.textual_loss(returns(values)).of_texts(
    list('abcdef'), list('abcdef')
  )
  assert found.tolist() == [0.0, 1.0, 0.75, 1.0, 0.0, 1.0]


def too_good(prediction, references):
  return 1.5 if prediction == 'b' else 1.0


def test_missing_references_are_found_before_anything_is_decoded():
  references = [['a'], [], ['b'], ()]
  for name in ('risk', 'signed'):
    loss = evaluation.get_loss(name, 'token_f1')
    assert loss.needs_references
    loss.check_references(references[:1])
    message = "example 1 has no references, one of 2.*LOSS='textual'"
    with pytest.raises(ValueError, match=message):
      loss.check_references(references)
  evaluation.get_loss('textual', 'token_f1').check_references(references)


def test_what_is_refused():
  with pytest.raises(ValueError, match="'bleu'; use one of.*'signed'"):
    evaluation.get_loss('bleu', 'rouge_l')
  textual = evaluation.textual_loss(text_metrics.token_f1).of_texts
  with pytest.raises(ValueError, match=r'of \[2, 1, 1\] examples'):
    textual(['a', 'b'], ['a'])
  with pytest.raises(TypeError, match='full is one text'):
    textual(['a', 'b'], 'ab')
  with pytest.raises(ValueError, match='too_good gave 1.5 for example 1'):
    evaluation.textual_loss(too_good).of_texts(['a', 'b'], ['a', 'b'])
  with pytest.raises(ValueError, match='no name to be found by again'):
    evaluation.get_loss('textual', lambda prediction, references: 1.0)


def test_a_text_is_scored_once():
  """A grid of settings compares the full output again and again."""
  asked = []

  def metric(prediction, references):
    asked.append(prediction)
    return float(prediction in references)

  loss = losses.risk_loss(metric)
  for early in (['a', 'x'], ['b', 'x'], ['a', 'y']):
    found = loss.of_texts(early, ['a', 'y'], [['a'], ['y', 'z']])
    expected = [float(early[0] != 'a'), float(early[1] != 'y')]
    np.testing.assert_array_equal(found, expected)
  assert sorted(asked) == ['a', 'b', 'x', 'y']
