import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import training_cases

from calm_jax import training

CONFIG = dataclasses.replace(training_cases.CONFIG, dropout_rate=0.0)
PATTERNS = ['token_embedder/.*', 'encoder/.*', '.*_norm/scale']


def paths(tree):
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def is_frozen(path):
  return path.startswith(('token_embedder', 'encoder/')) or '_norm/' in path


@pytest.mark.slow
def test_frozen_parameters_keep_every_bit_and_take_no_gradient():
  optimizer = training.freeze(
    training.Optimizer(optax.sgd(0.5), training.constant(0.5)), PATTERNS
  )
  params = training.init_train_state(CONFIG, optimizer).params
  # -0.0 + 0.0 is +0.0: equal, but not the same bits.
  params['encoder']['encoder_norm']['scale'] = jnp.ones(16).at[3].set(-0.0)
  state = training.init_train_state(CONFIG, optimizer, params=params)
  step = training.make_train_step(
    CONFIG,
    optimizer,
    objective=training.Objective(),
  )
  state, metrics = step(state, training_cases.batch(0))
  before, after = paths(params), paths(state.params)
  assert any(map(is_frozen, before)) and not all(map(is_frozen, before))
  squares = 0.0
  for path, old in before.items():
    if is_frozen(path):
      assert np.asarray(old).tobytes() == np.asarray(after[path]).tobytes()
    else:
      moved = np.asarray(old) - np.asarray(after[path])
      assert moved.any(), f'{path} was not trained'
      squares += (moved.astype(np.float64) ** 2).sum()
  np.testing.assert_allclose(
    metrics.gradient_norm, 2 * np.sqrt(squares), rtol=1e-4
  )


@pytest.mark.parametrize(
  'optimizer',
  [
    training.adamw(0.1, 0.5, clip_global_norm=1.0),
    training.adafactor(0.1, weight_decay=0.5, clip_global_norm=1.0),
  ],
)
def test_no_slots_no_decay_and_no_share_in_the_clipped_norm(optimizer):
  params = {
    'encoder': {'kernel': jnp.ones((3, 2)), 'scale': jnp.ones(2)},
    'head': {'kernel': jnp.ones((2, 2))},
  }
  gradients = jax.tree.map(jnp.ones_like, params)
  gradients['encoder']['kernel'] *= 1e6
  transformation = training.freeze(optimizer, ['encoder/.*']).transformation
  state = jax.jit(transformation.init)(params)
  slots = paths(state)
  assert not [path for path in slots if 'encoder' in path]
  assert [path for path in slots if 'head' in path]
  updates, _ = jax.jit(transformation.update)(gradients, state, params)
  assert not any(leaf.any() for leaf in jax.tree.leaves(updates['encoder']))
  # The head moves as if there were nothing else.
  alone = {'head': params['head']}
  plain = optimizer.transformation
  expected, _ = jax.jit(
    lambda gradients: plain.update(gradients, plain.init(alone), alone)
  )({'head': gradients['head']})
  np.testing.assert_allclose(
    updates['head']['kernel'], expected['head']['kernel'], rtol=1e-6
  )


def test_patterns_match_whole_paths():
  params = {
    'encoder': {'kernel': jnp.ones(1)},
    'decoder': {'encoder_decoder_attention': {'kernel': jnp.ones(1)}},
  }
  optimizer = training.freeze(training.adamw(), ['encoder/.*'])
  slots = paths(optimizer.transformation.init(params))
  assert any('encoder_decoder_attention' in path for path in slots)
  plain = training.adamw()
  assert training.freeze(plain, []) is plain


@pytest.mark.parametrize(
  ('patterns', 'message'),
  [
    (['encoder'], "matches 'encoder' as a whole; paths look like .*scale"),
    (['encoder/.*', 'decoder/layer_0/.*'], 'decoder/layer_0'),
    (['.*'], 'freeze all 43 parameters: nothing would be trained'),
  ],
)
def test_patterns_that_do_not_fit_the_parameters_are_named(patterns, message):
  optimizer = training.freeze(training.adafactor(), patterns)
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(lambda: training.init_train_state(CONFIG, optimizer))


def test_bad_patterns_are_named():
  with pytest.raises(ValueError, match=r"write \['encoder/\.\*'\]"):
    training.freeze(training.adamw(), 'encoder/.*')
  with pytest.raises(ValueError, match=r"'\(encoder' in patterns is not"):
    training.freeze(training.adamw(), ['(encoder'])
  with pytest.raises(ValueError, match='3 in patterns is not'):
    training.freeze(training.adamw(), [3])
  with pytest.raises(ValueError, match='in one call of freeze'):
    training.freeze(training.freeze(training.adamw(), ['a']), ['b'])
