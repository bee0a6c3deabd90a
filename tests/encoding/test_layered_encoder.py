"""An encoder of a model of one's own is tried, as its decoder is."""

import dataclasses

import pytest
from cases import encoding_cases as cases

from calm_jax import model
from calm_jax.interfaces import encoder_conformance, trial

DECODER = model.as_layered_decoder(cases.CONFIG)
ENCODER = cases.ENCODER


def check(**faults):
  """Tries the T5's encoder with functions replaced."""
  encoder = dataclasses.replace(ENCODER, **faults)
  found = trial.Trial.make(
    dataclasses.replace(DECODER, encoder=encoder),
    cases.params(),
    False,
    batch_size=2,
    source_length=3,
    max_length=2,
    tolerance=1e-4,
    seed=0,
  )
  encoder_conformance.check_encoder(found, found.call('encode', found.inputs))


@pytest.mark.slow
def test_the_encoder_of_t5_passes():
  check()


def embed_all(params, inputs):
  hidden, mask = ENCODER.embed(params, inputs)
  return hidden, mask | True


def mean_of_batch(params, layer, hidden, mask, shared):
  hidden = ENCODER.layer(params, layer, hidden, mask, shared)
  return hidden - 0.1 * hidden.mean(axis=0)


def unnormed(params, hidden, mask):
  encoded = ENCODER.finish(params, hidden, mask)
  return dataclasses.replace(encoded, hidden=hidden)


@pytest.mark.slow
@pytest.mark.parametrize(
  ('name', 'fault', 'words'),
  [
    ('embed', embed_all, 'embed: says of other positions'),
    ('layer', mean_of_batch, 'behind all layers it says other|row 0 alone'),
    ('finish', unnormed, 'behind all layers it says other sources'),
    ('finish', lambda params, hidden, mask: mask, 'another form than encode'),
    (
      'pool',
      lambda encoded: (encoded.mask[:, :1], 0),
      'encoder.pool: returns bool',
    ),
  ],
)
def test_faults_are_named(name, fault, words):
  with pytest.raises(ValueError, match=words):
    check(**{name: fault})
