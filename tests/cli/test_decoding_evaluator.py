"""Decoding while training: the numbers are those of decoding afterwards."""

import types

import jax
import numpy as np
import pytest

from calm_jax import decoding, evaluation, exits, model
from calm_jax.cli import decoding_evaluator
from calm_jax.evaluation import corpus_metrics

CONFIG = model.T5Config(
  vocab_size=20,
  embed_dim=16,
  num_heads=2,
  head_dim=8,
  mlp_dim=16,
  num_encoder_layers=1,
  num_decoder_layers=3,
)
TOKENIZER = types.SimpleNamespace(
  decode=lambda ids: ' '.join(f'w{token}' for token in ids), eos_id=1
)
EARLY = decoding.ComputePolicy(
  exit_rule=exits.ConfidenceExit(exits.SoftmaxMargin(), 0.02)
)


def _batches():
  rng = np.random.default_rng(3)
  yield {
    'encoder_input_tokens': rng.integers(2, 20, (4, 5), np.int32),
    'num_valid': 3,
    'references': [['w3 w4'], ['w5'], ['w6 w7', 'w8']],
  }


def _evaluator(**changes):
  arguments = dict(
    tokenizer=TOKENIZER,
    policies={'full': decoding.ComputePolicy(), 'early': EARLY},
    metrics=('token_f1',),
    max_length=6,
  )
  arguments.update(changes)
  return decoding_evaluator.decoding_evaluator(CONFIG, _batches, **arguments)


@pytest.mark.slow
def test_values_are_those_of_decoding_afterwards():
  params = model.init_params(CONFIG, jax.random.key(0))
  values = _evaluator()(params, 7)
  decoded = evaluation.decode_dataset(
    decoding.bind(model.as_layered_decoder(CONFIG), params),
    _batches(),
    detokenize=TOKENIZER.decode,
    max_length=6,
    policy=EARLY,
  )
  score = corpus_metrics.corpus_score(
    'token_f1', decoded.texts, decoded.references
  )
  assert values['early_token_f1'] == score
  assert values['early_mean_exit_layer'] == decoded.mean_exit_layer
  assert values['full_mean_exit_layer'] == 3.0
  assert values['early_mean_exit_layer'] < 3.0


def test_it_works_every_so_many_steps_and_at_the_end():
  seen = []

  def evaluator(params, step):
    seen.append(step)
    return {'value': params}

  sparse = decoding_evaluator.every(4, evaluator, last_step=10)
  values = [sparse(1.0, step) for step in (2, 4, 6, 8, 10)]
  assert seen == [4, 8, 10]
  assert values == [{}, {'value': 1.0}, {}, {'value': 1.0}, {'value': 1.0}]


def test_bad_arguments_are_named():
  with pytest.raises(ValueError, match="unknown metrics \\['blue'\\]"):
    _evaluator(metrics=('blue',))
  with pytest.raises(ValueError, match='no policies'):
    _evaluator(policies={})


@pytest.mark.parametrize(
  ('plan', 'best_metric', 'message'),
  [
    ({'every': 300}, 'validation_loss', 'every 300 .*every 250'),
    ({'every': 500}, 'full_bleu', "'full_bleu' comes every 500"),
  ],
)
def test_plans_that_miss_the_evaluations_are_refused(
  plan, best_metric, message
):
  plan = decoding_evaluator.DecodingPlan(**plan)
  with pytest.raises(ValueError, match=message):
    plan.check(eval_every=250, best_metric=best_metric)


def test_plans_that_meet_the_evaluations_are_not():
  for every, metric in ((None, 'any'), (500, 'validation_loss')):
    plan = decoding_evaluator.DecodingPlan(every=every)
    plan.check(eval_every=250, best_metric=metric)
  with pytest.raises(ValueError, match='every must be 1 or more'):
    decoding_evaluator.DecodingPlan(every=0)
