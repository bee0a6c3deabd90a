"""Training adapters for the exits of a frozen model, and where they lie."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import training_cases

from calm_jax import (
  checkpoints,
  decoding,
  exits,
  model,
  records,
  runs,
  training,
)
from calm_jax.exit_adapters import ExitAdapters
from calm_jax.exit_layers import ExitLayers
from calm_jax.training import exit_adapter_losses
from calm_jax.training import step as step_lib

CONFIG = dataclasses.replace(
  training_cases.CONFIG, dropout_rate=0.0, num_decoder_layers=3
)
# One object for all runs, so that each step is compiled once.
OPTIMIZER = training.adamw(0.01)
T = 8


@pytest.fixture(scope='module')
def params():
  return training_cases.random_params(CONFIG)


@pytest.fixture(scope='module')
def batch():
  return training_cases.batch(0, rows=16)


def train(params, model_dir, batch, num_steps=60, **changes):
  return training.train(
    training.exit_adapter_stage(
      CONFIG, params, OPTIMIZER, **{'rank': 4, **changes}
    ),
    lambda skip: itertools.repeat(batch),
    plan=training.Plan(num_steps=num_steps, log_every=20),
    model_dir=training.exit_adapter_directory(model_dir),
  )


@pytest.mark.slow
def test_exits_agree_more_and_the_model_is_what_it_was(tmp_path, params, batch):
  """Through the files of a run; bit by bit for the model."""
  checkpoints.save(tmp_path, 7, params=params, config=CONFIG)
  fingerprint = checkpoints.parameter_fingerprint(params)
  before = jax.tree.map(np.array, params)
  train(params, tmp_path, batch)
  jax.tree.map(np.testing.assert_array_equal, before, params)
  assert checkpoints.parameter_fingerprint(params) == fingerprint
  adapters = runs.load_exit_adapters(tmp_path)
  assert np.shape(adapters.up) == (2, 4, CONFIG.embed_dim)
  far, near = (
    training.evaluate_exit_adapters(CONFIG, params, these, [batch]).rates()
    for these in (untrained(adapters), adapters)
  )
  assert (near[0] < 0.7 * far[0]).all() and (near[1] >= far[1]).all()
  assert (near[1] > far[1] + 0.05).any()


@pytest.mark.slow
def test_trained_on_its_own_outputs_a_model_leaves_early_and_near(
  tmp_path, params, batch
):
  """At full depth its own tokens, and early ones nearer to them."""
  inputs = batch['encoder_input_tokens']
  bound = decoding.bind(model.as_layered_decoder(CONFIG), params)
  full = decoding.generate(bound, inputs, max_length=T)
  tokens = np.asarray(full.tokens)
  own_outputs = {
    'encoder_input_tokens': inputs,
    'decoder_target_tokens': tokens,
    'decoder_input_tokens': np.pad(tokens, ((0, 0), (1, 0)))[:, :-1],
    'decoder_loss_weights': np.asarray(full.exit_layers > 0, np.float32),
  }
  checkpoints.save(tmp_path, 7, params=params, config=CONFIG)
  train(params, tmp_path, own_outputs)
  adapters = runs.load_exit_adapters(tmp_path)
  right = []
  for these, threshold in (
    (adapters, 1.0),
    (untrained(adapters), 0.0),
    (adapters, 0.0),
  ):
    policy = decoding.ComputePolicy(
      exit_rule=exits.ConfidenceExit(exits.SoftmaxMargin(), threshold),
      cache_fill=decoding.CatchUp((2,)),
      readout=decoding.AdaptedVocabulary(these),
    )
    result = decoding.generate(bound, inputs, policy=policy, max_length=T)
    right.append(np.asarray(result.tokens) == tokens)
  assert right[0].all()
  assert right[2].mean() > right[1].mean() + 0.05


def untrained(adapters):
  """Returns adapters of the same shapes that change nothing."""
  ones, zeros = np.ones_like(adapters.scale), 0.0 * adapters.up
  return dataclasses.replace(adapters, scale=ones, up=zeros)


def test_gradients_are_those_of_the_definition(params, batch):
  """All exits at once, by JAX, from KL(last || exit) per token."""
  stage = training.exit_adapter_stage(CONFIG, params, OPTIMIZER, rank=4)
  rng = np.random.default_rng(1)
  adapters = jax.tree.map(
    lambda leaf: leaf + rng.normal(size=leaf.shape).astype(np.float32) / 9.0,
    training.exit_adapters_of(stage.init(None).params),
  )
  weights = batch['decoder_loss_weights']

  def loss(adapters):
    states = step_lib.batch_states(CONFIG, params, batch)
    last = jax.nn.softmax(model.output_logits(CONFIG, params, states[-1]))
    total = 0.0
    for number in range(2):
      hidden = adapters.of_exit(states[number], number)
      logits = model.output_logits(CONFIG, params, hidden)
      kl = last * (jnp.log(last) - jax.nn.log_softmax(logits))
      total += (kl.sum(-1) * weights).sum() / weights.sum() / 2.0
    return total

  expected, expected_gradient = jax.jit(jax.value_and_grad(loss))(adapters)
  found, gradient = jax.jit(
    lambda adapters: exit_adapter_losses.agreement_and_gradients(
      CONFIG, params, adapters, batch
    )
  )(adapters)
  np.testing.assert_allclose(found.rates()[0].mean(), expected, rtol=1e-4)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6),
    gradient,
    expected_gradient,
  )
  assert all(np.abs(leaf).max() > 1e-4 for leaf in jax.tree.leaves(gradient))


@pytest.mark.slow
def test_a_feed_forward_layer_is_trained_and_loaded(tmp_path, params, batch):
  """From the identity, through the files; no other size goes on with it."""
  kind = dict(rank=None, feed_forward=8)
  stage = training.exit_adapter_stage(CONFIG, params, OPTIMIZER, **kind)
  first = training.exit_adapters_of(stage.init(None).params)
  states = np.float32(np.random.default_rng(0).normal(size=(2, 3, 16)) * 50.0)
  for layer in range(3):
    np.testing.assert_array_equal(first(states, layer), states)
  checkpoints.save(tmp_path, 7, params=params, config=CONFIG)
  train(params, tmp_path, batch, num_steps=40, **kind)
  layers = runs.load_exit_adapters(tmp_path)
  assert isinstance(layers, ExitLayers) and layers.hidden_units == 8
  assert (layers.out != 0.0).all() and (layers.gates != first.gates).any()
  path = tmp_path / 'exit_adapters' / 'train_log.jsonl'
  before, after = (
    row['exit_losses']
    for row in records.read_jsonl(path)
    if row['kind'] == 'train'
  )
  assert (np.array(after) < 0.95 * np.array(before)).all()
  for changes, words in (
    (dict(rank=None, feed_forward=4), 'feed_forward: expected 4, found 8'),
    (dict(rank=None), 'exit_adapter_feed_forward: expected None, found 8'),
  ):
    with pytest.raises(ValueError, match=words):
      train(params, tmp_path, batch, **changes)


@pytest.mark.slow
def test_a_scale_alone_is_trained_and_goes_on(tmp_path, params, batch):
  checkpoints.save(tmp_path, 7, params=params, config=CONFIG)
  train(params, tmp_path, batch, num_steps=2, rank=None)
  result = train(params, tmp_path, batch, num_steps=4, rank=None)
  assert result.step == 4
  adapters = runs.load_exit_adapters(tmp_path)
  assert (adapters.rank, adapters.products) == (0, 1)
  assert (adapters.scale != 1.0).any()
  with pytest.raises(ValueError, match='exit_adapter_rank: expected'):
    train(params, tmp_path, batch, num_steps=4)


@pytest.mark.slow
def test_adapters_of_another_model_or_none_are_refused(tmp_path, params, batch):
  checkpoints.save(tmp_path, 7, params=params, config=CONFIG)
  with pytest.raises(
    FileNotFoundError, match='no set of exit adapters in .*; run calm_jax.cli'
  ):
    runs.load_exit_adapters(tmp_path)
  train(params, tmp_path, batch, num_steps=1)
  with pytest.raises(ValueError, match='exit_adapters is no classifier: it'):
    runs.load_classifier(tmp_path, name='exit_adapters')
  other = jax.tree.map(lambda leaf: leaf * 1.01, params)
  with pytest.raises(ValueError, match='backbone_parameters: expected'):
    train(other, tmp_path, batch)
  checkpoints.save(tmp_path, 8, params=other, config=CONFIG)
  with pytest.raises(
    ValueError, match='the set of exit adapters in .* was trained for param'
  ):
    runs.load_exit_adapters(tmp_path)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (dict(rank=0), 'rank of exit adapters 0 must be a whole number at least 1'),
    (dict(rank=2.5), 'rank of exit adapters 2.5'),
    (
      dict(rank=None, feed_forward=0),
      r'feed_forward of exit adapters \(None without it\) 0 must be a whole',
    ),
    (
      dict(feed_forward=8),
      'rank 16 and feed_forward 8 .*: give rank=None beside feed_forward',
    ),
  ],
)
def test_bad_arguments_are_named(params, changes, message):
  with pytest.raises(ValueError, match=message):
    training.exit_adapter_stage(CONFIG, params, OPTIMIZER, **changes)


def test_what_has_no_exits_or_tokens_is_named(params):
  one = dataclasses.replace(CONFIG, num_decoder_layers=1)
  with pytest.raises(ValueError, match='at least 2 decoder layers'):
    training.exit_adapter_stage(one, params, OPTIMIZER)
  without = ExitAdapters.identity(3, CONFIG.embed_dim)
  with pytest.raises(ValueError, match='the 0 batches that exit adapters'):
    training.evaluate_exit_adapters(CONFIG, params, without, [])
