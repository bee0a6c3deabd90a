import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import training_cases

from calm_jax import model, training
from calm_jax.training import layer_weights, losses


@pytest.mark.parametrize('layers', [1, 2, 8, 12])
def test_weights_follow_equation_6(layers):
  weights = layer_weights.linear_weights(layers)
  total = sum(range(1, layers + 1))
  assert weights == tuple(i / total for i in range(1, layers + 1))
  for builder in (
    layer_weights.uniform_weights,
    layer_weights.last_layer_weights,
  ):
    assert len(builder(layers)) == layers
    assert sum(builder(layers)) == pytest.approx(1.0)
  assert layer_weights.last_layer_weights(layers)[-1] == 1.0


@pytest.mark.parametrize(
  ('weights', 'message'),
  [
    ((1.0,), 'one weight per layer'),
    ((1.0, -1.0), 'finite'),
    ((1.0, float('nan')), 'finite'),
    ((0.0, 0.0), 'all zero'),
  ],
)
def test_bad_layer_weights_are_named(weights, message):
  with pytest.raises(ValueError, match=message):
    layer_weights.check_layer_weights(weights, 2)


@pytest.mark.parametrize(
  'bad', [dict(z_loss=-1.0), dict(z_loss=np.inf), dict(label_smoothing=1.0)]
)
def test_bad_loss_settings_are_named(bad):
  with pytest.raises(ValueError, match=next(iter(bad))):
    losses.LossSettings((1.0,), **bad)


def logits_fn(params, hidden, dropout_rng):
  del dropout_rng
  return jnp.tanh(hidden * params['scale']) @ params['kernel']


def problem(seed, *, layers=3, vocab=11):
  keys = jax.random.split(jax.random.key(seed), 4)
  params = {
    'scale': jax.random.normal(keys[0], (4,)),
    'kernel': jax.random.normal(keys[1], (4, vocab)),
    'unused': jnp.ones((2, 2)),
  }
  states = jax.random.normal(keys[2], (layers, 2, 5, 4))
  targets = jax.random.randint(keys[3], (2, 5), 0, vocab)
  weights = jnp.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]], jnp.float32)
  return params, states, targets, weights


def written_out(params, states, targets, weights, settings):
  """The definition, with all logits at once and plain differentiation."""
  logits = logits_fn(params, states, None)
  log_probabilities = jax.nn.log_softmax(logits)
  vocab = logits.shape[-1]
  smooth = settings.label_smoothing
  wanted = jax.nn.one_hot(targets, vocab)
  wanted = wanted * (1 - smooth) + (1 - wanted) * smooth / (vocab - 1)
  loss = jax.scipy.special.xlogy(wanted, wanted) - wanted * log_probabilities
  loss = loss.sum(-1)
  loss += settings.z_loss * jax.nn.logsumexp(logits, -1) ** 2
  per_exit = (loss * weights).sum((1, 2)) / weights.sum()
  return (per_exit * jnp.array(settings.layer_weights)).sum()


@functools.cache
def compiled(z_loss, label_smoothing):
  """Returns 3 times ours and the definition, with gradients; one per setting.

  From (params, states, targets, weights); gradients are of the first two.
  """
  settings = losses.LossSettings(
    layer_weights.linear_weights(3),
    z_loss=z_loss,
    label_smoothing=label_smoothing,
  )

  def ours(params, states, targets, weights):
    return (
      3.0
      * losses.multi_exit_loss(
        logits_fn,
        params,
        states,
        targets=targets,
        weights=weights,
        settings=settings,
      )[0]
    )

  def definition(*given):
    return 3.0 * written_out(*given, settings)

  return [
    jax.jit(jax.value_and_grad(function, argnums=(0, 1)))
    for function in (ours, definition)
  ]


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('z_loss', [0.0, 0.1])
@pytest.mark.parametrize('label_smoothing', [0.0, 0.2])
def test_value_and_gradient_equal_the_definition(seed, z_loss, label_smoothing):
  given = problem(seed)
  got, want = (of(*given) for of in compiled(z_loss, label_smoothing))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6, rtol=2e-5),
    got,
    want,
  )
  assert not np.any(got[1][1][:, 0, 3:]), 'padding got a gradient'


def test_metrics_are_plain_cross_entropy_and_accuracy():
  params, states, targets, weights = problem(0)
  settings = losses.LossSettings((0.5, 0.25, 0.25), 0.1, 0.3)
  _, metrics = losses.multi_exit_loss(
    logits_fn,
    params,
    states,
    targets=targets,
    weights=weights,
    settings=settings,
  )
  logits = logits_fn(params, states, None)
  gold = jnp.broadcast_to(targets, logits.shape[:-1])[..., None]
  entropy = -jnp.take_along_axis(jax.nn.log_softmax(logits), gold, -1)[..., 0]
  right = (logits.argmax(-1) == targets).astype(jnp.float32)
  for got, values in ((metrics.losses, entropy), (metrics.accuracies, right)):
    want = (values * weights).sum((1, 2)) / weights.sum()
    np.testing.assert_allclose(got, want, rtol=1e-5)
  assert metrics.num_tokens == 7


def test_exits_of_weight_zero_are_left_out():
  params, states, targets, weights = problem(0)

  def loss(layer_weights):
    def function(states):
      return losses.multi_exit_loss(
        logits_fn,
        params,
        states,
        targets=targets,
        weights=weights,
        settings=losses.LossSettings(layer_weights),
      )

    return jax.jit(jax.value_and_grad(function, has_aux=True))

  (_, metrics), gradient = loss((0.0, 0.0, 1.0))(states)
  assert np.isnan(metrics.losses[:2]).all() and np.isfinite(metrics.losses[2])
  assert not gradient[:2].any() and gradient[2].any()
  # A scan of one exit instead of three; XLA counts a loop's body once per trip
  # or once at all, so the number of rows scanned is what is compared.
  text = jax.make_jaxpr(loss((0.0, 0.0, 1.0)))(states).pretty_print()
  assert 'length=1' in text and 'length=3' not in text


def test_a_batch_of_padding_has_loss_zero_and_finite_gradients():
  params, states, targets, weights = problem(0)
  value, gradient = jax.value_and_grad(
    lambda states: losses.multi_exit_loss(
      logits_fn,
      params,
      states,
      targets=targets,
      weights=weights * 0,
      settings=losses.LossSettings(layer_weights.linear_weights(3)),
    )[0]
  )(states)
  assert value == 0 and not gradient.any()


def test_shapes_that_do_not_fit_are_named():
  params, states, targets, weights = problem(0)
  arguments = dict(targets=targets, weights=weights)
  with pytest.raises(ValueError, match='L = 2'):
    losses.multi_exit_loss(
      logits_fn,
      params,
      states,
      **arguments,
      settings=losses.LossSettings(layer_weights.linear_weights(2)),
    )
  with pytest.raises(ValueError, match='weights'):
    losses.multi_exit_loss(
      logits_fn,
      params,
      states,
      targets=targets,
      weights=weights[:, :2],
      settings=losses.LossSettings(layer_weights.linear_weights(3)),
    )


@pytest.mark.slow
def test_padded_and_unpadded_rows_have_the_same_loss_per_exit():
  """The official release fails this: it corrupts the padding mask."""
  config = training_cases.CONFIG
  params = model.init_params(config, jax.random.key(1))
  short = {key: value[:1, :3] for key, value in training_cases.batch(3).items()}
  short['decoder_loss_weights'] = np.ones((1, 3), np.float32)
  padded = {
    key: np.pad(value, ((0, 0), (0, 4))) for key, value in short.items()
  }
  settings = losses.LossSettings(layer_weights.linear_weights(2))

  def per_exit(batch):
    states = model.layer_states(
      config,
      params,
      batch['encoder_input_tokens'],
      batch['decoder_input_tokens'],
    )
    return losses.multi_exit_loss(
      lambda params, hidden, _: model.output_logits(config, params, hidden),
      params,
      states,
      targets=batch['decoder_target_tokens'],
      weights=batch['decoder_loss_weights'],
      settings=settings,
    )[1].losses

  np.testing.assert_allclose(per_exit(short), per_exit(padded), rtol=2e-5)


def test_memory_does_not_grow_with_exits_times_vocabulary():
  batch, length = 4, 16
  config = model.T5Config(
    vocab_size=32128,
    embed_dim=8,
    num_heads=1,
    head_dim=8,
    mlp_dim=8,
    num_encoder_layers=1,
    num_decoder_layers=1,
  )
  params = jax.eval_shape(lambda: model.init_params(config, jax.random.key(0)))
  shape = jax.ShapeDtypeStruct

  def peak(exits):
    settings = losses.LossSettings(layer_weights.linear_weights(exits))

    def loss(params, states, targets, weights):
      return losses.multi_exit_loss(
        lambda params, hidden, _: model.output_logits(config, params, hidden),
        params,
        states,
        targets=targets,
        weights=weights,
        settings=settings,
      )

    compiled = (
      jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
      .lower(
        params,
        shape((exits, batch, length, config.embed_dim), jnp.float32),
        shape((batch, length), jnp.int32),
        shape((batch, length), jnp.float32),
      )
      .compile()
    )
    return compiled.memory_analysis().temp_size_in_bytes

  logits_of_one_exit = batch * length * config.vocab_size * 4
  one = peak(1)
  assert one >= logits_of_one_exit, 'the measure must see the logits'
  assert peak(12) < 1.5 * one


@pytest.mark.slow
def test_twelve_exits_take_at_most_half_more_memory_than_one():
  """A whole training step of a 12-layer model at T5's vocabulary size.

  With all weights but the last zero it is the step of an ordinary T5.
  """
  config = model.T5Config(
    vocab_size=32128,
    embed_dim=32,
    num_heads=2,
    head_dim=16,
    mlp_dim=64,
    num_encoder_layers=1,
    num_decoder_layers=12,
  )
  batch, length = 8, 32
  tokens = jax.ShapeDtypeStruct((batch, length), jnp.int32)
  arrays = dict.fromkeys(training.step.BATCH_KEYS[:3], tokens)
  arrays['decoder_loss_weights'] = jax.ShapeDtypeStruct(
    (batch, length), jnp.float32
  )
  optimizer = training.adafactor()
  state = jax.eval_shape(lambda: training.init_train_state(config, optimizer))

  def peak(weights):
    step = training.make_train_step(
      config, optimizer, objective=training.Objective(layer_weights=weights)
    )
    memory = step.lower(state, arrays).compile().memory_analysis()
    # The state is donated: outputs that alias arguments are counted once.
    return (
      memory.argument_size_in_bytes
      + memory.temp_size_in_bytes
      + memory.output_size_in_bytes
      - memory.alias_size_in_bytes
    )

  one = peak(layer_weights.last_layer_weights(12))
  twelve = peak(layer_weights.linear_weights(12))
  logits = batch * length * config.vocab_size * 4
  assert logits < one, 'the measure must see the logits of one exit'
  assert twelve < 1.5 * one
  assert twelve < 12 * logits, 'logits of all exits are never there at once'
