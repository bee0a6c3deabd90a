"""`PlannedLayers`: training under the layer plans that decode later."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import objective_cases
from cases.objective_cases import CONFIG, LAYERS

from calm_jax import decoding, model, training
from calm_jax.training import forward

LAST = training.Objective(layer_weights=training.last_layer_weights, z_loss=0.0)
KEPT = decoding.KeepLayers(2)
SCHEDULE = decoding.SkipDecode(3, 1, length=4)


def planned(*plans, **options):
  return training.PlannedLayers(plans=plans, objective=LAST, **options)


def mask_of(objective, positions):
  draws = objective_cases.draws(rows=len(positions))
  objective = objective.for_layers(LAYERS)
  return np.asarray(objective.layer_mask(draws, LAYERS, positions))


def masked_loss(mask):
  """Returns the cross entropy of the masked reference."""
  batch = objective_cases.BATCH
  logits = jax.jit(model.decode_with_layer_mask, static_argnums=0)(
    CONFIG,
    objective_cases.params(),
    batch['encoder_input_tokens'],
    batch['decoder_input_tokens'],
    mask,
  )
  targets = batch['decoder_target_tokens'][..., None]
  losses = -np.take_along_axis(
    np.asarray(jax.nn.log_softmax(logits)), targets, -1
  )
  weights = batch['decoder_loss_weights']
  return (losses[..., 0] * weights).sum() / weights.sum()


@pytest.mark.parametrize(
  'plan',
  [
    pytest.param(KEPT, id='kept', marks=pytest.mark.slow),
    pytest.param(SCHEDULE, id='schedule'),
  ],
)
def test_the_loss_is_that_of_the_masked_reference(plan):
  positions = forward.target_positions(objective_cases.BATCH)
  mask = mask_of(planned(plan), positions)
  assert mask.shape == (*positions.shape, LAYERS)
  if plan == KEPT:
    assert (mask == [True, False, True]).all()
  else:
    depths = plan.depths(positions.shape[1])
    np.testing.assert_array_equal(mask.sum(-1), [depths] * len(positions))
  loss, _ = objective_cases.value(planned(plan))
  np.testing.assert_allclose(loss, masked_loss(mask), rtol=1e-5)
  full, _ = objective_cases.value(LAST)
  assert abs(loss - full) > 1e-3


def test_every_layer_alone_is_the_plain_objective():
  loss, _ = objective_cases.value(planned(decoding.EveryLayer()))
  np.testing.assert_allclose(loss, objective_cases.value(LAST)[0], rtol=1e-6)


def test_rows_draw_a_plan_each_alone_as_in_a_batch():
  objective = planned(decoding.EveryLayer(), KEPT, decoding.KeepLayers(1))
  positions = np.zeros((3000, 1), int)
  mask = mask_of(objective, positions)
  counts = np.bincount(mask[:, 0].sum(-1), minlength=4)
  # Four standard deviations.
  np.testing.assert_allclose(counts[1:], 1000, atol=4 * np.sqrt(3000 * 2 / 9))
  draws = objective_cases.draws(rows=3000)
  alone = dataclasses.replace(draws, rows=jnp.array([5, 1200]))
  np.testing.assert_array_equal(
    objective.for_layers(LAYERS).layer_mask(alone, LAYERS, positions[:2]),
    mask[[5, 1200]],
  )


def test_positions_of_packed_rows_begin_anew():
  ids = np.array([[1, 1, 2, 2, 2, 3, 0, 0], [7, 7, 7, 7, 9, 9, 9, 9]])
  batch = {'decoder_input_tokens': ids, 'decoder_segment_ids': ids}
  np.testing.assert_array_equal(
    forward.target_positions(batch),
    [[0, 1, 0, 1, 2, 0, 0, 1], [0, 1, 2, 3, 0, 1, 2, 3]],
  )


def test_a_run_keeps_what_its_plans_are():
  described = planned(KEPT, SCHEDULE).description()
  assert described['name'] == 'PlannedLayers'
  assert described['plans'][0] == 'KeepLayers(num_layers=2)'
  assert 'min_layers=1' in described['plans'][1]


@pytest.mark.parametrize(
  ('plans', 'message'),
  [
    ((), 'give a list of layer plans'),
    ((4,), '4 is no layer plan'),
    (
      (decoding.SkipSaturatedFeedForward(0.9),),
      'decided while it decodes',
    ),
    (
      (decoding.SkipDecode(3, 1, length=4, segmented=False),),
      'segmented=True',
    ),
    ((decoding.SkipDecode(3, 1),), 'give it a length'),
    ((decoding.KeepLayers(4),), 'in 1..3'),
    ((decoding.SkipDecode(4, 1, length=4),), 'in 1..3'),
  ],
)
def test_plans_that_cannot_be_trained_are_refused(plans, message):
  with pytest.raises(ValueError, match=message):
    planned(*plans).for_layers(LAYERS)


def test_a_plan_without_a_list_is_refused():
  with pytest.raises(ValueError, match='give a list of layer plans'):
    training.PlannedLayers(plans=KEPT)
