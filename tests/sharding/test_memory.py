"""Bytes worked out from shapes are those of real arrays."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from cases import training_cases

from calm_jax import costs, decoding, model, sharding, training
from calm_jax.sharding import memory
from calm_jax.training import memory_plan

CONFIG = training_cases.CONFIG
KEY = jax.random.key(0)


def mesh_of(data, models=1):
  """A mesh of any size: nothing is ever put on it."""
  device = jax.devices()[0]
  return jax.sharding.Mesh(
    np.full((data, models), device), (sharding.DATA, sharding.MODEL)
  )


def gigabytes(text, name):
  (found,) = re.findall(rf'^  {re.escape(name)} +([\d.]+) GB', text, re.M)
  return float(found)


def size_of(tree):
  leaves = jax.tree.leaves(tree)
  return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def test_one_device_holds_what_training_makes():
  optimizer = training.adamw(0.1)
  config = dataclasses.replace(CONFIG, num_decoder_layers=1)
  state = training.init_train_state(config, optimizer)
  assert memory.bytes_per_device(state.params) == size_of(state.params)
  text = memory_plan.describe_training(
    config, optimizer, mesh=None, partitioning='data_parallel', batch_size=8
  )
  for name, tree in (
    ('parameters', state.params),
    ('gradients', state.params),
    ('optimizer state', state.opt_state),
  ):
    assert gigabytes(text, name) == pytest.approx(size_of(tree) / 1e9, abs=1e-4)
  assert 'activations of 8 rows' in text and 'mesh: none' in text


@pytest.mark.parametrize('partitioning', ['data_parallel', 'fsdp'])
def test_large_models_are_planned_without_being_made(partitioning):
  """Of a width that fits nowhere; Adam keeps two numbers for each."""
  config = dataclasses.replace(
    model.T5Config.named('t5_v1_1_xxl'),
    embed_dim=2**16,
    mlp_dim=2**18,
    num_encoder_layers=1,
    num_decoder_layers=2,
  )
  text = memory_plan.describe_training(
    config,
    training.adamw(0.1),
    mesh=mesh_of(16, 4),
    partitioning=partitioning,
    batch_size=32,
  )
  shapes = jax.eval_shape(lambda key: model.init_params(config, key), KEY)
  whole = sum(leaf.size for leaf in jax.tree.leaves(shapes)) * 4 / 1e9
  parts = 64 if partitioning == 'fsdp' else 4
  params = gigabytes(text, 'parameters')
  # Norms, which are whole on every device, are small.
  assert whole / parts <= params < 1.02 * whole / parts
  assert gigabytes(text, 'optimizer state') == pytest.approx(
    2 * params, rel=1e-3
  )
  total = gigabytes(text, 'in all')
  assert total == pytest.approx(4 * params, rel=1e-3)
  assert 'mesh: data=16 x model=4 over 64 x cpu' in text
  assert 'activations of 2 rows' in text
  # The sharding of every parameter.
  assert text.count('/kernel ') == sum(
    'kernel' in sharding.path_name(path)
    for path, _ in jax.tree_util.tree_leaves_with_path(shapes)
  )


def test_decoding_holds_what_a_decode_starts_with():
  config = dataclasses.replace(
    CONFIG, dtype='bfloat16', dropout_rate=0.0, num_decoder_layers=1
  )
  decoder = model.as_layered_decoder(config)
  sizes = dict(batch_size=300, input_length=70, target_length=90)

  def start(inputs):
    params = model.init_params(config, KEY)
    state = decoding.start(
      decoding.bind(decoder, params),
      inputs,
      max_length=sizes['target_length'],
    )
    return state.carry.cache

  cache = jax.eval_shape(
    start, np.full((sizes['batch_size'], sizes['input_length']), 2, np.int32)
  )
  text = costs.describe_decoding_memory(config, **sizes)
  self_size = size_of((cache.self_key, cache.self_value)) / 1e9
  cross_size = size_of((cache.cross_key, cache.cross_value)) / 1e9
  assert gigabytes(text, 'self-attention K/V') == round(self_size, 4) > 0
  assert gigabytes(text, 'cross-attention K/V') == round(cross_size, 4) > 0
  assert 'parameters (bfloat16)' in text
  # Shared by 3 x 2 devices: rows over data, heads over model.
  shared = costs.describe_decoding_memory(config, mesh=mesh_of(3, 2), **sizes)
  assert gigabytes(shared, 'self-attention K/V') == pytest.approx(
    self_size / 6, abs=1e-4
  )
  assert '100 requests per device' in shared


def test_decoding_parameters_are_counted_in_their_dtype():
  config = model.T5Config.named(
    't5_v1_1_large',
    dtype='bfloat16',
    num_encoder_layers=1,
    num_decoder_layers=2,
  )
  text = costs.describe_decoding_memory(
    config, batch_size=1, input_length=8, target_length=8
  )
  shapes = jax.eval_shape(
    lambda key: model.as_layered_decoder(config).prepare(
      model.init_params(config, key)
    ),
    KEY,
  )
  size = sum(
    leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes)
  )
  assert gigabytes(text, 'parameters (bfloat16)') == pytest.approx(
    size / 1e9, rel=1e-4
  )


def test_a_batch_that_devices_cannot_share_is_named():
  with pytest.raises(ValueError, match='cannot share a batch of 6'):
    costs.describe_decoding_memory(
      CONFIG, mesh=mesh_of(4), batch_size=6, input_length=8, target_length=8
    )


def test_what_does_not_fit_is_said(monkeypatch):
  class Small:
    def memory_stats(self):
      return {'bytes_limit': 10**6}

  monkeypatch.setattr(jax, 'local_devices', lambda: [Small()])
  text = memory_plan.describe_training(
    model.T5Config.named('t5_v1_1_small'),
    training.adamw(0.1),
    mesh=None,
    partitioning='data_parallel',
    batch_size=1,
  )
  assert 'GB of 0.0 GB: it does not fit' in text
