"""Law 1(c): decoding in bfloat16 works alike; how far it strays is reported."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from cases import golden_calm

from calm_jax import decoding, exits, model

POLICY = decoding.ComputePolicy(
  exit_rule=exits.ConfidenceExit(
    measure=exits.SoftmaxMargin(), threshold=exits.ConstantThreshold(0.5)
  )
)


@pytest.mark.slow
@pytest.mark.parametrize(
  'depth_loop',
  [
    pytest.param(decoding.WhileDepthLoop(), marks=pytest.mark.slow),
    decoding.UnrolledDepthLoop(),
  ],
)
def test_half_precision_decodes_and_mismatches_are_counted(
  depth_loop, record_property, capsys
):
  params, arrays = golden_calm.load()
  results = {}
  for dtype in ('float32', 'bfloat16'):
    config = dataclasses.replace(golden_calm.CONFIG, dtype=dtype)
    state = decoding.start(
      decoding.bind(
        model.as_layered_decoder(config), params, depth_loop=depth_loop
      ),
      arrays['inputs'],
      policy=POLICY,
      max_length=8,
    )
    before = [leaf.dtype for leaf in (state.carry.scores, state.carry.tokens)]
    state = decoding.advance(state)
    after = [leaf.dtype for leaf in (state.carry.scores, state.carry.tokens)]
    assert before == after == [jnp.float32, jnp.int32]
    results[dtype] = decoding.finish(state)
  full, half = results['float32'], results['bfloat16']
  decoded = np.asarray(full.exit_layers) > 0
  assert np.all(np.asarray(half.exit_layers)[:, 0] >= 1)
  assert np.all(np.asarray(half.exit_layers) <= 5)
  # The first token has no history to differ in: most rows agree on it, and the
  # confidences behind it are close.
  same = np.asarray(full.tokens == half.tokens)
  assert same[:, 0].mean() >= 0.5
  close = np.abs(full.confidences[:, 0] - half.confidences[:, 0]) < 0.1
  assert close.mean() >= 0.5
  rate = 1 - same[decoded].mean()
  record_property('token_mismatch_rate', float(rate))
  with capsys.disabled():
    print(f' [bfloat16: {100 * rate:.0f} % of tokens differ] ', end='')
