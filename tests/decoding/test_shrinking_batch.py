"""Batches that shrink as rows end say what whole ones say."""

import dataclasses

import jax
import numpy as np
import pytest
from cases import policy_cases as cases

from calm_jax import decoding

# From four rows to two, and to one.
SHRINKING = decoding.ShrinkingBatch(cases.WHILE, shrink_by=2, smallest=1)
FAST = {'full'}


@pytest.fixture(autouse=True)
def _highest_precision():
  with jax.default_matmul_precision('highest'):
    yield


def shrinking(name, **options):
  state = cases.start(cases.case(name), **options)
  return dataclasses.replace(state, bound=cases.bound(SHRINKING))


def same(one, other):
  leaves = jax.tree.leaves_with_path(one)
  for (path, leaf), expected in zip(
    leaves, jax.tree.leaves(other), strict=True
  ):
    # Fewer rows are multiplied in other shapes.
    np.testing.assert_allclose(
      leaf, expected, atol=1e-5, err_msg=jax.tree_util.keystr(path)
    )


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=() if name in FAST else pytest.mark.slow)
    for name in cases.NAMES
  ],
)
def test_every_policy_says_the_same(name):
  """Law 7, of another way of running rows; in pieces, too (law 5)."""
  expected = cases.decode(name)
  same(decoding.finish(decoding.advance(shrinking(name))), expected)
  state = shrinking(name)
  for _ in range(cases.T):
    state = decoding.advance(state, 1)
  same(decoding.finish(state), expected)


def test_rows_are_left_behind():
  """A batch that is down to one row runs steps of one row."""
  lengths = cases.decode('full').lengths
  assert sorted(lengths)[1] < sorted(lengths)[2], 'rows end one by one'
  state = shrinking('full')
  text = jax.make_jaxpr(decoding.advance)(state).pretty_print()
  rows = [f'[{rows},{cases.V}]' for rows in (4, 2, 1)]
  assert [count in text for count in rows] == [True, True, True]
  whole = jax.make_jaxpr(decoding.advance)(cases.start(cases.case('full')))
  assert rows[1] not in whole.pretty_print()


def test_sizes():
  def sizes(loop, rows):
    found = [rows]
    while found[-1]:
      found.append(loop.smaller(found[-1]))
    return found

  assert sizes(decoding.ShrinkingBatch(), 64) == [64, 16, 4, 1, 0]
  assert sizes(decoding.ShrinkingBatch(smallest=4), 64) == [64, 16, 4, 0]
  assert sizes(decoding.ShrinkingBatch(shrink_by=2), 5) == [5, 2, 1, 0]
  assert decoding.ShrinkingBatch(cases.WHILE).traced_layers
  assert not decoding.ShrinkingBatch().traced_layers


@pytest.mark.parametrize(
  ('options', 'error', 'message'),
  [
    ({'shrink_by': 1}, ValueError, 'shrink_by 1 must be'),
    ({'smallest': 0}, ValueError, 'smallest 0 must be'),
    ({'loop': decoding.WhileDepthLoop}, TypeError, 'loop is <class'),
    ({'loop': 'unrolled'}, TypeError, "loop is 'unrolled'; give a depth loop"),
  ],
)
def test_bad_options_are_refused(options, error, message):
  with pytest.raises(error, match=message):
    decoding.ShrinkingBatch(**options)
