"""The export job: a run directory in, an artifact that decodes like it out."""

import dataclasses
import shutil
import types

import jax
import numpy as np
import pytest
from cases import checkpoint_cases

gin = pytest.importorskip('gin')

from calm_jax import (
  calibration,
  checkpoints,
  decoding,
  deployment,
  model,
  pipeline,
  runs,
)
from calm_jax.checkpoints import parameter_names
from calm_jax.cli import export as export_job
from calm_jax.cli import gin_runner
from calm_jax.tokenizer import VOCABULARY_NAME, train_sentencepiece

CONFIG = dataclasses.replace(checkpoint_cases.V1_1, vocab_size=40)
FILES = ['runs/export.gin', 'policies/softmax_margin.gin']


@pytest.fixture(scope='module')
def run_dir(tmp_path_factory):
  """A run directory with a certificate for policies/softmax_margin.gin."""
  folder = tmp_path_factory.mktemp('run')
  vocabulary = folder / VOCABULARY_NAME
  texts = [f'word {n} apple {n * 7}' for n in range(200)]
  train_sentencepiece(texts, vocabulary, vocab_size=30)
  params = parameter_names.nested(checkpoint_cases.arrays(CONFIG))
  checkpoints.save(
    folder,
    3,
    params=params,
    config=CONFIG,
    context=runs.TextFeatures(
      str(vocabulary),
      extra_ids=4,
      feature_lengths={'inputs': 19, 'targets': 5},
      prefix='say: ',
    ).context(CONFIG.vocab_size),
  )
  gin_runner.parse(FILES[1:])
  policy = gin.config.query_parameter('%POLICY').scoped_configurable_fn()
  save_certificate(folder, policy)
  return folder


def save_certificate(run, policy, *, losses=0.0, weights='float'):
  """Saves a certificate of the lowest threshold, or of none."""
  certificate = calibration.calibrate(
    np.full((100, 2), losses),
    (0.9, 0.7),
    tolerance=0.1,
    error_rate=0.05,
    context={
      **runs.load_run(run).context(),
      'policy': decoding.describe(policy),
      'sampler': decoding.describe(decoding.Greedy()),
      'max_length': 5,
      'weights': weights,
    },
  )
  certificate.save(run / 'calibration' / 'certificate.json')
  return certificate


def export(files=FILES, *, dry_run=False, **bindings):
  """Runs the job in this process, as its main would."""
  gin_runner.parse(
    files, [f'{name} = {value!r}' for name, value in bindings.items()]
  )
  run = gin.get_configurable('calm_jax.cli.export.run')
  return run(**({'dry_run': True} if dry_run else {}))


@pytest.fixture(scope='module')
def exported(run_dir, tmp_path_factory):
  path = tmp_path_factory.mktemp('exported') / 'artifact'
  export(MODEL_DIR=str(run_dir), OUTPUT_DIR=str(path))
  return deployment.load_artifact(path)


def test_the_artifact_decodes_as_the_run_does(run_dir, exported):
  """At the certified threshold, without being told."""
  gin_runner.parse(FILES[1:])
  generator = pipeline.TextGenerator.from_run(
    run_dir,
    policy=gin.config.query_parameter('%POLICY').scoped_configurable_fn(),
    certificate=run_dir / 'calibration' / 'certificate.json',
  )
  tokenizer = generator.tokenizer
  left_early = 0
  for text in ('apple', 'word 3'):
    (wanted,) = generator.generate([text])
    prefix = exported.manifest.context['prefix']
    tokens = [*tokenizer.encode(prefix + text), tokenizer.eos_id]
    found = exported([tokens])
    length = found['lengths'][0]
    assert tuple(found['tokens'][0, :length]) == wanted.tokens
    assert tuple(found['exit_layers'][0, :length]) == wanted.exit_layers
    left_early += sum(layers < 3 for layers in wanted.exit_layers)
  # So that the threshold matters.
  assert left_early


def test_the_manifest_says_what_it_is_of(run_dir, exported):
  manifest = exported.manifest
  loaded = runs.load_run(run_dir)
  fingerprint = checkpoints.parameter_fingerprint(loaded.params)
  assert manifest.parameter_fingerprint == fingerprint
  assert manifest.tokenizer_fingerprint == loaded.tokenizer.fingerprint
  assert manifest.certificate['threshold'] == 0.7
  assert 'P(E[loss] <= 0.1) >= 0.95' in manifest.certificate['statement']
  assert (manifest.source_length, manifest.max_length) == (19, 5)
  assert manifest.platforms == ('cpu', 'cuda', 'tpu')
  assert manifest.versions['jax'] == jax.__version__
  assert model.T5Config(**manifest.context['model']) == CONFIG


def test_dry_run_says_what_would_be_and_writes_nothing(
  run_dir, tmp_path, capsys
):
  path = tmp_path / 'artifact'
  arguments = dict(MODEL_DIR=str(run_dir), OUTPUT_DIR=str(path))
  assert export(dry_run=True, **arguments) is None
  printed = capsys.readouterr().out
  size = sum(a.nbytes for a in checkpoint_cases.arrays(CONFIG).values())
  assert f'{size:,} bytes' in printed
  assert 'input tokens: int32[b, 19]' in printed
  assert 'input threshold: float32[]' in printed
  assert 'platforms: cpu, cuda, tpu' in printed and 'holds' in printed
  assert printed.rstrip().endswith('would be written; nothing was')
  assert not list(tmp_path.iterdir())


def test_a_certificate_of_something_else_is_not_claimed(
  run_dir, tmp_path, capsys
):
  other = [FILES[0], 'policies/state_similarity.gin']
  arguments = dict(MODEL_DIR=str(run_dir), OUTPUT_DIR=str(tmp_path / 'a'))
  with pytest.raises(
    ValueError, match=r'policy.*measure: certified for .*UNCERTIFIED'
  ):
    export(other, dry_run=True, **arguments)
  longer = {**arguments, 'deployment.ProgramPlan.max_length': 6}
  with pytest.raises(ValueError, match='max_length: certified for 5, got 6'):
    export(dry_run=True, **longer)
  export(dry_run=True, **longer, ALLOW_UNCERTIFIED=True)
  assert 'UNCERTIFIED: ' in capsys.readouterr().out


def test_the_full_model_is_called_so_only_where_it_is(
  tmp_path, run_dir, capsys
):
  """Nothing was certified: threshold 1 must then be the full model."""
  run = tmp_path / 'run'
  shutil.copytree(run_dir, run)
  pruned = [FILES[0], 'policies/softmax_margin_pruned.gin']
  arguments = dict(MODEL_DIR=str(run), OUTPUT_DIR=str(tmp_path / 'artifact'))
  for files, final in ((FILES, None), (pruned, 'full'), (pruned, 'pruned')):
    bindings = dict(arguments)
    if final is not None:
      bindings |= {
        'decoding.PrunedVocabulary.final': final,
        'decoding.PrunedVocabulary.num_blocks': 3,
      }
    gin_runner.parse(
      files, [f'{name} = {value!r}' for name, value in bindings.items()]
    )
    policy = gin.config.query_parameter('%POLICY').scoped_configurable_fn()
    save_certificate(run, policy, losses=0.9)
    if final == 'pruned':
      with pytest.raises(ValueError, match='at threshold 1 it is not the full'):
        export(files, dry_run=True, **bindings)
      bindings['ALLOW_UNCERTIFIED'] = True
    export(files, dry_run=True, **bindings)
  assert 'UNCERTIFIED: ' in capsys.readouterr().out


def test_what_is_there_is_not_overwritten(run_dir, tmp_path):
  with pytest.raises(FileExistsError, match='is there already'):
    export(MODEL_DIR=str(run_dir), OUTPUT_DIR=str(tmp_path))


@pytest.fixture
def int8_run(run_dir, tmp_path):
  """The run with a certificate for weights in 8 bits."""
  run = shutil.copytree(run_dir, tmp_path / 'run')
  gin_runner.parse(FILES[1:])
  policy = gin.config.query_parameter('%POLICY').scoped_configurable_fn()

  def certify(losses=0.0):
    save_certificate(run, policy, losses=losses, weights={'type': 'int8'})
    return run

  certify()
  return run, certify


@pytest.mark.slow
def test_weights_in_8_bits_are_exported_under_their_own_certificate(
  int8_run, exported, tmp_path, capsys
):
  path = tmp_path / 'artifact'
  arguments = dict(MODEL_DIR=str(int8_run[0]), OUTPUT_DIR=str(path))
  export(WEIGHTS='int8', **arguments)
  printed = capsys.readouterr().out
  assert 'certificate.json holds: ' in printed
  assert 'tokens on cpu 0 differ from the run' in printed
  found = deployment.load_artifact(path)
  assert found.manifest.weights == {'type': 'int8'}
  assert found.manifest.certificate['threshold'] == 0.7
  # Of the float parameters, as certificates name them.
  fingerprint = exported.manifest.parameter_fingerprint
  assert found.manifest.parameter_fingerprint == fingerprint


def test_a_certificate_of_other_weights_does_not_hold(
  run_dir, int8_run, tmp_path
):
  out = str(tmp_path / 'artifact')
  words = 'weights: certified for {}, got {}.*ALLOW_UNCERTIFIED'
  of_float, of_int8 = "'float'", "{'type': 'int8'}"
  with pytest.raises(ValueError, match=words.format(of_float, of_int8)):
    export(dry_run=True, MODEL_DIR=str(run_dir), OUTPUT_DIR=out, WEIGHTS='int8')
  of_run = dict(MODEL_DIR=str(int8_run[0]), OUTPUT_DIR=out)
  with pytest.raises(ValueError, match=words.format(of_int8, of_float)):
    export(dry_run=True, **of_run)
  # A reference, which `export` would write as a string.
  of_run['quantisation.Int8Weights.encoder'] = True
  bindings = [f'{name} = {value!r}' for name, value in of_run.items()]
  gin_runner.parse(FILES, [*bindings, 'WEIGHTS = @quantisation.Int8Weights()'])
  run = gin.get_configurable('calm_jax.cli.export.run')
  with pytest.raises(ValueError, match=r'weights\.encoder: certified for None'):
    run(dry_run=True)


def test_where_nothing_was_certified_of_them_float_ones_are_asked_for(
  int8_run, tmp_path
):
  run, certify = int8_run
  certify(losses=0.9)
  with pytest.raises(ValueError, match="weights: nothing .* WEIGHTS = 'float'"):
    export(
      dry_run=True,
      MODEL_DIR=str(run),
      OUTPUT_DIR=str(tmp_path / 'artifact'),
      WEIGHTS='int8',
    )


def test_other_weights_are_refused(run_dir, tmp_path):
  arguments = dict(MODEL_DIR=str(run_dir), OUTPUT_DIR=str(tmp_path / 'a'))
  with pytest.raises(ValueError, match="weights is 'int4'; give 'float', 'int"):
    export(WEIGHTS='int4', **arguments)


def test_checked_drafts_are_exported_without_a_certificate(capsys):
  """Not with another policy's, which lies where certificates do."""
  policy = decoding.ComputePolicy(
    cache_fill=decoding.CatchUp(), verification=decoding.VerifyEvery(3)
  )
  spec = types.SimpleNamespace(policy=policy)
  found = export_job._find_certificate(None, 'nowhere', None, spec, None, False)
  assert found is None
  assert "outputs are the full model's" in capsys.readouterr().out
