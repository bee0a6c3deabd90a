"""TensorFlow never takes the accelerator, whatever this machine has."""

import pytest

pytest.importorskip('seqio')

from calm_jax.data.seqio import tensorflow_setup


class Config:
  """In place of tf.config: devices that may have been taken already."""

  def __init__(self, taken=()):
    self.visible = {kind: [f'{kind}:0'] for kind in ('CPU', 'GPU', 'TPU')}
    self.taken = taken

  def set_visible_devices(self, devices, kind):
    if self.taken:
      raise RuntimeError('Visible devices cannot be modified')
    self.visible[kind] = devices

  def get_visible_devices(self, kind):
    return self.taken if kind == 'GPU' else ()


@pytest.fixture
def config(monkeypatch):
  def use(config):
    monkeypatch.setattr(tensorflow_setup.tf, 'config', config)
    return config

  return use


def test_gpus_and_tpus_are_hidden(config):
  found = config(Config())
  tensorflow_setup.hide_accelerators()
  assert found.visible == {'CPU': ['CPU:0'], 'GPU': [], 'TPU': []}


def test_an_accelerator_that_is_taken_already_is_an_error(config):
  config(Config(taken=['GPU:0']))
  with pytest.raises(RuntimeError, match='already taken a GPU.*calm_jax.data'):
    tensorflow_setup.hide_accelerators()


def test_they_are_hidden_before_tensorflow_starts():
  """Starting its runtime is what would reserve their memory."""
  source = open(tensorflow_setup.__file__, encoding='utf-8').read()
  start = source.index('tf.zeros(())')
  assert source.index('\n  hide_accelerators()') < start
  logical = tensorflow_setup.tf.config.list_logical_devices()
  assert {device.device_type for device in logical} == {'CPU'}
