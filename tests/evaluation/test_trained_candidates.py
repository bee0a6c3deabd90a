"""Policies of a space whose part was not trained are left out, in words."""

import pytest

from calm_jax import decoding, evaluation

KEPT = evaluation.Candidates(
  name='kept',
  policy=decoding.ComputePolicy(layer_plan=decoding.KeepLayers(1)),
  settings=({'layer_plan.num_layers': 1},),
)


def untrained():
  raise FileNotFoundError('no router in x; train_router makes it\n  by gin')


def test_what_was_not_trained_is_left_out_and_said():
  said = []
  space = [
    evaluation.where_trained(lambda: KEPT),
    evaluation.where_trained(untrained),
  ]
  assert evaluation.trained_only(space, said.append) == [KEPT]
  assert said == [
    'left out of the space: no router in x; train_router makes it'
  ]
  with pytest.raises(ValueError, match=r'nothing is left .*margins.gin'):
    evaluation.trained_only(space[1:], said.append)
  # What is no space at all is for others to refuse.
  assert evaluation.trained_only([], said.append) == []
  assert evaluation.trained_only(KEPT, said.append) is KEPT


def test_other_errors_are_no_want_of_training():
  def broken():
    raise ValueError('trained for other parameters')

  with pytest.raises(ValueError, match='other parameters'):
    evaluation.where_trained(broken)
