"""What holds for every objective, and how they go together."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import objective_cases, training_cases
from cases.objective_cases import CONFIG, LAYERS

from calm_jax import records, training
from calm_jax.training import progress
from calm_jax.training import step as step_lib

PLAIN = training.Objective()
# Parameters move by exactly the gradient.
DESCENT = training.Optimizer(optax.sgd(1.0), training.constant(1.0))


def some(**changes):
  """An objective that draws for the step and for its rows."""
  return training.LayerDropout(
    objective=training.SampledDepth(objective=training.Objective(**changes)),
    max_probability=0.5,
    curriculum_steps=2,
  )


def everything(**changes):
  """All of them around each other."""
  inside = training.SampledDepth(objective=training.Objective(**changes))
  for around in (
    lambda objective: training.SelfDistillation(objective=objective),
    lambda objective: training.LayerDropout(
      objective=objective, max_probability=0.5, curriculum_steps=2
    ),
    lambda objective: training.OwnExits(objective=objective),
    lambda objective: training.PulledStates(objective=objective),
  ):
    inside = around(inside)
  return inside


def assert_close(left, right, **tolerances):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      a, b, **{'rtol': 2e-4, 'atol': 1e-6, **tolerances}
    ),
    left,
    right,
  )


@pytest.mark.slow
@pytest.mark.parametrize('depth', [1, 2])
def test_the_loss_of_a_depth_is_that_of_the_truncated_model(depth):
  _, metrics = objective_cases.value(PLAIN)
  tree = dict(objective_cases.params())
  tree['decoder'] = {
    name: leaf
    for name, leaf in tree['decoder'].items()
    if not name.startswith('layers_') or int(name[7:]) < depth
  }
  loss, truncated = objective_cases.value(
    training.Objective(layer_weights=training.last_layer_weights, z_loss=0.0),
    config=dataclasses.replace(CONFIG, num_decoder_layers=depth),
    tree=tree,
  )
  np.testing.assert_allclose(metrics.losses[depth - 1], loss, rtol=1e-6)
  assert metrics.accuracies[depth - 1] == truncated.accuracies[-1]


@pytest.mark.slow
def test_a_decoder_of_one_layer_has_no_exits_of_its_own():
  tree = dict(objective_cases.params())
  tree['decoder'] = {
    name: leaf
    for name, leaf in tree['decoder'].items()
    if not name.startswith('layers_') or name == 'layers_0'
  }
  plain, own = (
    objective_cases.value(
      objective,
      config=dataclasses.replace(CONFIG, num_decoder_layers=1),
      tree=tree,
    )[0]
    for objective in (PLAIN, training.OwnExits())
  )
  assert plain == own


@pytest.mark.slow
@pytest.mark.parametrize(
  'objective',
  [
    training.LayerDropout(max_probability=0.0),
    training.OwnExits(weight=0.0),
    training.SelfDistillation(weight=0.0),
    training.PulledStates(weight=0.0),
    training.SampledEncoderDepth(weight=0.0),
  ],
  ids=lambda objective: type(objective).__name__,
)
def test_a_weight_of_zero_is_the_plain_objective(objective):
  assert objective_cases.program(objective) == objective_cases.program(PLAIN)


@pytest.mark.slow
def test_a_rotation_of_one_is_the_plain_objective():
  rotated = objective_cases.run(training.RotatedExits(rotation=1))
  assert_close(rotated, objective_cases.run(PLAIN), rtol=1e-6, atol=1e-8)


@pytest.mark.slow
def test_a_step_draws_dropout_as_it_always_did():
  """A run that was begun before there were objectives goes on bit for bit."""
  config = training_cases.CONFIG
  step = training.make_train_step(config, DESCENT, objective=PLAIN)
  state = training.init_train_state(config, DESCENT)
  # A copy: the step donates its state.
  key = jax.random.clone(state.rng)
  params = jax.device_get(state.params)
  _, metrics = step(state, objective_cases.BATCH)

  def loss(params, batch):
    states_rng, logits_rng = jax.random.split(jax.random.fold_in(key, 0))
    return training.multi_exit_loss(
      step_lib.logits_fn(config),
      params,
      step_lib.batch_states(config, params, batch, dropout_rng=states_rng),
      targets=batch['decoder_target_tokens'],
      weights=batch['decoder_loss_weights'],
      settings=PLAIN.settings(config.num_decoder_layers),
      dropout_rng=logits_rng,
    )

  expected, exits = jax.jit(loss)(params, objective_cases.BATCH)
  np.testing.assert_allclose(metrics.loss, expected, rtol=1e-6)
  np.testing.assert_allclose(metrics.exits.losses, exits.losses, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
  'make', [some, pytest.param(everything, marks=pytest.mark.slow)]
)
def test_parts_of_a_batch_draw_what_the_whole_does(make):
  batch = training_cases.batch(3)
  batch['decoder_loss_weights'][::2, 1:] = 0
  results = []
  for parts in (1, 4):
    step = training.make_train_step(
      CONFIG, DESCENT, objective=make(num_microbatches=parts)
    )
    state = training.init_train_state(
      CONFIG, DESCENT, params=objective_cases.params()
    )
    state = dataclasses.replace(state, step=jnp.int32(1))
    state, metrics = step(state, batch)
    results.append((state.params, metrics))
  assert_close(*results, atol=3e-6)


@pytest.mark.slow
@pytest.mark.parametrize('make', [some, everything])
def test_a_resumed_run_draws_what_the_whole_did_and_no_other_goes_on(
  make, tmp_path
):
  def train(name, objective, num_steps):
    stage = training.multi_exit_stage(CONFIG, DESCENT, objective=objective)
    return training.train(
      stage,
      training_cases.batches,
      plan=training.Plan(num_steps=num_steps, log_every=4, max_to_keep=1),
      model_dir=tmp_path / name,
    )

  objective = make()
  whole = train('whole', objective, 4)
  train('parts', objective, 2)
  resumed = train('parts', objective, 4)
  jax.tree.map(np.testing.assert_array_equal, whole.params, resumed.params)
  *_, row = records.read_jsonl(tmp_path / 'whole' / 'train_log.jsonl')
  # Mean over the steps that read the exit; the last is always read.
  assert np.isfinite(row['exit_losses'][-1])
  for other in (
    PLAIN,
    objective.objective,
    training.PulledStates(objective=objective),
    training.LayerDropout(objective=objective.objective, max_probability=0.4),
  ):
    with pytest.raises(ValueError, match='another run: objective: expected'):
      train('parts', other, 4)


def test_means_of_exits_are_over_the_steps_that_read_them():
  nan = float('nan')
  means = progress._means(
    [np.float32([1, nan, nan]), np.float32([4, 2, nan])], np.array([10.0, 5.0])
  )
  np.testing.assert_allclose(means, [2.0, 2.0, nan])


def test_what_a_run_keeps_of_an_objective():
  assert PLAIN.context() == {}
  context = training.PulledStates(
    objective=training.SampledDepth(exit_layers=(1, 3))
  ).context()
  assert json.loads(json.dumps(context)) == context
  assert context['objective']['name'] == 'PulledStates'
  assert context['objective']['objective']['exit_layers'] == [1, 3]


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (
      lambda: training.Objective(layer_weights=(0.5, 0.5, 0.0)),
      'leave out the last layer, 3',
    ),
    (
      lambda: training.OwnExits(
        objective=training.Objective(layer_weights=(1.0, 0.0, 0.0))
      ),
      'leave out the last layer, 3',
    ),
    (lambda: training.SampledDepth(exit_layers=(1, 2)), 'lack the last layer'),
    (lambda: training.SampledDepth(exit_layers=(0, 3)), 'at least 1'),
    (lambda: training.SampledDepth(exit_layers=(3, 9)), 'beyond the 3 layers'),
    (lambda: training.SampledDepth(exit_layers=(3,)), 'none of positive'),
    (lambda: training.SampledDepth(exit_layers=3), 'must be a list'),
    (lambda: training.SampledDepth(sampling='all'), 'sampling must be one of'),
    (lambda: training.SampledEncoderDepth(depths=()), 'depths .* is empty'),
    (lambda: training.SampledEncoderDepth(depths=2), 'depths .* no list'),
    (lambda: training.SampledEncoderDepth(depths=(0,)), 'depth 0 must be'),
    (lambda: training.SampledEncoderDepth(depths=(2, 2)), 'names 2 twice'),
    (lambda: training.SampledEncoderDepth(weight=-1.0), 'weight must be'),
    (lambda: training.RotatedExits(rotation=0), 'rotation 0 must be'),
    (lambda: training.RotatedExits(rotation=1.5), 'rotation 1.5 must be'),
    (lambda: training.LayerDropout(max_probability=1.5), r'in \[0.0, 1.0\]'),
    (
      lambda: training.LayerDropout(max_probability=1.0),
      'below 1, got 1.0: the last layer would be dropped in every row',
    ),
    (lambda: training.LayerDropout(max_probability=1 - 1e-12), 'below 1, got'),
    (lambda: training.LayerDropout(max_probability=-0.1), 'max_probability'),
    (lambda: training.LayerDropout(max_probability='a'), 'max_probability'),
    (lambda: training.LayerDropout(curriculum_steps=0), 'curriculum_steps 0'),
    (lambda: training.OwnExits(weight=-1.0), 'weight must be .* at least 0'),
    (lambda: training.OwnExits(weight=float('inf')), 'weight must be'),
    (lambda: training.OwnExits(lowest_threshold=2), 'lowest_threshold'),
    (
      lambda: training.OwnExits(lowest_threshold=0.5, highest_threshold=0.4),
      r'highest_threshold must be .* in \[0.5, 1.0\]',
    ),
    (lambda: training.SelfDistillation(weight=1.1), 'weight must be'),
    (lambda: training.PulledStates(weight=float('nan')), 'weight must be'),
    (lambda: training.PulledStates(objective=3), 'around an objective such as'),
    (
      lambda: training.RotatedExits(objective=everything()),
      'RotatedExits is around SampledDepth, and both choose',
    ),
    (lambda: training.layer_skip_weights(-1.0), 'scale must be'),
  ],
)
def test_bad_objectives_are_named(make, message):
  with pytest.raises(ValueError, match=message):
    training.multi_exit_stage(CONFIG, DESCENT, objective=make())


def test_a_class_is_no_objective():
  with pytest.raises(TypeError, match='the class OwnExits, written without'):
    training.multi_exit_stage(CONFIG, DESCENT, objective=training.OwnExits)
  with pytest.raises(TypeError, match='the class Objective, written without'):
    training.LayerDropout(objective=training.Objective)


def test_a_mask_of_another_shape_is_named():
  with pytest.raises(ValueError, match=r'layer_mask must be \[B, T, L\]'):
    step_lib.batch_states(
      CONFIG,
      objective_cases.params(),
      objective_cases.BATCH,
      layer_mask=jnp.ones((LAYERS, 8), bool),
    )


def test_evaluation_neither_drops_nor_chooses():
  """It is of the model, whatever it is trained with."""
  metrics = training.make_eval_step(CONFIG)(
    objective_cases.params(), objective_cases.BATCH
  )
  _, plain = objective_cases.value(PLAIN)
  np.testing.assert_allclose(metrics.losses, plain.losses, rtol=1e-6)
