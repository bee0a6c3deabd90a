"""Parity with T5X's CALM network (Flaxformer calm_t5) on a tiny random T5."""

import jax
import numpy as np
import pytest
from cases import golden_calm

from calm_jax import model


@pytest.fixture(scope='module')
def golden():
  return golden_calm.load()


@jax.jit
def last_logits(params, inputs, tokens):
  states = model.layer_states(golden_calm.CONFIG, params, inputs, tokens)
  return model.output_logits(golden_calm.CONFIG, params, states[-1])


def shift_right(targets):
  return np.pad(targets, ((0, 0), (1, 0)))[:, :-1]


def test_parameter_names_and_shapes_are_t5x_names_and_shapes(golden):
  params, _ = golden
  official = dict(params, decoder=dict(params['decoder']))
  # The release's exit classifier is the one thing a T5 does not have.
  del official['decoder']['meta_cls']
  ours = jax.eval_shape(
    lambda: model.init_params(golden_calm.CONFIG, jax.random.key(0))
  )
  shapes = [
    {
      jax.tree_util.keystr(path): leaf.shape
      for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }
    for tree in (ours, official)
  ]
  assert shapes[0] == shapes[1]


def test_teacher_forced_logits(golden):
  params, arrays = golden
  targets = arrays['forced/targets']
  with jax.default_matmul_precision('highest'):
    logits = last_logits(params, arrays['inputs'], shift_right(targets))
  # The release masks padded targets as keys too, we only mask the future: the
  # two agree wherever a target stands.
  real = targets > 0
  np.testing.assert_allclose(
    np.asarray(logits)[real], arrays['forced/logits'][real], atol=1e-4
  )
