"""From a folder of Hugging Face's to a certified early exit: three commands.

The model is tiny and random, and has inputs and no references, as whoever comes
with a finished checkpoint has.
"""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest

gin = pytest.importorskip('gin')
pytest.importorskip('seqio', reason='the jobs read seqio Tasks')

from cases import checkpoint_cases
from cases.job_cases import call

from calm_jax import checkpoints, data, decoding, model, pipeline, records, runs
from calm_jax.calibration.certificate import Certificate
from calm_jax.checkpoints import parameter_names
from calm_jax.cli import convert, run_inputs
from calm_jax.tokenizer import load_tokenizer, train_sentencepiece

# Three jobs and two more: half a minute.
pytestmark = pytest.mark.slow
CONFIG = dataclasses.replace(checkpoint_cases.V1_1, vocab_size=40)
TRAIN = ['runs/train_exits.gin', 'tasks/input_lines.gin']
CALIBRATE = [
  'runs/calibrate.gin',
  'tasks/input_lines.gin',
  'policies/adapted_exits.gin',
]
INPUTS = [f'word {n} apple {n * 7}' for n in range(120)]
PLAN = {
  'TRAIN_STEPS': 60,
  'BATCH_SIZE': 16,
  'LEARNING_RATE': 2e-2,
  'RANK': 4,
  'LENGTH_BUCKETS': (),
  'training.warmup_cosine.warmup_steps': 4,
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A folder of Hugging Face's, with its vocabulary, and a file of inputs."""
  path = tmp_path_factory.mktemp('hf')
  train_sentencepiece(INPUTS, path / 'spiece.model', vocab_size=30)
  arrays = checkpoint_cases.arrays(CONFIG)
  # Sure of some tokens, as random weights are not.
  arrays['decoder/logits_dense/kernel'] *= 3.0
  checkpoints.convert(
    checkpoints.from_params(parameter_names.nested(arrays), CONFIG, step=1),
    path / 'model',
    checkpoints.Target(
      format='huggingface',
      tokenizer=load_tokenizer(path / 'spiece.model', extra_ids=4),
    ),
  )
  (path / 'inputs.txt').write_text('\n'.join(INPUTS) + '\n', encoding='utf-8')
  return path


@pytest.fixture(scope='module')
def run(folder):
  """The run that the first two commands leave."""
  convert.run(
    folder / 'model',
    folder / 'run',
    checkpoints.Target(format='calm_jax'),
    texts=runs.TextFeatures(
      folder / 'model' / 'spiece.model',
      feature_lengths={'inputs': 16, 'targets': 6},
    ),
  )
  before = fingerprints(folder / 'run')
  evaluation = call('train_exits', TRAIN, **bindings(folder), **PLAN)
  assert fingerprints(folder / 'run') == before
  return folder / 'run', evaluation


def bindings(folder, **more):
  return dict(
    MODEL_DIR=str(folder / 'run'),
    INPUT_LINES=str(folder / 'inputs.txt'),
    **more,
  )


def fingerprints(run_dir):
  """Of the parameters as they are read, and of the files that hold them."""
  path = checkpoints.find_checkpoint(run_dir)
  files = sorted(pathlib.Path(path).rglob('*'))
  return (
    checkpoints.parameter_fingerprint(checkpoints.load_params(run_dir)[0]),
    [(file.name, file.read_bytes()) for file in files if file.is_file()],
  )


@pytest.fixture(scope='module')
def certificate(run, folder):
  return call(
    'calibrate',
    CALIBRATE,
    **bindings(folder, TOLERANCE=0.6),
    **{
      'evaluation.CalibrationPlan.settings': (0.9, 0.5, 0.1),
      'evaluation.BatchLayout.batch_size': 16,
    },
  )


def test_the_model_teaches_its_early_layers(run, folder, capsys):
  run_dir, evaluation = run
  found = records.read_record(
    run_dir / 'exit_adapters' / 'evaluation.json',
    records.ExitAdapterEvaluation,
  )
  assert found.agreements == evaluation.agreements and found.steps == 60
  for near, far in zip(
    found.divergences, found.divergences_before, strict=True
  ):
    assert near < far
  assert sum(found.agreements) > sum(found.agreements_before) + 0.1
  assert runs.load_exit_adapters(run_dir).rank == 4
  # Again: it goes on, and nothing is decoded.
  decodes = sorted((run_dir / 'decodes').rglob('rows-*'))
  again = call('train_exits', TRAIN, **bindings(folder), **PLAN)
  assert again.agreements == found.agreements
  assert sorted((run_dir / 'decodes').rglob('rows-*')) == decodes
  assert 'is there already' in capsys.readouterr().out


def test_an_early_exit_is_certified_and_served(run, folder, certificate):
  """Calibrated on inputs alone, by the distance to the full model."""
  run_dir, _ = run
  assert certificate.certified and certificate.threshold < 0.9
  assert certificate.context['loss'] == 'textual'
  policy = runs.policy_of(certificate, run_dir)
  assert isinstance(policy.readout, decoding.AdaptedVocabulary)
  (output,) = call(
    'generate',
    ['runs/generate.gin', 'policies/adapted_exits.gin'],
    MODEL_DIR=str(run_dir),
    INPUTS='word 3 apple 21',
  )
  assert output.certified
  assert min(output.exit_layers) < CONFIG.num_decoder_layers
  generator = pipeline.load(
    run_dir, policy=policy, certificate=run_dir / 'calibration/certificate.json'
  )
  (same,) = generator.generate(['word 3 apple 21'])
  assert same.tokens == output.tokens
  # At full depth it is the checkpoint that came.
  params, config, _ = checkpoints.load(folder / 'model')
  bound = decoding.bind(model.as_layered_decoder(config), params)
  tokenizer = generator.tokenizer
  inputs = np.array([[*tokenizer.encode('word 3 apple 21'), tokenizer.eos_id]])
  full, adapted = (
    jax.device_get(decoding.generate(bound, inputs, policy=one, max_length=6))
    for one in (None, decoding.with_setting(policy, 1.0))
  )
  for name in ('tokens', 'exit_layers', 'scores'):
    np.testing.assert_array_equal(getattr(full, name), getattr(adapted, name))


def test_it_is_exported(run, certificate, tmp_path, capsys):
  call(
    'export',
    ['runs/export.gin', 'policies/adapted_exits.gin'],
    MODEL_DIR=str(run[0]),
    OUTPUT_DIR=str(tmp_path / 'artifact'),
    **{'deployment.ProgramPlan.platforms': ('cpu',)},
  )
  printed = capsys.readouterr().out
  assert 'certificate.json holds: ' in printed
  assert 'tokens on cpu 0 differ from the run' in printed


def test_other_adapters_void_the_certificate(run, folder, certificate):
  """Trained otherwise, under another name, for the same model."""
  run_dir, _ = run
  plan = {**PLAN, 'TRAIN_STEPS': 5}
  others = {'EXIT_ADAPTERS': 'others'}
  call('train_exits', TRAIN, **bindings(folder), **plan, **others)
  with pytest.raises(ValueError, match=r'adapters\.scale: certified for'):
    call(
      'generate',
      ['runs/generate.gin', 'policies/adapted_exits.gin'],
      MODEL_DIR=str(run_dir),
      INPUTS='word 3 apple 21',
      **others,
    )
  assert Certificate.load(run_dir / 'calibration/certificate.json').certified


def test_inputs_that_adapters_learnt_from_are_refused(run, folder):
  """Although a run that was converted has no list of its own."""
  run_dir, _ = run
  task = run_inputs.inputs_of_run(str(run_dir), str(folder / 'inputs.txt'))
  learnt = [row.inputs for row in task.read_splits()['train']]
  (folder / 'learnt.txt').write_text('\n'.join(learnt), encoding='utf-8')
  given = {**bindings(folder), 'INPUT_LINES': str(folder / 'learnt.txt')}
  with pytest.raises(ValueError, match='were used by the training run'):
    call(
      'calibrate',
      CALIBRATE,
      **given,
      SHARES={'calibration': 1.0},
      OUTPUT_DIR=str(folder / 'refused'),
    )


def test_bad_files_are_named(run, tmp_path):
  run_dir = str(run[0])
  with pytest.raises(FileNotFoundError, match='there is no input file'):
    run_inputs.inputs_of_run(run_dir, str(tmp_path / 'none.txt'))
  (tmp_path / 'bad.txt').write_text('one\n\ntwo\n', encoding='utf-8')
  with pytest.raises(ValueError, match=r'bad\.txt line 2 is empty; mend it'):
    run_inputs.inputs_of_run(run_dir, str(tmp_path / 'bad.txt'))
  (tmp_path / 'good 1.jsonl').write_text('{"inputs": "one"}', encoding='utf-8')
  found = run_inputs.inputs_of_run(run_dir, str(tmp_path / 'good 1.jsonl'))
  assert (found.name, found.inputs) == ('inputs_good_1', ('one',))
  assert isinstance(found, data.TextInputs) and found.extra_ids == 4
