"""Which outputs are shown, and how they are taken apart."""

import numpy as np
import pytest
from fakes.decoded_fakes import decoded_dataset

from calm_jax import evaluation


def pieces(ids):
  return [f'\u2581{token}' for token in ids]


def make(number=20):
  full = decoded_dataset(['a'] * number, [4] * number)
  early = decoded_dataset(['b'] * number, [2] * number)
  losses = np.random.default_rng(0).permutation(number) / number
  return early, full, losses


def test_the_worst_come_first_then_some_drawn_from_the_others():
  early, full, losses = make()
  samples, words = evaluation.sample_outputs(
    early, full, losses=losses, pieces=pieces, num_worst=4, num_random=5
  )
  shown = [sample.loss for sample in samples]
  assert shown[:4] == sorted(losses, reverse=True)[:4]
  assert shown[4:] == sorted(shown[4:], reverse=True)
  assert len({sample.example_id for sample in samples}) == 9
  assert 'the 4 outputs of 20' in words and '5 drawn at random' in words


def test_a_sample_holds_both_outputs_token_by_token():
  early, full, losses = make(3)
  samples, _ = evaluation.sample_outputs(
    early, full, losses=losses, pieces=pieces
  )
  assert len(samples) == 3
  sample = samples[0]
  row = int(np.argmax(losses))
  assert sample.source == f'input {row}'
  assert sample.early.tokens == (row,)
  assert sample.early.pieces == (f'\u2581{row}',)
  assert sample.early.exit_layers == (2,) and sample.full.exit_layers == (4,)
  assert sample.early.confidences == (0.5,)


def test_losses_of_other_inputs_are_refused():
  early, full, losses = make()
  with pytest.raises(ValueError, match=r'expected \(20,\)'):
    evaluation.sample_outputs(early, full, losses=losses[:-1], pieces=pieces)
  with pytest.raises(ValueError, match='different inputs'):
    evaluation.sample_outputs(early, make(3)[1], losses=losses, pieces=pieces)
