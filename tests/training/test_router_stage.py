"""Training a router of a frozen model, and what it comes to."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import training_cases

from calm_jax import checkpoints, decoding, exits, model, runs, training
from calm_jax.training import router_labels
from calm_jax.training.stages import router as router_stage

CONFIG = dataclasses.replace(training_cases.CONFIG, num_decoder_layers=3)
L = CONFIG.num_decoder_layers
# One object for all runs, so that each step is compiled once.
OPTIMIZER = training.adamw(0.05)
SLACK = 0.25
T = 5


@pytest.fixture(scope='module')
def params():
  """Returns random parameters, without compiling a program to draw them."""
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(lambda: model.init_params(CONFIG, jax.random.key(0)))

  def draw(shape):
    if len(shape.shape) == 1:
      return np.ones(shape.shape, np.float32)
    scale = 1.0 / np.sqrt(shape.shape[0])
    return (rng.normal(size=shape.shape) * scale).astype(np.float32)

  return jax.tree.map(draw, shapes)


examples_of = jax.jit(functools.partial(training.router_examples, CONFIG))


BATCH = training_cases.batch(1)


def outputs_of_depths(params, inputs):
  """Returns what decodes say in which every token runs so many layers."""
  bound = decoding.bind(
    model.as_layered_decoder(CONFIG),
    params,
    depth_loop=decoding.WhileDepthLoop(),
  )
  return [
    np.asarray(
      decoding.generate(
        bound, inputs, policy=exits.FixedExit(depth), max_length=T, eos_id=-1
      ).tokens
    )
    for depth in range(1, L + 1)
  ]


def train(params, model_dir, *, num_steps=6, name='router', **changes):
  return training.train(
    training.router_stage(
      CONFIG, params, OPTIMIZER, **{'slack': SLACK, **changes}
    ),
    lambda skip: itertools.repeat(BATCH),
    plan=training.Plan(num_steps=num_steps, log_every=100),
    model_dir=training.router_directory(model_dir, name),
  )


@pytest.fixture(scope='module')
def trained(tmp_path_factory, params):
  folder = tmp_path_factory.mktemp('run')
  checkpoints.save(folder, 7, params=params, config=CONFIG)
  before = jax.tree.map(np.array, params)
  result = train(params, folder, num_steps=60)
  jax.tree.map(np.testing.assert_array_equal, before, params)
  return folder, result


@pytest.mark.slow
def test_with_no_slack_a_depth_that_keeps_says_the_full_output(params):
  """And one that does not, does not: labels are what a decode would say."""
  inputs = BATCH['encoder_input_tokens']
  said = outputs_of_depths(params, inputs)
  batch = {
    'encoder_input_tokens': inputs,
    'decoder_target_tokens': said[-1],
    'decoder_input_tokens': np.pad(said[-1], ((0, 0), (1, 0)))[:, :-1],
    'decoder_loss_weights': np.ones(said[-1].shape, np.float32),
  }
  more = np.asarray(examples_of(params, batch).needs_more(0.0))
  same = np.array([(one == said[-1]).all(axis=1) for one in said])
  from_here_on = np.logical_and.accumulate(same[::-1], axis=0)[::-1]
  needed = from_here_on.argmax(axis=0) + 1
  np.testing.assert_array_equal(1 + more.sum(axis=0), needed)
  assert len(set(needed.tolist())) > 1


def test_labels_by_hand():
  """A depth keeps a request if it and all deeper ones are within the slack."""
  examples = training.RouterExamples(
    pooled=np.zeros((4, 2), 'f4'),
    lengths=np.ones(4, int),
    # Rows: always right; right at 1, wrong at 2; 1 of 4 wrong at 3; nothing.
    differing=jnp.array(
      [[0, 0, 4, 0], [0, 2, 4, 0], [0, 0, 1, 0], [0, 0, 0, 0]], jnp.float32
    ),
    tokens=jnp.array([4, 4, 4, 0], jnp.float32),
  )
  for slack, needed in ((0.0, [1, 3, 4]), (0.25, [1, 3, 3]), (0.5, [1, 1, 3])):
    found = 1 + np.asarray(examples.needs_more(slack)).sum(axis=0)
    assert found[:3].tolist() == needed, slack
  assert examples.weights.tolist() == [1, 1, 1, 0]


@pytest.mark.slow
def test_the_router_reads_what_decoding_reads(params):
  seam, batch = model.as_layered_decoder(CONFIG), BATCH
  weights = seam.prepare(params, traced_layers=False)
  encoded = seam.encode(weights, batch['encoder_input_tokens'])
  pooled, lengths = seam.pool_source(encoded)
  examples = examples_of(params, batch)
  np.testing.assert_allclose(examples.pooled, pooled, atol=1e-5)
  np.testing.assert_array_equal(examples.lengths, lengths)
  inputs = batch['encoder_input_tokens']
  np.testing.assert_array_equal(lengths, (inputs > 0).sum(axis=1))
  row = int(np.argmin(lengths))
  states = np.asarray(encoded.hidden)[row, : int(lengths[row])]
  np.testing.assert_allclose(pooled[row], states.mean(axis=0), atol=1e-5)


@pytest.mark.slow
def test_a_trained_router_is_loaded_and_knows_better(trained, params):
  folder, result = trained
  router = runs.load_router(folder)
  jax.tree.map(
    np.testing.assert_array_equal, router, training.router_of(result.params)
  )
  assert router.state.shape == (CONFIG.embed_dim, 1)
  knowing_nothing = exits.Router(
    **training.RouterShape().init(CONFIG, jax.random.key(0))
  )
  # It has seen these: it knows better than one that always says 1/2.
  confidences = {}
  examples = examples_of(params, BATCH)
  needs = np.asarray(examples.needs_more(SLACK))
  for name, one in (('trained', router), ('nothing', knowing_nothing)):
    scores = np.asarray(one.scores(examples.pooled, examples.lengths)).T
    confidences[name] = np.logaddexp(0, np.where(needs, -scores, scores)).mean()
  assert confidences['trained'] < confidences['nothing'] - 0.1
  np.testing.assert_allclose(confidences['nothing'], np.log(2.0), rtol=1e-5)


@pytest.mark.slow
def test_a_measurement_by_hand(params):
  router = exits.Router(
    bias=np.zeros(L - 1, 'f4'),
    state=np.random.default_rng(0).normal(size=(16, 1)).astype('f4'),
    length_weights=np.zeros(1, 'f4'),
  )
  # A row that holds nothing is no request.
  weights = BATCH['decoder_loss_weights'].copy()
  weights[-1] = 0
  batch = {**BATCH, 'decoder_loss_weights': weights}
  measured = training.evaluate_router(
    CONFIG, params, router, [batch], slack=SLACK, thresholds=(1.0, 0.5, 0.0)
  )
  examples = jax.device_get(examples_of(params, batch))
  tokens = examples.tokens[:7]
  differing = (examples.differing[:, :7] / tokens).T
  needed = 1 + np.asarray(examples.needs_more(SLACK))[:, :7].sum(axis=0)
  full, middle, first = measured.depths
  assert (full.mean_layers, full.differing, full.kept) == (L, 0.0, 1.0)
  assert first.mean_layers == 1.0
  np.testing.assert_allclose(first.differing, differing[:, 0].mean(), rtol=1e-5)
  np.testing.assert_allclose(first.differing, first.uniform_differing)
  rule = exits.RoutedExit(router, 0.5)
  bound = decoding.bind(model.as_layered_decoder(CONFIG), params)
  depths = np.asarray(
    decoding.routed_depths(bound, batch['encoder_input_tokens'][:7], rule)
  )
  assert 1 < depths.mean() < L
  np.testing.assert_allclose(middle.mean_layers, depths.mean(), rtol=1e-6)
  np.testing.assert_allclose(
    middle.differing, differing[np.arange(7), depths - 1].mean(), rtol=1e-5
  )
  np.testing.assert_allclose(middle.kept, (depths >= needed).mean(), rtol=1e-6)
  low, part = int(depths.mean()), depths.mean() % 1
  two = differing.mean(axis=0)[low - 1 : low + 1]
  np.testing.assert_allclose(
    middle.uniform_differing, two @ [1 - part, part], rtol=1e-5
  )
  np.testing.assert_allclose(measured.needed_layers, needed.mean())
  np.testing.assert_allclose(
    measured.differing, differing.mean(axis=0), rtol=1e-5
  )
  assert measured.num_requests == 7
  assert measured.num_tokens == weights.sum()


@pytest.mark.slow
@pytest.mark.parametrize(
  'shape',
  [
    training.RouterShape(hidden_units=8),
    training.RouterShape(per_depth=True),
    training.RouterShape(hidden_units=4, per_depth=True),
  ],
)
def test_every_shape_is_trained(params, shape):
  stage = training.router_stage(CONFIG, params, OPTIMIZER, shape=shape)
  state, losses = stage.init(None), []
  for _ in range(40):
    state, metrics = stage.step(state, stage.check_batch(BATCH), params)
    losses.append(float(metrics.loss))
  assert losses[-1] < losses[0] - 0.05
  np.testing.assert_allclose(losses[0], np.log(2.0), rtol=1e-5)
  router = training.router_of(state.params)
  router.check(model.as_layered_decoder(CONFIG))
  assert (router.out is None) == (shape.hidden_units == 0)


@pytest.mark.slow
def test_a_router_of_another_backbone_is_refused(tmp_path, params):
  checkpoints.save(tmp_path, 7, params=params, config=CONFIG)
  train(params, tmp_path, num_steps=1)
  other = jax.tree.map(lambda leaf: leaf * 1.01, params)
  with pytest.raises(ValueError, match='backbone_parameters: expected'):
    train(other, tmp_path)
  with pytest.raises(ValueError, match='router_slack: expected'):
    train(params, tmp_path, slack=0.5)
  path = checkpoints.save(tmp_path, 8, params=other, config=CONFIG)
  with pytest.raises(ValueError, match=f'trained for parameters .* but {path}'):
    runs.load_router(tmp_path)
  with pytest.raises(ValueError, match='is no gate'):
    runs.load_gate(tmp_path, name='router')


def test_what_cannot_be_trained_is_refused(tmp_path, params):
  shallow = dataclasses.replace(CONFIG, num_decoder_layers=1)
  with pytest.raises(ValueError, match='num_decoder_layers = 1'):
    training.router_stage(shallow, params, OPTIMIZER)
  for slack in (1.0, -0.1, True, 'some', np.nan):
    with pytest.raises(ValueError, match='slack .*: give the share'):
      training.router_stage(CONFIG, params, OPTIMIZER, slack=slack)
  with pytest.raises(ValueError, match='hidden_units'):
    training.RouterShape(hidden_units=-1)
  with pytest.raises(ValueError, match='per_depth is 1'):
    training.RouterShape(per_depth=1)
  ids = np.ones((8, T), np.int32)
  packed = {
    **BATCH,
    'encoder_segment_ids': ids,
    'decoder_segment_ids': ids,
  }
  with pytest.raises(ValueError, match='several requests in a row'):
    router_labels.check_router_batch(packed, CONFIG)
  checkpoints.save(tmp_path, 7, params=params, config=CONFIG)
  with pytest.raises(FileNotFoundError, match='train_router'):
    runs.load_router(tmp_path)
  with pytest.raises(ValueError, match='folder of its own'):
    training.router_directory(tmp_path, '../router')
  nothing = {
    **BATCH,
    'decoder_loss_weights': np.zeros((8, T), np.float32),
  }
  router = exits.Router(
    **training.RouterShape().init(CONFIG, jax.random.key(0))
  )
  for batches in ([], [nothing]):
    with pytest.raises(ValueError, match='no target token'):
      training.evaluate_router(CONFIG, params, router, batches, slack=SLACK)
  deeper = dataclasses.replace(CONFIG, num_decoder_layers=6)
  with pytest.raises(ValueError, match='bias of the router has shape'):
    training.evaluate_router(deeper, params, router, [])


def test_the_first_answer_is_one_half():
  shape = training.RouterShape(hidden_units=4)
  state = router_stage.init_router_state(CONFIG, OPTIMIZER, shape=shape, seed=1)
  router = training.router_of(state.params)
  assert (router.out == 0).all() and (router.bias == 0).all()
  assert len(np.unique(router.state)) == router.state.size
