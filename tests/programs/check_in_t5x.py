"""Checks against T5X itself, in both directions; not part of the tests.

T5X cannot be installed from an index. With a checkout of it (seen to work:
github.com/google-research/t5x at cc342d4, April 2026) and the packages
jestimator and cached-property beside the extras of setup.py:

  PYTHONPATH=.:tests:T5X_CHECKOUT \
    .venv/bin/python tests/programs/check_in_t5x.py

T5X initialises its own tiny models (layers apart and stacked) and saves them,
legacy and Orbax; calm_jax has to read the same values. calm_jax writes every
form; T5X has to restore the same values for inference and, the optimizer from
scratch, for training.
"""

import pathlib
import sys
import tempfile
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import pjit

from calm_jax import checkpoints
from calm_jax.checkpoints import parameter_names

# T5X imports airio, which is on no index either, for the types of its data.
_airio = types.ModuleType('airio.core')
_airio.__getattr__ = lambda name: type(name, (), {})
sys.modules['airio'] = types.ModuleType('airio')
sys.modules['airio'].core = sys.modules['airio.core'] = _airio
# jestimator, which T5X imports for one optimizer, knows an older JAX.
pjit.PartitionSpec = jax.sharding.PartitionSpec

from t5x import adafactor, partitioning, train_state
from t5x import checkpoints as t5x_checkpoints
from t5x.examples.scalable_t5 import network as stacked_network
from t5x.examples.t5 import network

SIZES = dict(
  vocab_size=24,
  emb_dim=8,
  num_heads=2,
  num_encoder_layers=2,
  num_decoder_layers=3,
  head_dim=4,
  mlp_dim=12,
)
VARIANTS = {
  'v1_1': dict(mlp_activations=('gelu', 'linear')),
  'v1_0': dict(mlp_activations=('relu',), logits_via_embedding=True),
}


def variables_of(module):
  """Returns T5X's initial variables, the tables of positions made equal.

  With scan_layers every layer draws its own table, which is no T5.
  """
  tokens = jnp.ones((1, 4), jnp.int32)
  variables = jax.jit(module.init, static_argnames='enable_dropout')(
    jax.random.key(0), tokens, tokens, tokens, enable_dropout=False
  )
  params = parameter_names.flattened(variables['params'])
  for name, values in params.items():
    if name.endswith('rel_embedding') and values.ndim == 3:
      params[name] = jnp.repeat(values[:, :1], values.shape[1], axis=1)
  return {**variables, 'params': parameter_names.nested(params)}


def assert_equal(found, expected, what):
  found, expected = map(parameter_names.flattened, (found, expected))
  assert found.keys() == expected.keys(), what
  for name, values in expected.items():
    np.testing.assert_array_equal(found[name], values, err_msg=name)
  print(f'ok: {what}, {len(expected)} parameters', flush=True)


def states(variables):
  """Returns T5X's states for inference and for training."""
  optimizer = adafactor.Adafactor(
    learning_rate=1e-3,
    logical_factor_rules=adafactor.standard_logical_factor_rules(),
  )
  return (
    train_state.InferenceState.create(variables),
    train_state.FlaxOptimTrainState.create(optimizer, variables),
  )


def check(variant, folder, stacked):
  module = stacked_network if stacked else network
  options = dict(SIZES, **VARIANTS[variant])
  variables = variables_of(module.Transformer(module.T5Config(**options)))
  what = f'{variant}, {"stacked" if stacked else "layers apart"}'
  inference, training = states(variables)
  partitioner = partitioning.PjitPartitioner(num_partitions=1)
  with_step = training.replace_step(jnp.int32(5))
  target = variables['params']

  saved = folder / 't5x'
  t5x_checkpoints.Checkpointer(with_step, partitioner, str(saved)).save(
    with_step
  )
  orbax = folder / 'orbax'
  orbax.mkdir(parents=True)
  manager = t5x_checkpoints.OrbaxCheckpointManagerInterface(
    str(orbax), with_step, partitioner
  )
  manager.save(with_step)
  manager.close()
  for place, form in ((saved, 't5x'), (orbax, 't5x_orbax')):
    opened = checkpoints.open_checkpoint(place)
    assert opened.format == form and opened.step == 5
    tensors = opened.tensors
    if stacked:
      tensors = parameter_names.to_stacked(opened.config, tensors)
    found = {name: tensor.read() for name, tensor in tensors.items()}
    assert_equal(
      parameter_names.nested(found), target, f'{what}: calm_jax reads {form}'
    )

  # The values doubled, so that none of T5X's own can be taken for them.
  opened = checkpoints.open_checkpoint(saved)
  doubled = checkpoints.from_params(
    parameter_names.nested(
      {name: 2 * tensor.read() for name, tensor in opened.tensors.items()}
    ),
    opened.config,
    step=7,
  )
  expected = jax.tree.map(lambda values: 2 * values, target)
  forms = ('t5x', 't5x_orbax') + (() if stacked else ('calm_jax',))
  paths = {
    form: checkpoints.convert(
      doubled,
      folder / f'ours_{form}',
      checkpoints.Target(format=form, stacked=stacked),
    ).path
    for form in forms
  }
  if not stacked:
    paths['calm_jax of training'] = save_as_training_does(
      folder / 'run', expected, opened.config
    )
  for form, path in paths.items():
    for state, kind in ((inference, 'inference'), (training, 'training')):
      for reader in ('Checkpointer', 'OrbaxCheckpointManagerInterface'):
        # The legacy reader reads no Orbax; the new one reads both.
        if reader == 'Checkpointer' and form != 't5x':
          continue
        restorer = getattr(t5x_checkpoints, reader)
        directory = str(pathlib.Path(path).parent)
        if reader == 'Checkpointer':
          restorer = restorer(state, partitioner, directory)
        else:
          restorer = restorer(directory, state, partitioner)
        fallback = state.state_dict() if kind == 'training' else None
        restored = restorer.restore(path=path, fallback_state=fallback)
        assert int(restored.step) == 7
        assert_equal(
          restored.params,
          expected,
          f'{what}: {reader} restores our {form} for {kind}',
        )


def save_as_training_does(directory, params, config):
  """Writes a checkpoint with our optimizer and random numbers in it."""
  return checkpoints.save(
    directory,
    7,
    params=params,
    config=config,
    train_state={
      'step': jnp.int32(7),
      'rng': jax.random.key_data(jax.random.key(0)),
      'optimizer': optax.adamw(1e-3).init(params),
    },
  )


def main():
  with tempfile.TemporaryDirectory() as folder:
    for variant in VARIANTS:
      for stacked in (False, True):
        check(variant, pathlib.Path(folder) / f'{variant}_{stacked}', stacked)


if __name__ == '__main__':
  main()
