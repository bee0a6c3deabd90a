"""Certificates put to use in a T5X job; T5X itself is not needed for that."""

import types

import jax
import pytest
import seqio
from cases import text_cases
from cases.text_cases import CONFIG, POLICY

from calm_jax import checkpoints, decoding, runs
from calm_jax.calibration.certificate import Certificate
from calm_jax.interop.t5x_certificates import certified_policy
from calm_jax.tokenizer import ByteTokenizer

VOCABULARY = seqio.ByteVocabulary(extra_ids=5)


def network_of(**changes):
  """Returns what is read of T5X's network."""
  names = {'embed_dim': 'emb_dim', 'tied_embeddings': 'logits_via_embedding'}
  fields = {
    names.get(name, name): value for name, value in vars(CONFIG).items()
  }
  return types.SimpleNamespace(
    config=types.SimpleNamespace(**{**fields, **changes})
  )


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  folder = tmp_path_factory.mktemp('run')
  text_cases.save_run(folder)
  context = runs.decoding_context(
    POLICY,
    params=checkpoints.load(folder).params,
    tokenizer=ByteTokenizer(5),
    sampler=decoding.Greedy(),
  ).write()
  Certificate(
    index=1,
    reason='',
    tolerance=0.1,
    error_rate=0.05,
    p_value='hoeffding_bentkus',
    procedure='fixed_sequence',
    num_examples=9,
    settings=(0.5, 0.25, 0.125),
    risks=(0.0, 0.0, 1.0),
    p_values=(0.01, 0.01, 0.9),
    context={**context, 'dtype': 'float32'},
  ).save(folder / 'certificate.json')
  return folder


def apply(run, checkpoint=None, **options):
  return certified_policy(
    run / 'certificate.json',
    options.pop('policy', POLICY),
    checkpoint=run if checkpoint is None else checkpoint,
    network=options.pop('network', network_of()),
    vocabulary=options.pop('vocabulary', VOCABULARY),
    **options,
  )


def test_the_policy_has_the_certified_threshold(run):
  assert float(apply(run).exit_rule.threshold.value) == 0.25


def test_certificates_of_something_else_are_refused(run, tmp_path):
  other = text_cases.save_run(tmp_path / 'other', key=1)
  for options, message in (
    (dict(checkpoint=other), 'parameters: certified for'),
    (dict(vocabulary=seqio.ByteVocabulary(4)), 'tokenizer: certified for'),
    (dict(sampler=decoding.BeamSearch(2)), 'sampler: certified for'),
    (dict(policy=decoding.ComputePolicy()), 'NeverExit has no threshold'),
    (
      dict(network=network_of(dtype=jax.numpy.bfloat16)),
      "dtype: certified for 'float32', got 'bfloat16'",
    ),
  ):
    with pytest.raises(ValueError, match=message):
      apply(run, **options)
  uncertified = apply(run, other, allow_uncertified=True)
  assert float(uncertified.exit_rule.threshold.value) == 0.25
