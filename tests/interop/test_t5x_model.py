"""`EarlyExitModel` against T5X's own model around the same network."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tools import t5x_stack

t5x_stack.skip_without('t5x', 'airio', 'jestimator')

import flax
from flax.linen import partitioning as flax_partitioning
from t5x import adafactor, models, train_state
from t5x import decoding as t5x_decoding
from t5x.examples.t5 import network

from calm_jax import decoding, exits, model, training
from calm_jax.interop import t5x as calm_t5x
from calm_jax.interop import t5x_networks

VOCABULARY = types.SimpleNamespace(eos_id=1)
SIZES = dict(
  vocab_size=24,
  emb_dim=8,
  num_heads=2,
  num_encoder_layers=1,
  num_decoder_layers=3,
  head_dim=4,
  mlp_dim=12,
  dropout_rate=0.0,
)
VARIANTS = {
  'v1_1': dict(mlp_activations=('gelu', 'linear')),
  'v1_0': dict(mlp_activations=('relu',), logits_via_embedding=True),
}


def module_of(variant='v1_1'):
  return network.Transformer(network.T5Config(**SIZES, **VARIANTS[variant]))


def theirs_and_ours(variant='v1_1', options=None, **ours):
  arguments = (module_of(variant), VOCABULARY, VOCABULARY, optimizer())
  options = options or {}
  return (
    models.EncoderDecoderModel(*arguments, **options),
    calm_t5x.EarlyExitModel(*arguments, **options, **ours),
  )


def optimizer():
  return adafactor.Adafactor(
    logical_factor_rules=adafactor.standard_logical_factor_rules()
  )


def batch_of(*, packed=False):
  random = np.random.default_rng(0)
  inputs = random.integers(2, 24, (3, 7), dtype=np.int32)
  targets = random.integers(2, 24, (3, 6), dtype=np.int32)
  inputs[1, 4:] = 0
  targets[2, 3:] = 0
  shifted = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
  batch = {
    'encoder_input_tokens': inputs,
    'decoder_target_tokens': targets,
    'decoder_input_tokens': shifted,
    'decoder_loss_weights': (targets > 0).astype(np.float32),
  }
  if packed:
    for side, tokens in (('encoder', inputs), ('decoder', targets)):
      second = np.arange(tokens.shape[1]) >= 3
      segments = np.where(tokens > 0, 1 + second, 0).astype(np.int32)
      batch[f'{side}_segment_ids'] = segments
      batch[f'{side}_positions'] = np.maximum(
        np.arange(tokens.shape[1]) - 3 * second, 0
      ).astype(np.int32) * np.ones_like(tokens)
    shifted[:, 3] = 0
  return jax.tree.map(jnp.asarray, batch)


def variables_of(some_model):
  batch = batch_of()
  return jax.jit(
    lambda key: some_model.get_initial_variables(
      key,
      {name: array.shape for name, array in batch.items()},
      {name: array.dtype for name, array in batch.items()},
    )
  )(jax.random.PRNGKey(3))


@pytest.mark.parametrize(
  'options, variant, packed',
  [
    (dict(z_loss=1e-2), 'v1_1', False),
    (dict(z_loss=1e-2), 'v1_0', True),
    (dict(label_smoothing=0.1, loss_normalizing_factor=7.0), 'v1_1', True),
    (
      dict(loss_normalizing_factor='NUM_REAL_TARGET_TOKENS'),
      'v1_1',
      False,
    ),
    (dict(loss_normalizing_factor='AVERAGE_PER_SEQUENCE'), 'v1_0', False),
  ],
  ids=str,
)
def test_trained_at_the_last_layer_alone_it_is_the_model_of_t5x(
  options, variant, packed
):
  theirs, ours = theirs_and_ours(
    variant, options, layer_weights=training.last_layer_weights
  )
  params = variables_of(theirs)['params']
  batch = batch_of(packed=packed)
  with jax.default_matmul_precision('highest'):
    (expected, their_metrics), their_gradient = jax.jit(
      jax.value_and_grad(
        lambda params: theirs.loss_fn(params, batch, None), has_aux=True
      )
    )(params)
    (found, our_metrics), our_gradient = jax.jit(
      jax.value_and_grad(
        lambda params: ours.loss_fn(params, batch, None), has_aux=True
      )
    )(params)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  jax.tree.map(
    lambda one, other: np.testing.assert_allclose(
      one, other, atol=1e-4, rtol=1e-4
    ),
    our_gradient,
    their_gradient,
  )
  smoothed = 'label_smoothing' in options
  # T5X counts tokens in its accuracy, whatever their weights.
  weighted = options.get('loss_normalizing_factor') == 'AVERAGE_PER_SEQUENCE'
  for name, metric in their_metrics.items():
    if name.startswith('timing') or (smoothed and name not in our_metrics):
      continue
    if weighted and name == 'accuracy':
      continue
    np.testing.assert_allclose(
      our_metrics[name].compute(),
      metric.compute(),
      rtol=1e-4,
      atol=1e-6,
      err_msg=name,
    )


def test_the_loss_weighs_every_exit():
  weights = (0.5, 0.0, 0.5)
  losses = {}
  params = variables_of(theirs_and_ours()[0])['params']
  for name, layer_weights in {
    'first': (1.0, 0.0, 0.0),
    'last': (0.0, 0.0, 1.0),
    'both': weights,
  }.items():
    _, ours = theirs_and_ours(
      layer_weights=lambda _, given=layer_weights: given
    )
    losses[name], metrics = ours.loss_fn(params, batch_of(), None)
  assert losses['first'] != losses['last']
  np.testing.assert_allclose(
    losses['both'], (losses['first'] + losses['last']) / 2, rtol=1e-5
  )
  names = {name for name in metrics if name.startswith('exit_losses/')}
  assert names == {'exit_losses/exit_1', 'exit_losses/exit_3'}


def test_dropout_is_on_when_a_key_is_given():
  config = dict(SIZES, dropout_rate=0.5, **VARIANTS['v1_1'])
  ours = calm_t5x.EarlyExitModel(
    network.Transformer(network.T5Config(**config)),
    VOCABULARY,
    VOCABULARY,
    None,
  )
  params = variables_of(ours)['params']
  keys = (None, jax.random.PRNGKey(0), jax.random.PRNGKey(1))
  losses = {float(ours.loss_fn(params, batch_of(), key)[0]) for key in keys}
  assert len(losses) == 3


def test_logical_axes_reach_optimizer_and_partitioner():
  _, ours = theirs_and_ours()
  variables = variables_of(ours)
  state = train_state.FlaxOptimTrainState.create(ours.optimizer_def, variables)
  axes = flax_partitioning.get_axis_names(variables['params_axes'])
  assert tuple(axes['decoder']['logits_dense']['kernel']) == ('embed', 'vocab')
  assert jax.tree.structure(state.params) == jax.tree.structure(
    variables['params']
  )


def test_the_full_model_says_the_same_tokens_and_scores():
  theirs, ours = theirs_and_ours()
  params = flax.core.unfreeze(variables_of(theirs)['params'])
  # Padding is never said, so that T5X masks nothing of what was said.
  head = params['decoder']['logits_dense']
  head['kernel'] = head['kernel'].at[:, 0].set(0.0)
  batch = batch_of()
  with jax.default_matmul_precision('highest'):
    tokens, _ = theirs.predict_batch_with_aux(params, batch, num_decodes=1)
    found, aux = jax.jit(ours.predict_batch_with_aux)(params, batch)
    # The score of what it said, by T5X's own network.
    said = dict(
      batch,
      decoder_target_tokens=found,
      decoder_input_tokens=np.pad(found, ((0, 0), (1, 0)))[:, :-1],
      decoder_loss_weights=(np.asarray(aux['exit_layers']) > 0).astype(
        np.float32
      ),
    )
    scores = ours.score_batch(params, said)
  np.testing.assert_array_equal(found, tokens)
  np.testing.assert_allclose(aux['scores'], scores, rtol=1e-4, atol=1e-4)
  np.testing.assert_array_equal(
    aux['exit_layers'], np.where(np.asarray(found) > 0, 3, -1)
  )
  assert (np.asarray(aux['confidences']) == -1.0).all()


def test_auxiliary_outputs_are_rectangular_and_of_the_policy():
  policy = decoding.ComputePolicy(exit_rule=exits.FixedExit(2))
  _, ours = theirs_and_ours(policy=policy)
  params = variables_of(ours)['params']
  batch = batch_of()
  tokens, aux = ours.predict_batch_with_aux(params, batch)
  expected = decoding.generate(
    decoding.bind(
      model.as_layered_decoder(t5x_networks.config_of(module_of())), params
    ),
    batch['encoder_input_tokens'],
    policy=policy,
    max_length=6,
  )
  np.testing.assert_array_equal(tokens, expected.tokens)
  np.testing.assert_array_equal(aux['exit_layers'], expected.exit_layers)
  assert set(np.unique(aux['exit_layers'])) <= {-1, 2}
  assert {name: array.shape for name, array in aux.items()} == {
    'scores': (3,),
    'exit_layers': (3, 6),
    'confidences': (3, 6),
  }
  assert all(np.isfinite(array).all() for array in aux.values())


def test_several_sequences_come_with_the_best_one_last():
  _, ours = theirs_and_ours(sampler=decoding.Temperature(1.0))
  params = variables_of(ours)['params']
  options = dict(rng=jax.random.PRNGKey(0), num_decodes=4)
  tokens, aux = ours.predict_batch_with_aux(
    params, batch_of(), return_all_decodes=True, **options
  )
  assert tokens.shape == aux['exit_layers'].shape == (3, 4, 6)
  assert (np.diff(aux['scores'], axis=1) >= 0).all()
  assert len(np.unique(np.asarray(tokens).reshape(12, 6), axis=0)) > 3
  best, best_aux = ours.predict_batch_with_aux(params, batch_of(), **options)
  np.testing.assert_array_equal(best, tokens[:, -1])
  np.testing.assert_array_equal(best_aux['scores'], aux['scores'][:, -1])


def test_a_beam_search_gives_its_best_last():
  sampler = decoding.BeamSearch(num_beams=3, length_penalty=2.0)
  _, ours = theirs_and_ours(sampler=sampler)
  params, batch = variables_of(ours)['params'], batch_of()
  tokens, aux = ours.predict_batch_with_aux(
    params, batch, return_all_decodes=True, num_decodes=3
  )
  expected = decoding.generate(
    decoding.bind(
      model.as_layered_decoder(t5x_networks.config_of(module_of())),
      flax.core.unfreeze(params),
    ),
    batch['encoder_input_tokens'],
    sampler=sampler,
    max_length=6,
    num_samples=3,
  )
  np.testing.assert_array_equal(tokens, expected.tokens[:, ::-1])
  np.testing.assert_array_equal(aux['scores'], expected.scores[:, ::-1])
  best, _ = ours.predict_batch_with_aux(params, batch, num_decodes=3)
  np.testing.assert_array_equal(best, expected.tokens[:, 0])


def test_prompts_are_those_of_t5x():
  arguments = (module_of(), VOCABULARY, VOCABULARY, optimizer())
  theirs = models.EncoderDecoderModel(
    *arguments, decode_fn=t5x_decoding.temperature_sample
  )
  ours = calm_t5x.EarlyExitModel(*arguments)
  params = flax.core.unfreeze(variables_of(theirs)['params'])
  head = params['decoder']['logits_dense']
  head['kernel'] = head['kernel'].at[:, 0].set(0.0)
  batch = batch_of()
  prompts = np.zeros((3, 6), np.int32)
  prompts[0, 1:4] = 5, 9, 1
  prompts[1, 1:2] = 7
  batch['decoder_input_tokens'] = jnp.asarray(prompts)
  with jax.default_matmul_precision('highest'):
    expected, _ = theirs.predict_batch_with_aux(
      params,
      batch,
      rng=jax.random.PRNGKey(0),
      decoder_params=dict(topk=1),
      prompt_with_targets=True,
    )
    tokens, aux = jax.jit(
      lambda batch: ours.predict_batch_with_aux(
        params, batch, prompt_with_targets=True
      )
    )(batch)
  np.testing.assert_array_equal(tokens, expected)
  np.testing.assert_array_equal(tokens[0, :2], [5, 9])
  assert (np.asarray(aux['exit_layers'])[:2, 0] == 3).all()


@pytest.mark.parametrize(
  'options, message',
  [
    (dict(num_decodes=2), 'num_decodes = 2'),
    (dict(decoder_params={'alpha': 0.6}), 'alpha'),
    (
      dict(
        decoder_params={'decode_rng': jax.random.PRNGKey(0)},
        rng=jax.random.PRNGKey(0),
      ),
      'twice',
    ),
  ],
)
def test_what_the_decoder_does_not_do_is_refused(options, message):
  _, ours = theirs_and_ours()
  with pytest.raises(ValueError, match=message):
    ours.predict_batch_with_aux({}, batch_of(), **options)


def test_other_networks_are_refused():
  from t5x.examples.scalable_t5 import network as stacked

  module = stacked.Transformer(stacked.T5Config(**SIZES, **VARIANTS['v1_1']))
  with pytest.raises(ValueError, match='scanned.*convert'):
    t5x_networks.config_of(module)
  with pytest.raises(ValueError, match='lacks'):
    t5x_networks.config_of(object())
  with pytest.raises(ValueError, match='decode_fn'):
    theirs_and_ours(decode_fn=print)
