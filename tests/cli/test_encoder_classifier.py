"""Jobs of an encoder's classifier, from a task of classes to certificates."""

import json
import pathlib

import numpy as np
import pytest
from fakes import counting_task
from fakes.counting_task import bindings_of

gin = pytest.importorskip('gin')
pytest.importorskip('seqio', reason='the jobs read seqio Tasks')

from cases.job_cases import call

from calm_jax import (
  calibration,
  checkpoints,
  data,
  decoding,
  exits,
  records,
  runs,
  training,
)
from calm_jax.benchmarks import abuse, encoder_exit_rules, encoder_exits

# A whole chain of jobs: for `scripts/test.sh --all`.
pytestmark = pytest.mark.slow

STEPS = {'BATCH_SIZE': 16, 'training.warmup_cosine.warmup_steps': 5}
SETTINGS = (0.9, 0.6, 0.3)
PATIENCE = 'encoder_exit.rule.patience'


class Reference(str):
  """A value that gin reads as it is."""

  __repr__ = str.__str__


def with_classes(folder):
  """A task whose targets are the last word of three, and a model for it."""
  files = counting_task.write(folder)
  for split in ('train', 'validation', 'test'):
    path = folder / f'{split}.jsonl'
    rows = [
      {**row, 'targets': row['inputs'].split()[-1]}
      for row in records.read_jsonl(path)
    ]
    records.write_jsonl(path, rows)
  task = pathlib.Path(files['task'])
  text = task.read_text(encoding='utf-8')
  text = text.replace("'counting'", "'last_words'")
  text = text.replace('num_encoder_layers = 1', 'num_encoder_layers = 3')
  task.write_text(text, encoding='utf-8')
  return files


def job(name, files, **bindings):
  return call(
    name,
    [f'runs/{name}.gin', files['task']],
    **bindings_of(files),
    **bindings,
  )


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  files = with_classes(tmp_path_factory.mktemp('classes') / 'data')
  job('train', files, TRAIN_STEPS=10, **STEPS)
  evaluation = job('train_encoder_heads', files, TRAIN_STEPS=80, **STEPS)
  return files, evaluation


def calibrate(files, folder=None, **bindings):
  if folder is not None:
    bindings['OUTPUT_DIR'] = str(folder)
  return job(
    'calibrate_encoder',
    files,
    **{'SETTINGS': SETTINGS, 'TOLERANCE': 0.6, **bindings},
  )


def test_heads_are_measured_and_leave_the_model_alone(trained):
  files, evaluation = trained
  run = pathlib.Path(files['MODEL_DIR'])
  heads = runs.load_encoder_heads(run)
  assert heads.kernel.shape == (3, 32, 10)
  labels = runs.load_class_labels(run)
  assert labels.texts == tuple(sorted(counting_task._WORDS))
  read = records.read_record(
    run / 'encoder_heads' / 'evaluation.json', records.EncoderHeadEvaluation
  )
  assert read.layers == evaluation.layers and read.num_examples == 40
  # What temperatures were fitted on certifies nothing.
  rows = records.read_training_rows(run / records.TRAINING_ROWS_NAME)
  fitted = data.input_hashes('last_words', 'validation')
  np.testing.assert_array_equal(np.intersect1d(rows.selected, fitted), fitted)
  temperatures = runs.load_class_temperatures(run)
  assert temperatures == tuple(layer.temperature for layer in read.layers)
  assert all(layer.tempered_nll <= layer.nll for layer in read.layers)
  # Better than chance.
  assert max(layer.accuracy for layer in read.layers) > 0.2
  assert read.layers[-1].agreement == 1.0 and not read.with_encoder


def test_a_certificate_from_one_pass(trained):
  files, _ = trained
  run = pathlib.Path(files['MODEL_DIR'])
  certificate = calibrate(files)
  folder = run / 'encoder_calibration'
  assert calibration.Certificate.load(folder / 'certificate.json') == (
    certificate
  )
  table = records.read_loss_table(folder / 'loss_table.npz')
  assert np.isin(table.losses, (0.0, 1.0)).all()
  assert (np.diff(table.mean_exit_layers) <= 0).all()
  assert certificate.context['num_layers'] == 3
  rule = runs.policy_of(certificate, run).encoder_exit.rule
  assert isinstance(rule.measure, exits.Tempered)
  assert rule.measure.temperatures == runs.load_class_temperatures(run)
  # It may be attacked: within a budget, by the same rule.
  attacked = abuse.make_rule(
    threshold=None,
    certificate=str(folder / 'certificate.json'),
    run_dir=str(run),
    per_request=None,
    per_token=2,
    of_encoder=True,
  )
  assert attacked.per_token == 2
  assert decoding.describe(attacked.rule) == decoding.describe(rule)
  with pytest.raises(ValueError, match='trained or selected on'):
    calibrate(files, **{'calibrate_encoder.run.split': 'validation'})


def test_a_gate_patience_and_the_benchmark(trained, tmp_path):
  files, _ = trained
  run = files['MODEL_DIR']
  job('train_encoder_gate', files, TRAIN_STEPS=20, **STEPS)
  gated = calibrate(
    files,
    tmp_path / 'gated',
    EXIT_RULE=Reference('@exits.QuantileExit()'),
    LOSS='signed',
  )
  assert gated.loss_range == (-1.0, 1.0)
  described = gated.context['policy']['encoder_exit']['rule']
  assert described['type'] == 'QuantileExit'
  patience = calibrate(
    files,
    tmp_path / 'patience',
    EXIT_RULE=Reference('@exits.PatienceExit()'),
    SETTINGS=({PATIENCE: 2}, {PATIENCE: 1}),
  )
  assert patience.settings[1] == {PATIENCE: 1}
  for split in ('test', 'calibration'):
    training.write_npz(
      tmp_path / f'{split}.npz',
      data.tokenised_examples('last_words', split),
      metadata={},
    )
  output = tmp_path / 'rows.json'
  names = [
    tmp_path / name / 'certificate.json' for name in ('gated', 'patience')
  ]
  encoder_exits.main(
    [
      f'--run_dir={run}',
      f'--tokens={tmp_path}/test.npz',
      '--gate=encoder_gate',
      '--thresholds=0.9,0.3',
      f'--calibration={tmp_path}/calibration.npz',
      '--tolerances=0.5',
      f'--certificates={",".join(map(str, names))}',
      '--batch_sizes=1,4',
      '--num_timed=4',
      '--num_repeats=1',
      '--max_inputs=50',
      f'--output={output}',
    ]
  )
  rows = json.loads(output.read_text(encoding='utf-8'))['rows']
  assert rows[0]['rule'] == 'full encoder' and rows[0]['mean_layers'] == 3.0
  assert rows[0]['agreement'] == 1.0
  # Six rules with thresholds; of three layers two looks to wait, three depths.
  assert len(rows) == 1 + 6 * 2 + 2 + 3 + 8 + 2
  certified = [row for row in rows if row['rule'].startswith('certified')]
  assert len(certified) == 8 + 2
  for row in rows:
    timed = row in (rows[0], *certified)
    assert all((ms is not None) == timed for ms in row['milliseconds'])
  assert any(row['mean_layers'] < 3 for row in rows)
  for split, message in (('test', 'are in'), ('train', 'were trained')):
    path = tmp_path / f'{split}.npz'
    if split == 'train':
      examples = data.tokenised_examples('last_words', split)
      training.write_npz(path, examples, metadata={})
    with pytest.raises(SystemExit, match=message):
      encoder_exits.main(
        [
          f'--run_dir={run}',
          f'--tokens={tmp_path}/test.npz',
          f'--calibration={path}',
          '--batch_sizes=',
        ]
      )


def test_a_tuning_of_exit_rules(trained):
  """The fastest certified one of a space, by the clock; the gate is there."""
  files, _ = trained
  run = pathlib.Path(files['MODEL_DIR'])
  if not (run / 'encoder_gate').exists():
    job('train_encoder_gate', files, TRAIN_STEPS=20, **STEPS)
  tuning = call(
    'tune_encoder',
    [
      'runs/tune_encoder.gin',
      files['task'],
      'spaces/encoder_heads.gin',
    ],
    **bindings_of(files),
    TOLERANCE=0.9,
    BATCH_SIZE=4,
    THRESHOLDS=(0.9, 0.2),
    TIMES=({PATIENCE: 1},),
    SIMILARITIES=(0.5,),
    **{'evaluation.TuningPlan.repeats': 1},
  )
  names = {one.policy for one in tuning.candidates}
  assert names == {
    'maximum',
    'maximum, tempered',
    'margin',
    'patience',
    'similarity',
    'gate',
    'gate, quantile',
  }
  assert all(one.milliseconds > 0 for one in tuning.candidates)
  assert any(one.mean_exit_layer < 3 for one in tuning.candidates)
  folder = run / 'encoder_tuned'
  read = records.read_record(folder / 'tuned.json', records.Tuning)
  assert records.to_jsonable(read) == records.to_jsonable(tuning)
  assert (folder / 'tuned.html').exists()
  path = folder / 'certificate.json'
  if path.exists():
    certificate = calibration.Certificate.load(path)
    stops = runs.policy_of(certificate, run).encoder_exit
    assert type(stops.loop).__name__ == 'CompactedLayers'
    entry = encoder_exit_rules.certified_entry(path, run)
    assert entry.name == 'certified: textual 0.9'
    assert entry.method == 'tuned'
    assert entry.setting == 'nothing certified' or ', ' in entry.setting


def test_words_of_the_decoder_in_place_of_heads(trained, tmp_path):
  files, _ = trained
  run = pathlib.Path(files['MODEL_DIR'])
  evaluation = job('find_label_words', files)
  assert evaluation.steps == 0 and len(evaluation.layers) == 3
  assert runs.load_class_labels(run, name='label_words').texts == (
    runs.load_class_labels(run).texts
  )
  words = runs.load_encoder_heads(run, name='label_words')
  assert words.num_classes == 10
  certificate = calibrate(
    files, tmp_path / 'words', ENCODER_HEADS='label_words', TOLERANCE=0.9
  )
  found = runs.policy_of(certificate, run).encoder_exit
  assert found.heads.tree == words.tree
  temperatures = runs.load_class_temperatures(run, name='label_words')
  assert found.rule.measure.temperatures == temperatures
  training.write_npz(
    tmp_path / 'test.npz',
    data.tokenised_examples('last_words', 'test'),
    metadata={},
  )
  output = tmp_path / 'rows.json'
  encoder_exits.main(
    [
      f'--run_dir={run}',
      f'--tokens={tmp_path}/test.npz',
      '--heads=label_words',
      '--thresholds=0.3',
      '--rules=maximum',
      '--called=words: ',
      f'--certificates={tmp_path}/words/certificate.json',
      # Programs with a decoder in every branch take long to compile.
      '--batch_sizes=',
      f'--output={output}',
    ]
  )
  rows = json.loads(output.read_text(encoding='utf-8'))['rows']
  assert rows[0]['mean_layers'] == 3.0 and rows[0]['agreement'] == 1.0
  with pytest.raises(ValueError, match='label_words in .* holds words of lab'):
    runs.load_encoder_gate(run, heads='label_words')
  # What temperatures were fitted on certifies nothing, and no gate is theirs.
  chosen = records.read_training_rows(
    run / 'label_words' / records.TRAINING_ROWS_NAME
  ).selected
  assert (
    len(chosen)
    and not np.setdiff1d(
      chosen, data.input_hashes('last_words', 'validation')
    ).size
  )
  # Of other parameters they are refused.
  kept = run / 'label_words' / records.LABEL_WORDS_NAME
  text = kept.read_text(encoding='utf-8')
  broken = json.loads(text) | {'parameters': 'others'}
  kept.write_text(json.dumps(broken), encoding='utf-8')
  with pytest.raises(ValueError, match='are of the parameters others'):
    runs.load_encoder_heads(run, name='label_words')
  kept.write_text(text, encoding='utf-8')


def test_a_gate_and_its_heads_are_trained_together(trained, tmp_path):
  files, _ = trained
  run = pathlib.Path(files['MODEL_DIR'])
  before = runs.load_encoder_heads(run)
  joint = {
    'GATE_TARGET': 'cost_aware',
    'HIDDEN_UNITS': 0,
    'INPUTS': ('logits', 'power', 'layer'),
    'PER_LAYER': True,
    'GATE': 'joint_gate',
    'JOINT_HEADS': 'joint_heads',
  }
  job('train_encoder_gate', files, TRAIN_STEPS=20, **joint, **STEPS)
  gate = runs.load_encoder_gate(run, name='joint_gate', heads='joint_heads')
  assert gate.logits.shape == (2, 4, 1)
  heads = runs.load_encoder_heads(run, name='joint_heads')
  assert np.abs(heads.kernel - before.kernel).max() > 1e-3
  np.testing.assert_array_equal(
    runs.load_encoder_heads(run).kernel, before.kernel
  )
  assert len(runs.load_class_temperatures(run, name='joint_heads')) == 3
  certificate = calibrate(
    files,
    tmp_path / 'joint',
    ENCODER_HEADS='joint_heads',
    GATE='joint_gate',
    MEASURE=Reference('@runs.load_encoder_gate()'),
    TOLERANCE=0.9,
  )
  found = runs.policy_of(certificate, run).encoder_exit
  np.testing.assert_array_equal(found.heads.kernel, heads.kernel)
  np.testing.assert_array_equal(found.rule.measure.logits, gate.logits)
  with pytest.raises(ValueError, match='give the heads that it was trained'):
    runs.load_encoder_gate(run, name='joint_gate')
  # The same command goes on, into the same folders.
  job('train_encoder_gate', files, TRAIN_STEPS=20, **joint, **STEPS)
  said, held = (
    checkpoints.read_metadata(checkpoints.find_checkpoint(run / name))
    for name in ('joint_gate', 'joint_heads')
  )
  assert (
    said['context']['encoder_head_parameters']
    == (held['parameter_fingerprint'])
  )
  for name, folder, message in (
    ('JOINT_HEADS', 'encoder_heads', 'give three different folders'),
    ('GATE', 'other_gate', 'joint_heads holds something else'),
  ):
    bindings = {**joint, name: folder, **STEPS}
    with pytest.raises(ValueError, match=message):
      job('train_encoder_gate', files, TRAIN_STEPS=20, **bindings)


def test_a_task_without_validation_inputs_trains_heads(trained, tmp_path):
  files, _ = trained
  task = tmp_path / 'bare.gin'
  text = pathlib.Path(files['task']).read_text(encoding='utf-8')
  text = text.replace("'last_words'", "'bare_words'")
  text = text.replace("'validation': 'validation.jsonl',", '')
  task.write_text(text, encoding='utf-8')
  bare = {'ENCODER_HEADS': 'bare_heads', 'TRAIN_STEPS': 10, **STEPS}
  files = {**files, 'task': str(task)}
  assert job('train_encoder_heads', files, **bare) is None
  folder = pathlib.Path(files['MODEL_DIR']) / 'bare_heads'
  assert checkpoints.latest_step(folder) == 10
  assert not (folder / 'evaluation.json').exists()


def test_an_encoder_is_trained_with_its_heads(trained, tmp_path):
  files, _ = trained
  joint = tmp_path / 'joint'
  evaluation = job(
    'train_encoder_heads',
    files,
    TRAIN_STEPS=20,
    JOINT_DIR=str(joint),
    **STEPS,
  )
  assert evaluation.with_encoder
  made, before = runs.load_run(joint), runs.load_run(files['MODEL_DIR'])
  assert made.fingerprint != before.fingerprint
  assert made.step == before.step + 20
  assert made.tokenizer.fingerprint == before.tokenizer.fingerprint
  assert runs.load_encoder_heads(joint).num_layers == 3
  assert checkpoints.latest_step(joint / 'joint_training') == 20
  seen = records.read_training_rows(joint / records.TRAINING_ROWS_NAME)
  assert len(seen.trained) == 700
  calibrate({**files, 'MODEL_DIR': str(joint)})
  with pytest.raises(ValueError, match='directory of the model itself'):
    job(
      'train_encoder_heads',
      files,
      JOINT_DIR=files['MODEL_DIR'],
      TRAIN_STEPS=20,
      **STEPS,
    )
  with pytest.raises(ValueError, match="cannot be called 'joint_training'"):
    job(
      'train_encoder_heads',
      files,
      JOINT_DIR=str(tmp_path / 'other'),
      ENCODER_HEADS='joint_training',
      TRAIN_STEPS=20,
      **STEPS,
    )
  with pytest.raises(ValueError, match='no joint training wrote'):
    job(
      'train_encoder_heads',
      {**files, 'MODEL_DIR': str(joint)},
      JOINT_DIR=files['MODEL_DIR'],
      TRAIN_STEPS=20,
      **STEPS,
    )


def test_targets_that_are_no_classes_are_refused(trained, tmp_path):
  files, _ = trained
  other = counting_task.write(tmp_path / 'data')
  task = pathlib.Path(other['task'])
  text = task.read_text(encoding='utf-8').replace("'counting'", "'sentences'")
  task.write_text(text, encoding='utf-8')
  bindings = {**other, 'MODEL_DIR': files['MODEL_DIR']}
  bindings['VOCABULARY'] = files['VOCABULARY']
  with pytest.raises(ValueError, match='which are none of the'):
    job(
      'train_encoder_heads',
      bindings,
      TRAIN_STEPS=2,
      ENCODER_HEADS='sentence_heads',
      **{**STEPS, 'training.warmup_cosine.warmup_steps': 1},
    )
