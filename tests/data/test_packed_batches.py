"""Padded, unpadded and packed rows: the same loss per exit and gradients.

The official release fails this: it corrupts the padding mask.
"""

import dataclasses

import jax
import numpy as np
import pytest
from cases import training_cases

from calm_jax import model, training
from calm_jax.data import packing
from calm_jax.training import step as step_lib

CONFIG = dataclasses.replace(training_cases.CONFIG, dropout_rate=0.0)
SETTINGS = training.LossSettings(training.linear_weights(2), z_loss=0.01)
RNG = np.random.default_rng(3)
# Source and target lengths of three examples; two are alike, to compile less.
EXAMPLES = [
  (RNG.integers(2, 16, source), RNG.integers(2, 16, target))
  for source, target in ((3, 2), (2, 4), (3, 2))
]


def loss_and_gradient(params, batch):
  # On the host, where arithmetic compiles nothing.
  return jax.device_get(_loss_and_gradient(params, batch))


@jax.jit
def _loss_and_gradient(params, batch):
  def loss(params):
    return training.multi_exit_loss(
      step_lib.logits_fn(CONFIG),
      params,
      step_lib.batch_states(CONFIG, params, batch),
      targets=batch['decoder_target_tokens'],
      weights=batch['decoder_loss_weights'],
      settings=SETTINGS,
    )

  return jax.value_and_grad(loss, has_aux=True)(params)


def make_batch(rows, source_length, target_length):
  """Packs lists of examples into rows; one example each means padding only."""
  arrays = {
    key: np.zeros((len(rows), length), np.int32)
    for key, length in [
      ('encoder_input_tokens', source_length),
      ('encoder_segment_ids', source_length),
      ('decoder_input_tokens', target_length),
      ('decoder_target_tokens', target_length),
      ('decoder_segment_ids', target_length),
    ]
  }
  for row, examples in enumerate(rows):
    source = target = 0
    for segment, (inputs, targets) in enumerate(examples, start=1):
      here = (row, slice(source, source + len(inputs)))
      arrays['encoder_input_tokens'][here] = inputs
      arrays['encoder_segment_ids'][here] = segment
      here = (row, slice(target, target + len(targets)))
      arrays['decoder_target_tokens'][here] = targets
      arrays['decoder_input_tokens'][here] = [0, *targets[:-1]]
      arrays['decoder_segment_ids'][here] = segment
      source, target = source + len(inputs), target + len(targets)
  arrays['decoder_loss_weights'] = (arrays['decoder_target_tokens'] > 0).astype(
    np.float32
  )
  return step_lib.check_batch(arrays, CONFIG)


def unpacked(batch):
  return {key: batch[key] for key in step_lib.BATCH_KEYS}


def assert_close(got, want):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
    got,
    want,
  )


@pytest.fixture(scope='module')
def params():
  return training_cases.random_params(CONFIG)


@pytest.fixture(scope='module')
def packed():
  return make_batch([EXAMPLES[:2], EXAMPLES[2:]], 6, 7)


@pytest.mark.slow
def test_padded_unpadded_and_packed_rows_are_the_same_to_training(
  params, packed
):
  padded = unpacked(make_batch([[example] for example in EXAMPLES], 9, 11))
  (loss, metrics), gradients = loss_and_gradient(params, padded)
  assert_close(loss_and_gradient(params, packed), ((loss, metrics), gradients))
  # One by one and without padding, weighted by their numbers of tokens.
  total, tokens = None, 0.0
  for inputs, targets in EXAMPLES:
    batch = make_batch([[(inputs, targets)]], len(inputs), len(targets))
    (loss, metrics), gradients = loss_and_gradient(params, unpacked(batch))
    one = (loss, metrics.losses, gradients)
    if total is None:
      total = jax.tree.map(np.zeros_like, one)
    count = float(metrics.num_tokens)
    total = jax.tree.map(lambda old, leaf, n=count: old + n * leaf, total, one)
    tokens += count
  (loss, metrics), gradients = loss_and_gradient(params, packed)
  assert metrics.num_tokens == tokens
  assert_close(
    (loss, metrics.losses, gradients),
    jax.tree.map(lambda leaf: leaf / tokens, total),
  )


def test_segments_matter_but_not_their_numbers(params, packed):
  (_, metrics), _ = loss_and_gradient(params, packed)
  renumbered = {
    key: np.where(value == 2, 7, value) if key.endswith('ids') else value
    for key, value in packed.items()
  }
  (_, same), _ = loss_and_gradient(params, renumbered)
  np.testing.assert_array_equal(same.losses, metrics.losses)
  for ids in packing.SEGMENT_KEYS:
    merged = {**packed, ids: np.minimum(packed[ids], 1)}
    (_, other), _ = loss_and_gradient(params, merged)
    assert (np.abs(other.losses - metrics.losses) > 1e-3).all(), ids


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (dict(decoder_segment_ids=None), 'lacks decoder_segment_ids'),
    (dict(encoder_segment_ids=None), 'lacks encoder_segment_ids'),
    (
      dict(encoder_segment_ids=np.ones((2, 7), np.int32)),
      r'shape of encoder_input_tokens, \(2, 6\), got \(2, 7\)',
    ),
    (
      dict(
        encoder_segment_ids=np.array([[1, 1, 1, 2, 2, 0], [1, 2, 1, 0, 0, 0]])
      ),
      r'encoder_segment_ids of row 1 are \[1, 2, 1, 0, 0, 0\]',
    ),
    (
      dict(encoder_segment_ids=np.array([[1, 1, 0, 2, 2, 0]] * 2)),
      'in one piece',
    ),
    (
      dict(encoder_segment_ids=np.array([[-1, 1, 1, 2, 2, 0]] * 2)),
      'ids >= 1',
    ),
    (
      dict(decoder_segment_ids=np.array([[1, 1, 2, 2, 2, 0, 0]] * 2)),
      'which means padding',
    ),
  ],
)
def test_bad_segment_ids_are_named(packed, change, message):
  batch = {**packed, **change}
  batch = {key: value for key, value in batch.items() if value is not None}
  with pytest.raises(ValueError, match=message):
    step_lib.check_batch(batch, CONFIG)


def test_the_model_wants_both_ids(params, packed):
  tokens = packed['encoder_input_tokens'], packed['decoder_input_tokens']
  for ids in packing.SEGMENT_KEYS:
    with pytest.raises(ValueError, match='must be given with the other'):
      model.layer_states(CONFIG, params, *tokens, **{ids: packed[ids]})
  with pytest.raises(ValueError, match=r'shape \(2, 7\) of decoder_input'):
    model.layer_states(
      CONFIG,
      params,
      *tokens,
      encoder_segment_ids=packed['encoder_segment_ids'],
      decoder_segment_ids=packed['encoder_segment_ids'],
    )
