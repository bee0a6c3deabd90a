"""Training a head that drafts for a frozen model, and where it is kept."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import training_cases

from calm_jax import checkpoints, decoding, model, runs, training

CONFIG = dataclasses.replace(training_cases.CONFIG, dropout_rate=0.0)
# One object for all runs, so that each step is compiled once.
OPTIMIZER = training.adamw(0.01)
DRAFTS = 2


@pytest.fixture(scope='module')
def params():
  return training.init_train_state(CONFIG, OPTIMIZER).params


@pytest.fixture(scope='module')
def own_outputs(params):
  """A batch whose targets are what the model itself says."""
  inputs = training_cases.batch(0)['encoder_input_tokens']
  bound = decoding.bind(model.as_layered_decoder(CONFIG), params)
  full = decoding.generate(bound, inputs, max_length=8)
  tokens = np.asarray(full.tokens)
  return bound, {
    'encoder_input_tokens': inputs,
    'decoder_target_tokens': tokens,
    'decoder_input_tokens': np.pad(tokens, ((0, 0), (1, 0)))[:, :-1],
    'decoder_loss_weights': np.asarray(full.exit_layers > 0, np.float32),
  }


def train(params, model_dir, batch, num_steps=60, **changes):
  return training.train(
    training.draft_head_stage(
      CONFIG, params, OPTIMIZER, num_tokens=2, drafts=DRAFTS, **changes
    ),
    lambda skip: itertools.repeat(batch),
    plan=training.Plan(num_steps=num_steps, log_every=20),
    model_dir=training.draft_head_directory(model_dir),
  )


def evaluate(params, head, batches):
  return training.evaluate_draft_head(
    CONFIG, params, head, batches, drafts=DRAFTS
  )


@pytest.mark.slow
def test_a_trained_head_agrees_more_and_drafts(tmp_path, params, own_outputs):
  """From training to decoding, through the files of a run."""
  bound, batch = own_outputs
  checkpoints.save(tmp_path, 7, params=params, config=CONFIG)
  before = jax.tree.map(np.array, params)
  train(params, tmp_path, batch)
  jax.tree.map(np.testing.assert_array_equal, before, params)
  head = runs.load_draft_head(tmp_path)
  assert np.shape(head.entry) == (3, CONFIG.embed_dim, CONFIG.embed_dim)
  untrained = dataclasses.replace(head, back=np.zeros_like(head.back))
  one, other = (
    evaluate(params, these, [batch]).rates() for these in (untrained, head)
  )
  for loss, right, kept in (one, other):
    assert loss.shape == (DRAFTS,) and (kept <= right).all()
  assert (other[0] < one[0]).all()
  assert (other[1] > one[1] + 0.1).all()
  accepted = []
  for these in (untrained, head):
    policy = decoding.ComputePolicy(
      cache_fill=decoding.CatchUp((DRAFTS,)),
      verification=decoding.DraftAhead(these, decoding.VerifyEvery(DRAFTS)),
    )
    result = decoding.generate(
      bound, batch['encoder_input_tokens'], policy=policy, max_length=8
    )
    np.testing.assert_array_equal(result.tokens, batch['decoder_target_tokens'])
    accepted.append(result.work.accepted.sum() / result.work.cycles.sum())
  assert accepted[1] > accepted[0] + 0.1


@pytest.mark.slow
def test_counts_are_those_of_drafting_by_hand(params):
  """Draft by draft and place by place, from the definition."""
  batch = training_cases.batch(1)
  rng = np.random.default_rng(0)
  size = CONFIG.embed_dim
  head = training.draft_head_of(
    {
      'draft_head': {
        'entry': rng.normal(size=(3, size, 8)).astype(np.float32) / 4.0,
        'bias': np.zeros(8, np.float32),
        'back': rng.normal(size=(8, size)).astype(np.float32) / 40.0,
      }
    }
  )
  states = model.layer_states(
    CONFIG,
    params,
    batch['encoder_input_tokens'],
    batch['decoder_input_tokens'],
  )[-1]

  def said(states):
    logits = model.output_logits(CONFIG, params, states)
    return np.asarray(logits).argmax(-1)

  labels = said(states)
  table = params['token_embedder']['embedding']
  places, right, kept = np.zeros((3, DRAFTS))
  for row, first in itertools.product(*map(range, labels.shape)):
    state, all_right = states[row, first], True
    for draft in range(DRAFTS):
      place = first + 1 + draft
      if (
        place >= labels.shape[1]
        or not batch['decoder_loss_weights'][row, place]
      ):
        break
      inputs = np.pad(batch['decoder_input_tokens'][row], (1, 0))
      state = head(
        state, jnp.stack([table[inputs[place + 1]], table[inputs[place]]])
      )
      agrees = said(state) == labels[row, place]
      all_right &= agrees
      places[draft] += 1
      right[draft] += agrees
      kept[draft] += all_right
  counts = evaluate(params, head, [batch])
  np.testing.assert_array_equal(counts.places, places)
  np.testing.assert_array_equal(counts.right, right)
  np.testing.assert_array_equal(counts.kept, kept)
  assert 0 < kept[1]


@pytest.mark.slow
def test_packed_examples_are_drafted_as_if_alone(params):
  """Two examples in one row count as two rows do."""
  tokens = np.random.default_rng(0).integers(2, 16, (8, 5)).astype(np.int32)
  rows = {
    'encoder_input_tokens': tokens,
    'decoder_input_tokens': np.pad(tokens, ((0, 0), (1, 0)))[:, :-1],
    'decoder_target_tokens': tokens,
    'decoder_loss_weights': np.ones((8, 5), np.float32),
  }
  packed = {key: value.reshape(4, 10) for key, value in rows.items()}
  ids = np.tile(np.repeat([1, 2], 5), (4, 1)).astype(np.int32)
  packed |= {'encoder_segment_ids': ids, 'decoder_segment_ids': ids}
  stage = training.draft_head_stage(CONFIG, params, OPTIMIZER, num_tokens=2)
  tree = jax.tree.map(lambda leaf: leaf + 0.01, stage.init(None).params)
  one, other = (
    evaluate(params, training.draft_head_of(tree), [batch])
    for batch in (rows, packed)
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), one, other
  )


@pytest.mark.slow
def test_a_head_of_another_model_or_none_is_refused(
  tmp_path, params, own_outputs
):
  _, batch = own_outputs
  checkpoints.save(tmp_path, 7, params=params, config=CONFIG)
  with pytest.raises(
    FileNotFoundError, match='no draft head in .*draft_head; run calm_jax.cli'
  ):
    runs.load_draft_head(tmp_path)
  train(params, tmp_path, batch, num_steps=1)
  with pytest.raises(ValueError, match='draft_head is no classifier: it holds'):
    runs.load_classifier(tmp_path, name='draft_head')
  other = jax.tree.map(lambda leaf: leaf * 1.01, params)
  with pytest.raises(ValueError, match='backbone_parameters: expected'):
    train(other, tmp_path, batch)
  with pytest.raises(ValueError, match='draft_head_shape: expected'):
    train(params, tmp_path, batch, width=4)
  checkpoints.save(tmp_path, 8, params=other, config=CONFIG)
  with pytest.raises(
    ValueError, match='the draft head in .* was trained for parameters'
  ):
    runs.load_draft_head(tmp_path)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (dict(num_tokens=0), 'num_tokens 0 must be a whole number at least 1'),
    (dict(width=0), 'width 0'),
    (dict(drafts=0), 'drafts 0'),
  ],
)
def test_bad_arguments_are_named(params, changes, message):
  with pytest.raises(ValueError, match=message):
    training.draft_head_stage(CONFIG, params, OPTIMIZER, **changes)


def test_an_empty_validation_set_is_named(params):
  stage = training.draft_head_stage(CONFIG, params, OPTIMIZER)
  head = training.draft_head_of(stage.init(None).params)
  with pytest.raises(ValueError, match='the 0 validation batches of the draft'):
    evaluate(params, head, [])
