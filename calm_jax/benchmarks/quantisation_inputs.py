"""What the report on quantisation teacher forces a model with."""

import argparse
from collections.abc import Sequence

import jax
import numpy as np

from calm_jax import decoding, model, runs
from calm_jax.array_types import Params
from calm_jax.benchmarks import quantisation_outputs, token_inputs
from calm_jax.benchmarks.quantisation_captures import Batch
from calm_jax.benchmarks.quantisation_outputs import Detokenize

_BATCH_SIZE = 8


def read(
  flags: argparse.Namespace,
) -> tuple[model.T5Config, Params, list[Batch], Detokenize]:
  """Returns what the flags name: a run's model on its inputs, or a random one.

  And what makes texts of its outputs.

  Raises:
    OSError: if a file is not there.
    ValueError: if the flags name neither, or both, or what is there is bad.
  """
  if (flags.run_dir is None) == (flags.shape is None):
    raise ValueError('give either --run_dir with --tokens, or --shape')
  if flags.num_inputs < 1:
    raise ValueError(f'num_inputs is {flags.num_inputs}; give 1 or more')
  if flags.shape is not None:
    config = model.T5Config.named(flags.shape)
    params = model.init_params(config, jax.random.key(flags.seed))
    size = (flags.num_inputs, flags.max_length)
    batches = _random(config, *size, seed=flags.seed)
    return config, params, batches, quantisation_outputs.ids_as_words
  if flags.tokens is None:
    raise ValueError('give --tokens, a token file of the run')
  loaded = runs.load_run(flags.run_dir)
  config, params = loaded.config, loaded.params
  about = {'context': {'feature_lengths': loaded.feature_lengths}}
  sources = token_inputs.read_sources(flags.tokens, flags.num_inputs, about)
  batches = _decoded(config, params, sources, flags.max_length)
  return config, params, batches, loaded.tokenizer.decode


def _decoded(
  config: model.T5Config,
  params: Params,
  sources: Sequence[np.ndarray],
  max_length: int,
) -> list[Batch]:
  """Returns inputs with what the float model says of them at full depth."""
  bound = decoding.bind(model.as_layered_decoder(config), params)
  padded = token_inputs.whole_batches(sources, len(sources))[0]
  return [
    Batch(
      inputs,
      np.asarray(
        decoding.generate(bound, inputs, max_length=max_length).tokens
      ),
    )
    for inputs in _parts(padded)
  ]


def _random(
  config: model.T5Config, number: int, length: int, *, seed: int
) -> list[Batch]:
  """Returns random inputs and outputs of one length."""
  rng = np.random.default_rng(seed)
  inputs, outputs = rng.integers(2, config.vocab_size, (2, number, length))
  return [*map(Batch, _parts(inputs), _parts(outputs))]


def _parts(rows: np.ndarray) -> list[np.ndarray]:
  starts = range(_BATCH_SIZE, len(rows), _BATCH_SIZE)
  return np.split(rows.astype(np.int32), list(starts))
