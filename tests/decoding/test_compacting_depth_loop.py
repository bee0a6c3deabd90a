"""The compacting depth loop gives the reference's answers on fewer rows."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import policy_cases as cases

from calm_jax import decoding, exits, interfaces
from calm_jax.pytrees import register_pytree

# Long checks, and twins of cheaper ones: for `scripts/test.sh --all`.
pytestmark = pytest.mark.slow

LOOP = decoding.CompactingDepthLoop()
# The others take longer than they teach.
QUICK = ('margin_decaying', 'skip_feed_forward')


def _decode(name, loop=LOOP):
  case = cases.case(name)
  state = decoding.start(
    cases.bound(loop),
    cases.inputs(),
    policy=case.policy(np.arange(cases.B), case.threshold),
    sampler=case.sampler,
    max_length=cases.T,
    eos_id=cases.EOS_ID,
    rng=cases.KEY,
    **case.options(np.arange(cases.B)),
  )
  return cases.host(decoding.finish(decoding.advance(state)))


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
    for name in cases.NAMES
  ],
)
def test_every_policy_decodes_as_with_the_reference_loop(name):
  """Law 7, for this loop."""
  with jax.default_matmul_precision('highest'):
    reference, found = cases.decode(name), _decode(name)
  for field in ('tokens', 'exit_layers', 'lengths'):
    np.testing.assert_array_equal(
      getattr(found, field), getattr(reference, field), err_msg=field
    )
  for field in ('confidences', 'rejected_confidences', 'scores'):
    np.testing.assert_allclose(
      getattr(found, field), getattr(reference, field), atol=1e-4
    )


def test_the_quick_cases_are_cases():
  assert set(QUICK) <= set(cases.NAMES)


@register_pytree
@dataclasses.dataclass(frozen=True)
class _Counting:
  """Exits by a schedule; its confidence is 1 / how many rows it was shown."""

  exit_layers: jax.Array

  needs_logits: ClassVar[bool] = False

  def check(self, decoder, batch_size, max_length):
    return self

  def init(self, decoder, batch_size, max_length):
    return exits.ScheduledExit(self.exit_layers).init(
      decoder, batch_size, max_length
    )

  def looks(self, layer):
    return True

  def step(self, state, view: interfaces.LayerView):
    rule = exits.ScheduledExit(self.exit_layers)
    _, stops, _ = rule.step(state, view)
    shown = jnp.full(view.active.shape, 1.0 / view.active.shape[0])
    return state, stops, shown


@pytest.mark.slow
def test_a_layer_runs_on_the_smallest_bucket_that_holds_its_rows():
  depths = jnp.array([[1, 4], [2, 1], [4, 4], [3, 1]])
  result = decoding.generate(
    cases.bound(LOOP),
    cases.inputs(),
    policy=decoding.ComputePolicy(exit_rule=_Counting(depths)),
    max_length=2,
    eos_id=-1,
  )
  np.testing.assert_array_equal(result.exit_layers, depths)
  # First position: 4, then 3 (in 4), then 2, then 1 rows; second: 4, 2, 2, 2.
  np.testing.assert_allclose(
    result.confidences,
    [[1 / 4, 1 / 2], [1 / 4, 1 / 4], [1, 1 / 2], [1 / 2, 1 / 4]],
  )


@pytest.mark.parametrize('smallest', [0, -1, 1.5])
def test_bad_buckets_are_refused(smallest):
  with pytest.raises(ValueError, match='smallest'):
    decoding.CompactingDepthLoop(smallest)
