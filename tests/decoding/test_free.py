"""FREE, two exits with exact K/V: what the laws of its case do not say.

That a threshold of 1 is the full model is law 2, that K/V are the full model's
after the same tokens is law 10, that rows decode alone as in a batch law 1.
"""

import dataclasses

import jax
import numpy as np
import pytest
from cases import policy_cases as cases

from calm_jax import decoding

NAME = 'free_two_exits'
SHALLOW = 2


@pytest.fixture(autouse=True)
def _highest_precision():
  with jax.default_matmul_precision('highest'):
    yield


def with_fill(cache_fill):
  """Returns the case with another cache fill."""
  case = cases.case(NAME)

  def policy(rows, threshold):
    policy = case.policy(rows, threshold)
    return dataclasses.replace(policy, cache_fill=cache_fill)

  return dataclasses.replace(case, policy=policy)


def agree(one, other, rows=slice(None)):
  """Asserts that two decodes say the same of some rows."""
  for field in ('tokens', 'exit_layers', 'lengths'):
    np.testing.assert_array_equal(
      getattr(one, field)[rows], getattr(other, field)[rows], err_msg=field
    )
  for field in ('confidences', 'rejected_confidences', 'scores'):
    np.testing.assert_allclose(
      getattr(one, field)[rows], getattr(other, field)[rows], atol=1e-5
    )


def test_a_token_exits_after_the_shallow_layer_or_the_last():
  """By its confidence there, which the last layer does not measure."""
  result, threshold = cases.decode(NAME), cases.case(NAME).threshold
  layers = result.exit_layers
  early, late = layers == SHALLOW, layers == cases.L
  assert early.any() and late.any()
  assert (early | late | (layers == -1)).all()
  assert (result.confidences[early] >= threshold).all()
  assert np.isnan(result.confidences[late]).all()
  seen = result.rejected_confidences[late]
  assert ((seen >= 0) & (seen < threshold)).all()


@pytest.mark.slow
@pytest.mark.parametrize(
  'block_sizes',
  [
    *(pytest.param(sizes, marks=pytest.mark.slow) for sizes in ((1,), (3,))),
    (4, 16),
  ],
  ids=str,
)
def test_outputs_do_not_depend_on_block_sizes(block_sizes):
  """However many positions that left early run the deep layers together."""
  result = cases.decode(NAME)
  # There is more to catch up with than the smallest block holds.
  assert (result.work.caught_up > 1).any()
  agree(cases.run(with_fill(decoding.CatchUp(block_sizes))), result)
  # Projected K/V are seen in what is decoded.
  projected = cases.run(with_fill(decoding.ProjectExitState()))
  with pytest.raises(AssertionError):
    agree(projected, result)


@pytest.mark.slow
def test_outputs_do_not_depend_on_batch_mates():
  """Nor on how far behind these are when a row catches up."""
  reference = cases.decode(NAME)
  others = np.random.default_rng(1).integers(2, cases.V, (cases.B, cases.S))
  for kept in ([0, 1], [2, 3], [1]):
    source = others.copy()
    source[kept] = cases.inputs()[kept]
    result = cases.run(cases.case(NAME), source=source)
    agree(result, reference, kept)
    assert not np.array_equal(result.exit_layers, reference.exit_layers)
