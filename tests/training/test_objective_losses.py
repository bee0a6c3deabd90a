"""The loss of each objective against what its paper says."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import objective_cases
from cases.objective_cases import BATCH, CONFIG, LAYERS

from calm_jax import model, training
from calm_jax.training import losses
from calm_jax.training.objectives import own_exits, pulled_states, rotated_exits

# Long checks, and twins of cheaper ones: for `scripts/test.sh --all`.
pytestmark = pytest.mark.slow

PLAIN = training.Objective()


def assert_close(left, right, **tolerances):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      a, b, **{'rtol': 2e-4, 'atol': 1e-6, **tolerances}
    ),
    left,
    right,
  )


def last_layer(gradient):
  return gradient['decoder'][f'layers_{LAYERS - 1}']


@pytest.mark.slow
@pytest.mark.parametrize(
  ('sampling', 'exit_layers', 'share', 'run'),
  [
    ('weights', None, 1 / 3, objective_cases.run),
    pytest.param(
      'uniform',
      (1, 2, 3),
      1 / 2,
      objective_cases.value,
      marks=pytest.mark.slow,
    ),
  ],
)
def test_a_sampled_depth_is_right_on_average(sampling, exit_layers, share, run):
  objective = training.SampledDepth(exit_layers=exit_layers, sampling=sampling)
  by_depth = {}
  for step in range(20):
    loss, metrics, *gradient = run(objective, step=step)
    (depth,) = np.flatnonzero(np.isfinite(metrics.losses[:-1]))
    by_depth[int(depth)] = (loss, *gradient)
  assert sorted(by_depth) == [0, 1]
  mean = jax.tree.map(
    lambda a, b: share * a + (1 - share) * b, by_depth[0], by_depth[1]
  )
  loss, _, *gradient = run(PLAIN)
  assert_close(mean, (loss, *gradient))
  # And the depths come as often as that.
  resolved = objective.for_layers(LAYERS)
  drawn = jax.vmap(
    lambda step: resolved.exits(objective_cases.draws(step), LAYERS).layers[0]
  )(jnp.arange(2000))
  # Four standard deviations.
  deviation = np.sqrt(share * (1 - share) / 2000)
  assert abs(np.mean(np.asarray(drawn) == 0) - share) < 4 * deviation


def test_exits_take_turns():
  weights = np.array([0.0, 1.0, 2.0, 3.0, 4.0])
  seen = []
  for step in range(4):
    exits = rotated_exits.rotated(weights, 2, jnp.int32(step))
    seen.append([int(layer) for layer in exits.layers if layer < 5])
    counted = np.asarray(exits.weights)[np.asarray(exits.layers) < 5]
    assert counted.sum() == pytest.approx(10.0)
    np.testing.assert_allclose(counted[0] / counted[-1], seen[-1][0] / 4)
  assert seen == [[1, 3, 4], [2, 4], [1, 3, 4], [2, 4]]
  # A rotation of more exits than there are: often the last alone.
  exits = rotated_exits.rotated(weights, 9, jnp.int32(8))
  assert exits.layers.tolist() == [5, 4] and exits.weights.tolist() == [0, 10]


def test_exits_whose_turn_it_is_are_the_loss():
  objective = training.RotatedExits(
    objective=training.Objective(layer_weights=(0.1, 0.2, 0.7), z_loss=0.0)
  )
  _, plain = objective_cases.value(PLAIN)
  for step, weights in enumerate([(0.125, 0, 0.875), (0, 2 / 9, 7 / 9)]):
    loss, metrics = objective_cases.value(objective, step=step)
    np.testing.assert_allclose(loss, np.dot(weights, plain.losses), rtol=1e-5)
    read = np.array(weights) > 0
    np.testing.assert_allclose(metrics.losses[read], plain.losses[read], 1e-5)
    assert np.isnan(metrics.losses[~read]).all()


def test_layers_are_dropped_more_often_with_depth_and_steps():
  objective = training.LayerDropout(max_probability=0.4, curriculum_steps=11)
  by_layer = np.array([0.0, 0.4 * (2**0.5 - 1), 0.4])
  for step, growth in ((0, 0.0), (5, 2**0.5 - 1), (10, 1.0), (99, 1.0)):
    np.testing.assert_allclose(
      objective.probabilities(step, LAYERS), by_layer * growth, atol=1e-6
    )
  always = training.LayerDropout(max_probability=0.4)
  np.testing.assert_allclose(
    always.probabilities(0, LAYERS), by_layer, atol=1e-6
  )
  np.testing.assert_array_equal(always.probabilities(0, 1), [0.0])
  draws = objective_cases.draws(rows=4000)
  runs = np.asarray(always.layer_mask(draws, LAYERS, None))
  assert runs.shape == (4000, 1, LAYERS)
  # Four standard deviations.
  np.testing.assert_allclose(1 - runs.mean((0, 1)), by_layer, atol=0.031)
  # A row draws the same whatever it is drawn with.
  rows = jnp.array([3, 17])
  alone = training.Draws(draws.key, draws.step, rows)
  again = always.layer_mask(alone, LAYERS, None)
  np.testing.assert_array_equal(again, runs[rows])


def test_a_dropped_layer_hands_states_on_and_learns_nothing():
  # The largest that is not refused: no draw is above it.
  objective = training.LayerDropout(
    max_probability=float(np.nextafter(np.float32(1.0), np.float32(0.0)))
  )
  _, metrics, gradient = objective_cases.run(objective)
  # The last layer, in every row.
  assert metrics.losses[-1] == metrics.losses[-2]
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(last_layer(gradient)))


@pytest.mark.slow
def test_own_exits_are_those_of_the_masked_reference():
  objective = training.OwnExits(
    objective=training.Objective(z_loss=0.0),
    weight=0.5,
    lowest_threshold=0.3,
    highest_threshold=0.3,
  )
  params = objective_cases.params()
  plain, _ = objective_cases.value(objective.objective)
  loss, _ = objective_cases.value(objective)
  logits = model.output_logits(CONFIG, params, objective_cases.states()[:-1])
  probabilities = jnp.sort(jax.nn.softmax(logits), axis=-1)
  sure = probabilities[..., -1] - probabilities[..., -2] >= 0.3
  exit_layers = jnp.where(sure[0], 1, jnp.where(sure[1], 2, 3))
  assert len(np.unique(exit_layers)) == LAYERS, 'all exits must be taken'
  logits = jax.jit(functools.partial(model.decode_with_layer_mask, CONFIG))(
    params,
    BATCH['encoder_input_tokens'],
    BATCH['decoder_input_tokens'],
    jnp.arange(LAYERS) < exit_layers[..., None],
  )
  logs = jax.nn.log_softmax(logits)
  targets = BATCH['decoder_target_tokens'][..., None]
  of_targets = jnp.take_along_axis(logs, targets, axis=-1)[..., 0]
  weights = BATCH['decoder_loss_weights']
  second = -(of_targets * weights).sum() / weights.sum()
  np.testing.assert_allclose(loss, plain + 0.5 * second, rtol=1e-5)


def test_exits_come_before_the_first_sure_layer():
  confidences = jnp.array([0.2, 0.9, 0.5, 0.1]).reshape(2, 1, 2)
  masks = own_exits.layers_before_exits(confidences, jnp.array([0.5]))
  assert masks.astype(int).tolist() == [[[1, 1, 0], [1, 0, 0]]]


def test_thresholds_differ_between_rows_and_steps():
  drawn = [
    objective_cases.draws(step).uniform('OwnExits') for step in (0, 0, 1)
  ]
  np.testing.assert_array_equal(drawn[0], drawn[1])
  assert len(set(np.concatenate([drawn[0], drawn[2]]).tolist())) == 16
  other = objective_cases.draws(0).uniform('LayerDropout')
  assert not np.isin(other, drawn[0]).any()


def logits_fn(params, hidden, dropout_rng):
  del dropout_rng
  return hidden @ params


def mixed_loss(params, states, targets, weights, settings, share):
  """What `multi_exit_loss` with `distilled` says it is."""
  logs = jax.nn.log_softmax(states @ params)
  teacher = jax.lax.stop_gradient(logs[-1])
  smoothed = jax.nn.one_hot(targets, params.shape[-1])
  eps = settings.label_smoothing
  smoothed = smoothed * (1 - eps) + (1 - smoothed) * eps / (
    params.shape[-1] - 1
  )
  total = 0.0
  for layer, weight in enumerate(settings.layer_weights):
    mixed = share if layer < len(states) - 1 else 0.0
    wanted = (smoothed * (jnp.log(smoothed) - logs[layer])).sum(-1)
    distance = (jnp.exp(teacher) * (teacher - logs[layer])).sum(-1)
    log_z = jax.nn.logsumexp(states[layer] @ params, axis=-1)
    loss = (1 - mixed) * wanted + mixed * distance
    loss = loss + settings.z_loss * log_z**2
    total = total + weight * (loss * weights).sum()
  return total / weights.sum()


@pytest.mark.parametrize('share', [0.3, 1.0])
def test_self_distillation_is_its_formula(share):
  keys = jax.random.split(jax.random.key(1), 3)
  params = jax.random.normal(keys[0], (4, 11))
  states = jax.random.normal(keys[1], (LAYERS, 2, 5, 4))
  targets = jax.random.randint(keys[2], (2, 5), 0, 11)
  weights = jnp.ones((2, 5)).at[0, 3:].set(0.0)
  settings = training.LossSettings(
    (0.2, 0.3, 0.5), z_loss=0.01, label_smoothing=0.1
  )

  def ours(params, states):
    return losses.multi_exit_loss(
      logits_fn,
      params,
      states,
      targets=targets,
      weights=weights,
      settings=settings,
      distilled=share,
    )[0]

  def theirs(params, states):
    return mixed_loss(params, states, targets, weights, settings, share)

  results = [
    jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, states)
    for loss in (ours, theirs)
  ]
  assert_close(*results, rtol=1e-4)


@pytest.mark.parametrize(
  'objective',
  [
    pytest.param(training.SelfDistillation(weight=0.7), marks=pytest.mark.slow),
    training.PulledStates(weight=3.0),
  ],
  ids=['SelfDistillation', 'PulledStates'],
)
def test_the_last_layer_is_not_asked_to_come_nearer(objective):
  """What only the last layer's state depends on gets the plain gradient."""
  plain_loss, _, plain = objective_cases.run(PLAIN)
  loss, _, gradient = objective_cases.run(objective)
  assert abs(loss - plain_loss) > 1e-3
  assert_close(last_layer(gradient), last_layer(plain), rtol=1e-5, atol=1e-8)
  earlier = [tree['decoder']['layers_0'] for tree in (gradient, plain)]
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), *earlier)
  assert max(jax.tree.leaves(moved)) > 1e-4


def test_the_pull_is_one_less_the_cosine():
  states = jax.random.normal(jax.random.key(0), (LAYERS, 2, 5, 16))
  norms = jnp.linalg.norm(states, axis=-1)
  cosines = (states[:-1] * states[-1]).sum(-1) / (norms[:-1] * norms[-1])
  np.testing.assert_allclose(
    pulled_states.distances(states), 1 - cosines, atol=1e-5
  )
  plain, _ = objective_cases.value(PLAIN)
  pulled, _ = objective_cases.value(training.PulledStates(weight=3.0))
  weights = BATCH['decoder_loss_weights']
  found = pulled_states.distances(objective_cases.states())
  expected = (found.mean(0) * weights).sum() / weights.sum()
  np.testing.assert_allclose(pulled - plain, 3 * expected, rtol=1e-4)
