"""From a folder of Hugging Face's to a certified early exit: three commands.

And a fourth, for a gate beside the adapters.

The model is tiny and random, and has inputs and no references, as whoever comes
with a finished checkpoint has.
"""

import dataclasses
import json
import pathlib
import shutil

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
GATES = ['runs/train_gates.gin', 'tasks/input_lines.gin']
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
  return calibrate(folder, CALIBRATE)


def calibrate(folder, files, **more):
  return call(
    'calibrate',
    files,
    **bindings(folder, TOLERANCE=0.6, **more),
    **{
      'evaluation.CalibrationPlan.settings': (0.9, 0.5, 0.1),
      'evaluation.BatchLayout.batch_size': 16,
    },
  )


def train_gate(folder, **changes):
  plan = {name: PLAN[name] for name in PLAN if name != 'RANK'}
  given = {'EXIT_ADAPTERS': 'exit_adapters', 'HIDDEN_UNITS': 8}
  given = {**bindings(folder, **plan), **given, **changes}
  return call('train_gates', GATES, **given)


@pytest.fixture(scope='module')
def gated(run, folder):
  """The run with a gate beside its adapters, and a certificate for both."""
  before = fingerprints(run[0]), list_of(run[0] / 'exit_adapters')
  evaluation = train_gate(folder)
  assert before == (fingerprints(run[0]), list_of(run[0] / 'exit_adapters'))
  files = [*CALIBRATE[:2], 'policies/adapted_gate.gin']
  certified = calibrate(
    folder, files, OUTPUT_DIR=str(run[0] / 'gate_calibration')
  )
  return run[0], evaluation, certified


def list_of(path):
  return [(file, file.stat().st_mtime_ns) for file in sorted(path.rglob('*'))]


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


def test_a_gate_learns_from_what_the_model_said(run, gated):
  """Its layers agree as the adapters' own evaluation says that they do."""
  _, of_adapters = run
  run_dir, evaluation, _ = gated
  agreements = [layer.agreement for layer in evaluation.layers]
  np.testing.assert_allclose(agreements, of_adapters.agreements, rtol=1e-6)
  assert evaluation.num_tokens == of_adapters.num_tokens
  read = records.read_record(
    run_dir / 'gate' / 'evaluation.json', records.GateEvaluation
  )
  assert read.depths == evaluation.depths and read.steps == 60
  # It begins at knowing nothing. (Of held-out tokens there are too few here:
  # one exit agrees on half of them, which no gate can beat by much.)
  lines = (run_dir / 'gate' / 'train_log.jsonl').read_text(encoding='utf-8')
  logged = [json.loads(line) for line in lines.splitlines()]
  losses = [line['exit_losses'] for line in logged if line['kind'] == 'train']
  assert len(losses) >= 2
  assert all(np.array(losses[-1]) < np.minimum(losses[0], np.log(2.0)))


def test_a_gate_beside_adapters_is_certified_served_and_exported(
  gated, tmp_path, capsys
):
  run_dir, _, certificate = gated
  assert certificate.certified and certificate.threshold < 0.9
  path = str(run_dir / 'gate_calibration' / 'certificate.json')
  policy = runs.policy_of(certificate, run_dir)
  assert decoding.describe(policy.readout.adapters) == decoding.describe(
    runs.load_exit_adapters(run_dir)
  )
  assert decoding.describe(policy.exit_rule.measure) == decoding.describe(
    runs.load_gate(run_dir, exit_adapters='exit_adapters')
  )
  given = dict(MODEL_DIR=str(run_dir), CERTIFICATE=path)
  (output,) = call(
    'generate',
    ['runs/generate.gin', 'policies/adapted_gate.gin'],
    INPUTS='word 3 apple 21',
    **given,
  )
  assert output.certified
  assert min(output.exit_layers) < CONFIG.num_decoder_layers
  call(
    'export',
    ['runs/export.gin', 'policies/adapted_gate.gin'],
    OUTPUT_DIR=str(tmp_path / 'artifact'),
    **given,
    **{'deployment.ProgramPlan.platforms': ('cpu',)},
  )
  printed = capsys.readouterr().out
  assert 'certificate.json holds: ' in printed
  assert 'tokens on cpu 0 differ from the run' in printed


@pytest.mark.parametrize(
  ('changes', 'error', 'words'),
  [
    (
      {'EXIT_ADAPTERS': 'nowhere'},
      FileNotFoundError,
      'no set of exit adapters in .*nowhere; run calm_jax.cli.train_exits',
    ),
    (
      {'EXIT_ADAPTERS': 'gate'},
      ValueError,
      "gate is no set of exit adapters: it holds the parameters \\['gate'",
    ),
    ({'EXIT_ADAPTERS': '../run'}, ValueError, 'folder of its own'),
    (
      {'EXIT_ADAPTERS': None, 'GATE': 'plain'},
      ValueError,
      'inputs alone, and train_gates learns from targets.*EXIT_ADAPTERS',
    ),
    (
      {'INPUT_LINES': 'others.txt', 'GATE': 'other'},
      ValueError,
      'outputs_train.npz is not of this run and Task: task: expected',
    ),
    (
      {'data.DataPlan.pack': True, 'GATE': 'packed'},
      ValueError,
      'pack is True: leave it out',
    ),
  ],
)
def test_a_gate_of_what_is_not_there_is_refused(
  gated, folder, changes, error, words, monkeypatch
):
  (folder / 'others.txt').write_text('\n'.join(INPUTS[1:]), encoding='utf-8')
  monkeypatch.chdir(folder)
  before = sorted((folder / 'run').iterdir())
  with pytest.raises(error, match=words):
    train_gate(folder, **changes)
  assert sorted((folder / 'run').iterdir()) == before


def test_outputs_that_are_missing_are_named(gated, folder, tmp_path):
  path = gated[0] / 'exit_adapters' / 'outputs_validation.npz'
  shutil.move(path, tmp_path)
  try:
    with pytest.raises(
      FileNotFoundError, match='no outputs_validation.npz in .*: run calm_jax'
    ):
      train_gate(folder, GATE='later')
  finally:
    shutil.move(tmp_path / path.name, path)


def test_a_policy_without_its_adapters_does_not_load_the_gate(gated):
  with pytest.raises(ValueError, match='but no adapters are given: give exit_'):
    call(
      'generate',
      ['runs/generate.gin', 'policies/gate.gin'],
      MODEL_DIR=str(gated[0]),
      INPUTS='word 3 apple 21',
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
