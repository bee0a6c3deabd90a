"""Training the model with a loss at every exit."""

import dataclasses

import jax
import numpy as np
import pytest
from cases import training_cases

from calm_jax import records, training

CONFIG = training_cases.CONFIG
# One object for all runs, so that its step is compiled once.
OPTIMIZER = training.adafactor(0.02)


def validation(seeds=(900, 901)):
  return training.teacher_forced_evaluator(
    CONFIG, lambda: [training_cases.batch(seed) for seed in seeds]
  )


def train(model_dir, *, evaluators=None, num_steps=6, every=3, **changes):
  return training.train(
    training.multi_exit_stage(CONFIG, OPTIMIZER, **changes),
    training_cases.batches,
    plan=training.Plan(
      num_steps=num_steps,
      log_every=every,
      eval_every=every,
      checkpoint_every=every,
    ),
    model_dir=model_dir,
    evaluators=evaluators,
  )


def log(model_dir, kind):
  rows = records.read_jsonl(model_dir / 'train_log.jsonl')
  return [row for row in rows if row['kind'] == kind]


@pytest.mark.slow
def test_the_loss_of_every_exit_falls(tmp_path, capsys):
  result = train(
    tmp_path,
    num_steps=100,
    every=50,
    evaluators={'validation': validation()},
  )
  rows = log(tmp_path, 'train')
  first, last = (np.array(rows[i]['exit_losses']) for i in (0, -1))
  assert (last < first - 0.1).all()
  assert rows[-1]['exit_accuracies'][-1] > rows[0]['exit_accuracies'][-1]
  for name in ('exit_losses', 'exit_accuracies'):
    assert len(rows[0][name]) == CONFIG.num_decoder_layers
  evaluation = log(tmp_path, 'evaluation')[-1]
  assert evaluation['validation_loss'] == evaluation['validation_loss_exit_2']
  assert result.best_value == evaluation['validation_loss']
  assert '2 exits, on 1 x cpu' in capsys.readouterr().out


@pytest.mark.slow
def test_the_parameters_are_listed(tmp_path):
  result = train(tmp_path, num_steps=1)
  table = (tmp_path / 'parameters.txt').read_text()
  leaves = jax.tree.leaves(result.params)
  total = sum(leaf.size for leaf in leaves)
  assert f'{len(leaves)} parameter tensors, {total:,} numbers' in table
  assert 'decoder/layers_1/mlp/wi_0/kernel  ' in table


@pytest.mark.slow
def test_a_resumed_run_draws_the_same_dropout(tmp_path):
  assert CONFIG.dropout_rate > 0
  whole = train(tmp_path / 'whole')
  train(tmp_path / 'parts', num_steps=3)
  resumed = train(tmp_path / 'parts')
  jax.tree.map(np.testing.assert_array_equal, whole.params, resumed.params)


@pytest.mark.slow
def test_all_steps_of_a_run_are_one_program(tmp_path):
  optimizer = training.adafactor(0.02)
  # As what is read from a file, and unlike what is drawn.
  given = jax.device_put(
    training.init_train_state(CONFIG, optimizer, seed=3).params,
    jax.devices()[0],
  )
  stage = training.multi_exit_stage(CONFIG, optimizer, initial_params=given)
  step = training.make_train_step(
    CONFIG, optimizer, objective=training.Objective()
  )
  for num_steps in (2, 4):  # The second is resumed.
    training.train(
      stage,
      training_cases.batches,
      plan=training.Plan(num_steps=num_steps, checkpoint_every=2),
      model_dir=tmp_path,
    )
    assert step._cache_size() == 1


@pytest.mark.slow
def test_the_seed_and_given_parameters_decide_where_it_starts(tmp_path):
  given = training.init_train_state(CONFIG, OPTIMIZER, seed=3).params
  runs = [
    train(tmp_path / name, num_steps=1, **changes).params
    for name, changes in (
      ('seed', dict(seed=3)),
      # The key of dropout is the seed's as well.
      ('given', dict(seed=3, initial_params=given)),
      ('other', dict()),
    )
  ]
  jax.tree.map(np.testing.assert_array_equal, runs[0], runs[1])
  embeddings = [tree['token_embedder']['embedding'] for tree in runs]
  assert (embeddings[0] != embeddings[2]).any()


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (dict(layer_weights=(1.0,)), 'one weight per layer'),
    (dict(num_microbatches=0), 'num_microbatches'),
    (dict(z_loss=-1.0), 'z_loss'),
    (dict(label_smoothing=1.0), 'label_smoothing'),
    (dict(frozen='encoder/.*'), 'list of regular expressions'),
  ],
)
def test_bad_objectives_are_named(changes, message):
  with pytest.raises(ValueError, match=message):
    training.multi_exit_stage(
      CONFIG, OPTIMIZER, objective=training.Objective(**changes)
    )


def test_a_batch_of_another_vocabulary_is_refused():
  stage = training.multi_exit_stage(
    dataclasses.replace(CONFIG, vocab_size=8), OPTIMIZER
  )
  with pytest.raises(ValueError, match='vocab_size 8'):
    stage.check_batch(training_cases.batch(0))


def test_an_empty_validation_set_is_named():
  with pytest.raises(ValueError, match='no target token'):
    validation(seeds=())({}, 0)
