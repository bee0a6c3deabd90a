"""Beam search against T5X's own, where T5X is on the Python path.

Only `t5x.decoding` is loaded, which needs nothing but JAX and Flax. It is shown
the masked decoder, teacher forced, so that its answers depend on none of our
caches.
"""

import functools
import importlib
import importlib.util
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import policy_cases as cases

from calm_jax import decoding, exits, model


@pytest.fixture
def beam_search(monkeypatch):
  """Returns `t5x.decoding.beam_search`."""
  found = importlib.util.find_spec('t5x')
  if found is None:
    pytest.skip('T5X is not on the Python path')
  # The package's own __init__ imports all of T5X, TensorFlow included.
  package = types.ModuleType('t5x')
  package.__path__ = list(found.submodule_search_locations)
  monkeypatch.setitem(sys.modules, 't5x', package)
  for name in ('t5x.decoding', 't5x.binary_search'):
    monkeypatch.delitem(sys.modules, name, raising=False)
  return importlib.import_module('t5x.decoding').beam_search


@functools.partial(jax.jit, static_argnames=('num_beams', 'search'))
def t5x_decode(exit_layers, prefix, alpha, *, num_beams, search):
  """Returns T5X's sequences [B, K, T] and scores, worst first, at some depths.

  Args:
    exit_layers: int32 [T], layers of each position.
    prefix: int32 [B, T + 1], the start token and what is forced, then 0.
    alpha: the length penalty.
    num_beams: K.
    search: T5X's function.
  """
  source = jnp.repeat(cases.inputs(), num_beams, axis=0)
  mask = jnp.arange(cases.L) < exit_layers[:, None]
  mask = jnp.broadcast_to(mask, (len(source), *mask.shape))

  def tokens_to_logits(state):
    logits = model.decode_with_layer_mask(
      cases.CONFIG, cases.params(), source, state.sequences[:, : cases.T], mask
    )
    return logits[:, state.cur_index], state.cache

  return search(
    prefix,
    {},
    tokens_to_logits,
    cases.EOS_ID,
    num_decodes=num_beams,
    alpha=alpha,
    max_decode_len=cases.T,
  )


@pytest.mark.parametrize('num_beams', [2, 4])
def test_equals_t5x(beam_search, num_beams):
  schedules = ([cases.L] * cases.T, [4, 1, 3, 2, 1, 4, 2, 1])
  num_compared = 0
  with jax.default_matmul_precision('highest'):
    for schedule in schedules:
      for alpha in (0.0, 0.6, 2.0):
        for prefix in (np.zeros_like(cases.PREFIXES), cases.PREFIXES):
          num_compared += compare(
            beam_search, num_beams, schedule, alpha, prefix
          )
  # T5X shows places of its pool that are still empty; most are not.
  assert num_compared > 12 * cases.B


def compare(beam_search, num_beams, schedule, alpha, prefix):
  """Asserts that all of T5X's outputs are ours; returns how many."""
  schedule = np.where(
    # Forced tokens run at full depth, here for all rows alike.
    np.arange(cases.T) < prefix.astype(bool).sum(axis=1).max(),
    cases.L,
    schedule,
  )
  shifted = np.zeros((cases.B, cases.T + 1), np.int32)
  shifted[:, 1 : prefix.shape[1] + 1] = prefix
  sequences, scores = cases.host(
    t5x_decode(
      schedule, shifted, alpha, num_beams=num_beams, search=beam_search
    )
  )
  ours = cases.host(
    decoding.generate(
      cases.bound(),
      cases.inputs(),
      policy=decoding.ComputePolicy(exit_rule=exits.ScheduledExit(schedule)),
      sampler=decoding.BeamSearch(num_beams, alpha),
      num_samples=num_beams,
      max_length=cases.T,
      eos_id=cases.EOS_ID,
      forced_prefix=prefix,
    )
  )
  ranks = ours.scores / ((5 + ours.lengths) / 6) ** alpha
  num_compared = 0
  for row in range(cases.B):
    theirs = [place for place in range(num_beams) if scores[row, place] > -1e5]
    theirs.sort(key=lambda place: -scores[row, place])
    has_ended = (sequences[row] == cases.EOS_ID).any()
    for place, t5x_place in enumerate(theirs):
      np.testing.assert_array_equal(
        ours.tokens[row, place], sequences[row, t5x_place]
      )
      np.testing.assert_allclose(
        # T5X gives plain scores where nothing has ended.
        (ranks if has_ended else ours.scores)[row, place],
        scores[row, t5x_place],
        atol=1e-4,
      )
      num_compared += 1
  return num_compared
