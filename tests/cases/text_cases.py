"""A tiny random model that speaks bytes, for what turns texts into texts."""

import os

import jax
import numpy as np

from calm_jax import (
  calibration,
  checkpoints,
  decoding,
  exits,
  model,
  runs,
)
from calm_jax.tokenizer import ByteTokenizer, vocabulary_context

L = 2
INPUT_LENGTH, MAX_LENGTH = 32, 8
CONFIG = model.T5Config(
  vocab_size=264,
  embed_dim=16,
  num_heads=2,
  head_dim=8,
  mlp_dim=32,
  num_encoder_layers=1,
  num_decoder_layers=L,
)
# A threshold that the random model passes now and then.
POLICY = decoding.ComputePolicy(
  exit_rule=exits.ConfidenceExit(
    measure=exits.SoftmaxMargin(), threshold=exits.ConstantThreshold(0.004)
  )
)


def save_run(folder, *, key=0, params=None, input_length=INPUT_LENGTH):
  """Saves a run directory, of random parameters if None; returns its path."""
  if params is None:
    params = model.init_params(CONFIG, jax.random.key(key))
  checkpoints.save(
    folder,
    1,
    params=params,
    config=CONFIG,
    context={
      **vocabulary_context(ByteTokenizer(5)),
      'feature_lengths': {'inputs': input_length, 'targets': MAX_LENGTH},
    },
  )
  return str(folder)


def save_certified_run(folder, *, losses=0.0, sampler=None, **context):
  """Saves a run whose certificate is for POLICY at its threshold."""
  path = save_run(folder)
  loaded = runs.load_run(path)
  certificate = calibration.calibrate(
    np.full((200, 1), losses),
    (POLICY.exit_rule.threshold.value,),
    tolerance=0.1,
    error_rate=0.05,
    context={
      **runs.decoding_context(
        POLICY,
        params=loaded.params,
        tokenizer=loaded.tokenizer,
        sampler=decoding.Greedy() if sampler is None else sampler,
      ).write(),
      **context,
    },
  )
  os.makedirs(os.path.dirname(runs.certificate_path(path)))
  certificate.save(runs.certificate_path(path))
  return path
