"""`calm_jax.load`: a run with its certificate, or any checkpoint."""

import json
import os

import numpy as np
import pytest
from cases import text_cases
from cases.text_cases import POLICY, L

import calm_jax
from calm_jax import (
  checkpoints,
  decoding,
  evaluation,
  exits,
  model,
  runs,
)

TEXTS = ['one', 'a longer text of 30 characters', 'zwei']


@pytest.fixture(scope='module')
def run_dir(tmp_path_factory):
  return text_cases.save_certified_run(tmp_path_factory.mktemp('certified'))


def test_a_run_decodes_as_it_was_certified(run_dir):
  generator = calm_jax.load(run_dir)
  assert generator.policy == POLICY
  outputs = generator.generate(TEXTS)
  assert all(output.certified for output in outputs)
  layers = {layer for output in outputs for layer in output.exit_layers}
  assert min(layers) < L
  # The policy may be given, at whatever threshold.
  given = decoding.with_setting(POLICY, 0.9)
  assert calm_jax.load(run_dir, policy=given).policy == POLICY


def test_full_depth_until_something_is_certified(run_dir, tmp_path):
  plain = text_cases.save_run(tmp_path / 'plain')
  (tmp_path / 'none').mkdir()
  nothing = text_cases.save_certified_run(tmp_path / 'none', losses=0.9)
  for generator, certified in (
    (calm_jax.load(plain), False),
    (calm_jax.load(run_dir, certificate=None), False),
    # That nothing was certified holds for the full model.
    (calm_jax.load(nothing), True),
  ):
    assert generator.policy == decoding.ComputePolicy()
    outputs = generator.generate(TEXTS)
    assert {x for output in outputs for x in output.exit_layers} == {L}
    assert {output.certified for output in outputs} == {certified}


def test_a_policy_without_a_certificate_is_used_as_it_is(run_dir):
  generator = calm_jax.load(run_dir, policy=POLICY, certificate=None)
  assert generator.policy == POLICY
  assert not generator.generate(['one'])[0].certified


def test_the_sampler_is_the_one_that_was_certified(tmp_path):
  sampler = decoding.Temperature(0.5)
  path = text_cases.save_certified_run(tmp_path, sampler=sampler)
  for options in ({}, {'sampler': None}):
    generator = calm_jax.load(path, **options)
    assert generator.sampler == sampler and generator.certificate is not None


def test_certificates_of_something_else_are_refused(run_dir, tmp_path):
  other = decoding.ComputePolicy(
    exit_rule=exits.ConfidenceExit(exits.StateSimilarity(), 0.5)
  )
  with pytest.raises(ValueError, match=r'policy\S*: certified for'):
    calm_jax.load(run_dir, policy=other)
  with pytest.raises(ValueError, match='sampler: certified for'):
    calm_jax.load(run_dir, sampler=decoding.Temperature())
  another = text_cases.save_run(tmp_path / 'another', key=1)
  path = runs.certificate_path(run_dir)
  with pytest.raises(ValueError, match='parameters: certified for'):
    calm_jax.load(another, certificate=path)
  allowed = calm_jax.load(another, certificate=path, allow_uncertified=True)
  assert allowed.policy == POLICY
  assert not allowed.generate(['one'])[0].certified
  with pytest.raises(FileNotFoundError):
    calm_jax.load(run_dir, certificate=tmp_path / 'none.json')


def test_any_checkpoint_comes_with_its_vocabulary(run_dir, tmp_path):
  opened = checkpoints.open_checkpoint(run_dir)
  target = checkpoints.Target(format='huggingface')
  path = checkpoints.convert(opened, tmp_path / 'hf', target).path
  lengths = {'inputs': 32, 'targets': 8}
  texts = runs.TextFeatures('bytes', extra_ids=5, feature_lengths=lengths)
  generator = calm_jax.load(path, vocabulary=texts)
  outputs = generator.generate(TEXTS)
  assert {x for output in outputs for x in output.exit_layers} == {L}
  expected = calm_jax.load(run_dir, certificate=None).generate(TEXTS)
  assert [one.tokens for one in outputs] == [one.tokens for one in expected]
  # In short.
  short = calm_jax.load(
    path, vocabulary='bytes', extra_ids=5, feature_lengths=lengths
  )
  assert short.describe() == generator.describe()
  with pytest.raises(TypeError, match='extra_ids.* go into the TextFeatures'):
    calm_jax.load(path, vocabulary=texts, extra_ids=5)


def test_what_a_checkpoint_says_of_generating_is_done(run_dir, tmp_path):
  """suppress_tokens and forced_bos_token_id of generation_config.json."""
  opened = checkpoints.open_checkpoint(run_dir)
  target = checkpoints.Target(format='huggingface')
  path = checkpoints.convert(opened, tmp_path / 'hf', target).path
  lengths = {'inputs': 32, 'targets': 8}
  options = dict(vocabulary='bytes', feature_lengths=lengths)
  plain = calm_jax.load(path, **options)
  # The folder says that it has the run's five sentinels.
  assert plain.tokenizer.extra_ids == 5
  said = {token for one in plain.generate(TEXTS) for token in one.tokens}
  never = sorted(said - {1})[:3]
  (tmp_path / 'hf' / 'generation_config.json').write_text(
    json.dumps({'suppress_tokens': never, 'forced_bos_token_id': 77})
  )
  generator = calm_jax.load(path, **options)
  for output in generator.generate(TEXTS):
    assert output.tokens[0] == 77
    assert not set(never) & set(output.tokens)
  # Whoever says otherwise is obeyed.
  own = calm_jax.load(path, suppressed_tokens=(), forced_prefix='', **options)
  assert own.describe() == plain.describe()


@pytest.mark.slow
def test_a_certificate_covers_a_run_that_never_says_some_tokens(tmp_path):
  """Calibrated under its rule, it is served under its rule."""
  plain = runs.load_run(text_cases.save_run(tmp_path / 'plain'))
  path = tmp_path / 'run'
  said = checkpoints.GenerationRules(suppressed_tokens=(5, 9, 60))
  checkpoints.save(
    path,
    1,
    params=plain.params,
    config=plain.config,
    context={
      **checkpoints.load_params(tmp_path / 'plain').metadata['context'],
      **said.write(),
    },
  )
  run = runs.load_run(path)
  assert run.suppressed_tokens == (5, 9, 60)
  inputs = np.zeros((8, run.feature_lengths['inputs']), np.int32)
  inputs[:, :3] = [[row + 10, row + 20, 1] for row in range(8)]

  def certificate(**options):
    return evaluation.calibrate(
      decoding.bind(model.as_layered_decoder(run.config), run.params),
      [{'encoder_input_tokens': inputs, 'num_valid': 8}],
      POLICY,
      (0.9, 0.004),
      detokenize=lambda ids: ' '.join(map(str, ids)),
      max_length=run.feature_lengths['targets'],
      metric='token_f1',
      context=run.context(),
      **options,
    )

  covering = certificate(suppressed_tokens=run.suppressed_tokens)
  generator = calm_jax.load(path, certificate=covering)
  assert generator.generate(['one'])[0].certified
  with pytest.raises(ValueError, match='suppressed_tokens: certified for'):
    calm_jax.load(path, certificate=certificate())


def test_home_is_expanded_in_python_too(run_dir, monkeypatch):
  monkeypatch.setenv('HOME', os.path.dirname(run_dir))
  there = f'~/{os.path.basename(run_dir)}'
  own = calm_jax.load(run_dir)
  assert calm_jax.load(there).describe() == own.describe()
  path = runs.certificate_path(there)
  named = calm_jax.load(there, certificate=path)
  assert named.describe() == own.describe()
  opened = checkpoints.open_checkpoint(there)
  assert opened.step == own.source['step']


def test_texts_and_seeds_are_what_they_say(run_dir):
  generator = calm_jax.load(run_dir)
  outputs = generator.generate(text for text in TEXTS)
  assert outputs == generator.generate(TEXTS)
  for seed in (1.5, '1', True, None):
    with pytest.raises(ValueError, match='seed .* must be a whole number'):
      generator.generate(TEXTS, seed=seed)
  with pytest.raises(ValueError, match='rows of different lengths'):
    decoding.generate(generator.bound, [[2, 3], [4]], max_length=2)
