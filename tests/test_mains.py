"""Every main explains itself, and the jobs work end to end on a tiny run."""

import dataclasses
import json
import pathlib
import shutil
import subprocess
import sys

import pytest
from cases import training_cases
from fakes import counting_task
from fakes.counting_task import bindings_of

gin = pytest.importorskip('gin')
pytest.importorskip('seqio', reason='the jobs read seqio Tasks')

from calm_jax import data, decoding, pipeline, records, runs, training
from calm_jax.calibration.certificate import Certificate
from calm_jax.cli import gin_runner, jobs, train

MAINS = sorted(
  path.stem
  for path in pathlib.Path(gin_runner.__file__).parent.glob('*.py')
  if "if __name__ == '__main__'" in path.read_text(encoding='utf-8')
)


def run_main(name, *arguments):
  return subprocess.run(
    [sys.executable, '-m', f'calm_jax.cli.{name}', *arguments],
    capture_output=True,
    text=True,
    check=False,
  )


def test_there_are_the_mains_of_the_readme():
  assert MAINS == [
    'build_vocabulary',
    'calibrate',
    'convert',
    'evaluate',
    'export',
    'generate',
    'report',
    'tokenize',
    'train',
    'train_classifier',
    'validate',
  ]


@pytest.mark.parametrize('name', MAINS)
def test_help_teaches(name):
  result = run_main(name, '--help')
  text = result.stdout + result.stderr
  assert f'python -m calm_jax.cli.{name}' in text
  # Those that are not configured by gin have flags of their own.
  own = {
    'build_vocabulary': '--vocab_size',
    'convert': '--source',
    'report': '--run_dir',
    'validate': '--table',
  }
  assert own.get(name, '--gin_file') in text


def test_dry_run_prints_the_configuration_and_runs_nothing(tmp_path):
  directory = tmp_path / 'run'
  result = run_main(
    'generate',
    '--gin_file=runs/generate.gin',
    '--gin_file=policies/softmax_margin.gin',
    f'--gin.MODEL_DIR={directory}',
    '--gin.INPUTS=hello',
    '--dry_run',
  )
  assert result.returncode == 0, result.stderr
  assert 'exits.DecayingThreshold.temperature = 4.0' in result.stdout
  assert not directory.exists()


def test_bad_configurations_end_in_one_line(tmp_path):
  result = run_main('train', '--gin_file=runs/trian.gin')
  assert result.returncode != 0
  assert "no gin file 'runs/trian.gin'" in result.stderr
  assert 'Traceback' not in result.stderr


@pytest.mark.slow
def test_a_directory_that_cannot_be_written_ends_in_one_line():
  result = run_main(
    'train',
    '--gin_file=runs/train.gin',
    '--gin_file=models/demo.gin',
    '--gin_file=tasks/embedded_corpus.gin',
    '--gin.MODEL_DIR=/proc/run',
  )
  assert result.returncode == 1
  assert 'model_dir: cannot write to /proc/run' in result.stderr
  assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
  'given,message',
  [
    (('--process_count=2',), 'but no --coordinator_address'),
    (
      ('--process_count=2', '--coordinator_address=a:1', '--process_index=0'),
      'this job runs in one process',
    ),
  ],
)
def test_flags_of_several_processes_end_in_one_line(given, message):
  result = run_main(
    'generate',
    '--gin_file=runs/generate.gin',
    '--gin_file=policies/softmax_margin.gin',
    '--gin.MODEL_DIR=nowhere',
    *given,
  )
  assert result.returncode == 1
  assert message in result.stderr
  assert len(result.stderr.strip().splitlines()) == 1


def test_an_unknown_flag_ends_in_a_hint():
  result = run_main('train', '--gin_file=runs/train.gin', '--nonsense')
  assert result.returncode != 0
  assert "Unknown command line flag 'nonsense'" in result.stderr
  assert 'Traceback' not in result.stderr


def call(job, files, *, dry_run=False, **bindings):
  """Runs a job in this process, as its main would."""
  gin_runner.parse(
    files, [f'{name} = {value!r}' for name, value in bindings.items()]
  )
  run = gin.get_configurable(f'calm_jax.cli.{job}.run')
  return run(**({'dry_run': True} if dry_run else {}))


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  return counting_task.write(tmp_path_factory.mktemp('counting'))


@pytest.fixture(scope='module')
def trained(files):
  result = call(
    'train',
    ['runs/train.gin', 'policies/softmax_margin.gin', files['task']],
    **bindings_of(files),
    TRAIN_STEPS=120,
    BATCH_SIZE=32,
    LEARNING_RATE=5e-3,
    DECODE_EVERY=100,
    **{
      'decoding_evaluator.DecodingPlan.max_examples': 8,
      'training.Plan.eval_every': 50,
      'training.warmup_cosine.warmup_steps': 10,
      'data.DataPlan.length_buckets': ((12, 12),),
    },
  )
  assert result.step == 120
  return files


@pytest.fixture(scope='module')
def calibrated(trained):
  call(
    'calibrate',
    [
      'runs/calibrate.gin',
      'policies/softmax_margin.gin',
      trained['task'],
    ],
    **bindings_of(trained),
    TOLERANCE=0.3,
    TIMED_INPUTS=1,
    **{'calibrate.run.thresholds': (0.8, 0.4), 'calibrate.run.batch_size': 26},
  )
  return trained


def test_training_leaves_a_run_directory(trained):
  run = runs.load_run(trained['MODEL_DIR'])
  assert run.config.num_decoder_layers == 3
  folder = pathlib.Path(trained['MODEL_DIR'])
  rows = list(records.read_jsonl(folder / 'train_log.jsonl'))
  losses = [row['loss'] for row in rows if row['kind'] == 'train']
  assert losses[-1] < losses[0]
  for name in 'train.gin vocabulary.model parameters.txt losses.png'.split():
    assert (folder / name).exists(), name
  assert list((folder / 'tensorboard' / 'train').iterdir())


def test_training_decodes_on_the_way(trained):
  rows = records.read_jsonl(
    pathlib.Path(trained['MODEL_DIR']) / 'train_log.jsonl'
  )
  rows = [row for row in rows if row['kind'] == 'evaluation']
  # Asked for every 100 steps, possible every 50, and at the end.
  decoded = {row['step']: 'full_rouge_l' in row for row in rows}
  assert decoded == {50: False, 100: True, 120: True}
  assert rows[-1]['full_mean_exit_layer'] == 3.0
  assert 1.0 <= rows[-1]['early_mean_exit_layer'] <= 3.0


def test_a_dry_run_of_training_says_what_it_would_hold(files, tmp_path, capsys):
  directory = tmp_path / 'run'
  result = call(
    'train',
    ['runs/train.gin', files['task']],
    dry_run=True,
    **{**bindings_of(files), 'MODEL_DIR': str(directory)},
  )
  assert result is None and not directory.exists()
  said = capsys.readouterr().out
  for part in ('mesh: none', 'token_embedder/embedding', 'optimizer state'):
    assert part in said


def test_rows_that_were_trained_on_are_refused(trained, tmp_path):
  """Calibrating on other files, whose test rows were training rows here."""
  source = pathlib.Path(trained['DATA_DIR'])
  rows = list(records.read_jsonl(source / 'train.jsonl'))
  records.write_jsonl(tmp_path / 'train.jsonl', rows[:10])
  records.write_jsonl(tmp_path / 'validation.jsonl', rows[10:20])
  records.write_jsonl(tmp_path / 'test.jsonl', rows[20:60])
  elsewhere = {**trained, 'DATA_DIR': str(tmp_path)}
  with pytest.raises(ValueError, match='trained on'):
    call(
      'calibrate',
      ['runs/calibrate.gin', 'policies/softmax_margin.gin', trained['task']],
      **bindings_of(elsewhere),
      **{
        'tasks.JsonlTask.name': 'counting_elsewhere',
        'calibrate.run.output_dir': str(tmp_path / 'calibration'),
      },
    )


def fine_tune(trained, folder, **bindings):
  return call(
    'train',
    ['runs/train.gin', trained['task']],
    **{**bindings_of(trained), 'MODEL_DIR': str(folder)},
    TRAIN_STEPS=12,
    **{
      'train.run.initial_model_dir': trained['MODEL_DIR'],
      'training.warmup_cosine.warmup_steps': 2,
      'data.DataPlan.length_buckets': ((12, 12),),
      **bindings,
    },
  )


@pytest.mark.slow
def test_fine_tuning_starts_from_another_run(trained, tmp_path):
  fine_tune(
    trained,
    tmp_path / 'run',
    **{'training.Objective.frozen': ('token_embedder/.*',)},
  )
  before = runs.load_run(trained['MODEL_DIR']).params
  after = runs.load_run(tmp_path / 'run').params
  embeddings = [tree['token_embedder']['embedding'] for tree in (before, after)]
  assert (embeddings[0] == embeddings[1]).all()
  kernels = [
    tree['decoder']['logits_dense']['kernel'] for tree in (before, after)
  ]
  assert (kernels[0] != kernels[1]).any()


@pytest.mark.slow
def test_what_the_first_run_saw_counts_as_seen(trained, tmp_path):
  """And a run that has begun no longer needs the one it started from."""
  source, run = tmp_path / 'source', tmp_path / 'run'
  shutil.copytree(trained['MODEL_DIR'], source)
  first = records.read_training_rows(source / records.TRAINING_ROWS_NAME)
  records.write_training_rows(
    source / records.TRAINING_ROWS_NAME, [*first.trained, 7], first.selected
  )
  changes = {'train.run.initial_model_dir': str(source)}
  fine_tune(trained, run, **changes)
  rows = records.read_training_rows(run / records.TRAINING_ROWS_NAME)
  assert set(rows.trained) == {*first.trained, 7}
  shutil.rmtree(source)
  assert fine_tune(trained, run, **changes).step == 12
  rows = records.read_training_rows(run / records.TRAINING_ROWS_NAME)
  assert 7 in rows.trained


@pytest.mark.slow
def test_a_resumed_run_reads_the_same_data_or_none(trained, tmp_path):
  fine_tune(trained, tmp_path / 'run')
  with pytest.raises(ValueError, match='length_buckets'):
    fine_tune(
      trained, tmp_path / 'run', **{'data.DataPlan.length_buckets': ((6, 6),)}
    )


@pytest.mark.slow
def test_a_run_without_a_vocabulary_says_so(tmp_path):
  config = training_cases.CONFIG
  training.train(
    training.multi_exit_stage(config, training.adamw(1e-3)),
    training_cases.batches,
    plan=training.Plan(num_steps=1),
    model_dir=tmp_path,
  )
  with pytest.raises(ValueError, match="lacks .*'vocabulary_file'"):
    runs.load_run(tmp_path)


@pytest.mark.slow
def test_a_part_of_a_mixture_is_read_with_its_own_prefix(trained, tmp_path):
  parts = [
    data.JsonlTask(
      name=f'counting_{prefix}',
      directory=trained['DATA_DIR'],
      paths={'train': 'train.jsonl', 'validation': 'validation.jsonl'},
      vocabulary=trained['VOCABULARY'],
      prefix=f'{prefix} ',
    )
    for prefix in ('one', 'two')
  ]
  train.run(
    model_dir=str(tmp_path),
    task=data.MixtureTask('counting_mixture', parts),
    config=runs.load_run(trained['MODEL_DIR']).config,
    optimizer=training.adamw(1e-3),
    plan=training.Plan(num_steps=1),
    data=data.DataPlan(
      batch_size=8, feature_lengths={'inputs': 12, 'targets': 12}
    ),
  )
  for part in parts:
    assert jobs.load_run(str(tmp_path), part).prefix == part.prefix
  stranger = dataclasses.replace(parts[0], name='stranger', prefix='three ')
  with pytest.raises(ValueError, match="'three ', training had ''"):
    jobs.load_run(str(tmp_path), stranger)


def test_fine_tuning_another_shape_is_refused(trained, tmp_path):
  with pytest.raises(ValueError, match='mlp_dim 32 there, 64 here'):
    fine_tune(trained, tmp_path / 'run', **{'model.T5Config.mlp_dim': 64})


def test_calibration_writes_a_certificate_for_this_run(calibrated):
  path = pathlib.Path(calibrated['MODEL_DIR']) / 'calibration'
  certificate = Certificate.load(path / 'certificate.json')
  assert certificate.num_examples > 50
  assert certificate.context['loss'] == 'textual'
  table = records.read_loss_table(path / 'loss_table.npz')
  assert table.num_examples == certificate.num_examples
  # Which inputs it was made of is in both.
  assert certificate.context['examples'] == table.fingerprint['examples']
  # What seqio's Evaluator logged is what the certificate says.
  (log,) = path.rglob('*-metrics.jsonl')
  logged = json.loads(log.read_text(encoding='utf-8').splitlines()[-1])
  assert logged['threshold'] == certificate.threshold


def calibrate_again(
  trained, folder, policy='policies/softmax_margin.gin', **bindings
):
  """Calibrates the same run into another folder."""
  return call(
    'calibrate',
    ['runs/calibrate.gin', policy, trained['task']],
    **bindings_of(trained),
    OUTPUT_DIR=str(folder),
    **{'calibrate.run.thresholds': (0.8, 0.4), 'calibrate.run.batch_size': 26},
    **bindings,
  )


def test_a_full_grid_changes_no_certificate(calibrated, tmp_path):
  lazy = Certificate.load(
    pathlib.Path(calibrated['MODEL_DIR']) / 'calibration/certificate.json'
  )
  certificate = calibrate_again(
    calibrated, tmp_path, TOLERANCE=0.3, FULL_GRID=True
  )
  assert (certificate.index, certificate.p_values[0]) == (
    lazy.index,
    lazy.p_values[0],
  )
  assert records.read_loss_table(tmp_path / 'loss_table.npz').computed.all()


def test_another_loss_decodes_nothing_again(
  calibrated, tmp_path, monkeypatch, capsys
):
  calibrate_again(calibrated, tmp_path, TOLERANCE=0.3, FULL_GRID=True)

  def refuse(*arguments, **keywords):
    raise AssertionError('decoded again')

  monkeypatch.setattr(decoding, 'generate', refuse)
  for loss, p_value in (('risk', 'hoeffding_bentkus'), ('signed', 'betting')):
    certificate = calibrate_again(
      calibrated, tmp_path / loss, LOSS=loss, TOLERANCE=0.2, FULL_GRID=True
    )
    assert certificate.context['loss'] == loss
    assert certificate.p_value.startswith(p_value)
    cost = records.read_record(
      tmp_path / loss / 'cost.json', records.CalibrationCost
    )
    assert cost.full_seconds > 0 and cost.ratio > 1
    assert 'full-model passes' in capsys.readouterr().out
  assert certificate.loss_range == (-1, 1)


@pytest.mark.slow
def test_a_killed_calibration_decodes_nothing_twice(
  trained, tmp_path, monkeypatch
):
  shutil.copytree(trained['MODEL_DIR'], tmp_path / 'run')
  shutil.rmtree(tmp_path / 'run' / jobs.DECODES, ignore_errors=True)
  files = {**trained, 'MODEL_DIR': str(tmp_path / 'run')}
  generate = decoding.generate
  calls = []

  def killed(*arguments, **keywords):
    if len(calls) == 4:
      raise KeyboardInterrupt
    calls.append(1)
    return generate(*arguments, **keywords)

  arguments = dict(TOLERANCE=0.3, FULL_GRID=True)
  monkeypatch.setattr(decoding, 'generate', killed)
  with pytest.raises(KeyboardInterrupt):
    calibrate_again(files, tmp_path / 'resumed', **arguments)
  before = len(calls)

  def counted(*arguments, **keywords):
    calls.append(1)
    return generate(*arguments, **keywords)

  monkeypatch.setattr(decoding, 'generate', counted)
  resumed = calibrate_again(files, tmp_path / 'resumed', **arguments)
  assert before == 4 < len(calls)
  whole = calibrate_again(files, tmp_path / 'whole', **arguments)
  assert resumed.p_values == whole.p_values
  again = len(calls)
  shutil.rmtree(tmp_path / 'run' / jobs.DECODES)
  uninterrupted = calibrate_again(files, tmp_path / 'anew', **arguments)
  assert uninterrupted.p_values == resumed.p_values
  assert len(calls) - again == again, 'as many decodes in two goes as in one'


@pytest.mark.slow
def test_a_budget_is_calibrated_and_evaluated_with(calibrated, tmp_path):
  """Its decodes are capped, its certificate is its own, its use is told."""
  policy = 'policies/softmax_margin_budget.gin'
  caps = dict(LAYERS_PER_REQUEST=24, LAYERS_PER_TOKEN=2, MAX_LENGTH=12)
  certificate = calibrate_again(
    calibrated,
    tmp_path,
    policy=policy,
    TOLERANCE=0.9,
    FULL_GRID=True,
    **caps,
  )
  assert certificate.certified
  rule = certificate.context['policy']['exit_rule']
  assert (rule['type'], rule['per_request'], rule['per_token']) == (
    'LayerBudget',
    24,
    2,
  )
  table = records.read_loss_table(tmp_path / 'loss_table.npz')
  assert (table.mean_exit_layers <= 2).all()
  files = ['runs/evaluate.gin', policy, calibrated['task']]
  bindings = dict(
    **bindings_of(calibrated),
    **caps,
    CERTIFICATE=str(tmp_path / 'certificate.json'),
    OUTPUT_DIR=str(tmp_path / 'evaluation'),
  )
  options = {
    'evaluate.run.batch_size': 26,
    'evaluate.run.sweep_thresholds': (),
    'evaluate.run.timing_batch_sizes': (),
  }
  result = call('evaluate', files, **bindings, **options)
  assert result.budget.largest_token <= 2
  assert result.budget.largest_request <= 24
  page = tmp_path / 'evaluation' / 'report.html'
  assert result.budget.describe() in page.read_text(encoding='utf-8')
  bindings['LAYERS_PER_REQUEST'] = 25
  with pytest.raises(ValueError, match='policy: certified for'):
    call('evaluate', files, **bindings, **options)


@pytest.mark.parametrize('job', ['calibrate', 'evaluate'])
def test_a_dry_run_says_what_devices_would_hold(trained, capsys, job):
  gin_runner.parse(
    [f'runs/{job}.gin', 'policies/softmax_margin.gin', trained['task']],
    [f'{name} = {value!r}' for name, value in bindings_of(trained).items()],
  )
  before = sorted(pathlib.Path(trained['MODEL_DIR']).rglob('*'))
  assert gin.get_configurable(f'calm_jax.cli.{job}.run')(dry_run=True) is None
  text = capsys.readouterr().out
  assert 'mesh: none, one device' in text and 'memory per device:' in text
  assert '32 requests per device, 1 rows each, 12 source and 12 target' in text
  assert sorted(pathlib.Path(trained['MODEL_DIR']).rglob('*')) == before


def test_evaluation_writes_table_and_page(calibrated, capsys):
  result = call(
    'evaluate',
    [
      'runs/evaluate.gin',
      'policies/softmax_margin.gin',
      calibrated['task'],
    ],
    **bindings_of(calibrated),
    **{
      'evaluate.run.batch_size': 26,
      'evaluate.run.sweep_thresholds': (0.5,),
      'evaluate.run.timing_batch_sizes': (2,),
      'evaluate.run.timing_batches': 1,
      'evaluate.run.timing_repeats': 1,
    },
  )
  kinds = [row.kind for row in result.rows]
  assert kinds[0] == 'full' and {'static', 'oracle', 'baseline'} <= set(kinds)
  folder = pathlib.Path(calibrated['MODEL_DIR']) / 'evaluation'
  read = records.read_record(folder / 'result.json', records.EvaluationResult)
  assert read.num_examples == result.num_examples
  assert '<html' in (folder / 'report.html').read_text(encoding='utf-8')
  assert 'full model' in capsys.readouterr().out
  for row in result.rows:
    if row.kind == 'oracle':
      assert row.mean_exit_layer <= 3


def test_generation_uses_the_certificate(calibrated, capsys):
  policy = 'policies/softmax_margin.gin'
  files = ['runs/generate.gin', policy]
  directory = calibrated['MODEL_DIR']
  (output,) = call(
    'generate', files, MODEL_DIR=directory, INPUTS='one two three'
  )
  assert output.text
  assert len(output.pieces) == len(output.exit_layers) == len(output.tokens)
  assert 'one two three' in capsys.readouterr().out
  (full,) = call(
    'generate',
    files,
    MODEL_DIR=directory,
    INPUTS='one two three',
    **{'generate.run.threshold': 1.0},
  )
  assert set(full.exit_layers) == {3}


def test_a_file_of_texts_is_generated(calibrated, tmp_path, capsys):
  lines = ['{"text": "one two", "id": 7}', '{"text": "\u65e5\u672c"}', '{}']
  source, output = tmp_path / 'texts.jsonl', tmp_path / 'rows.jsonl'
  source.write_text('\n'.join(lines), encoding='utf-8')
  outputs = call(
    'generate',
    ['runs/generate.gin', 'policies/softmax_margin.gin'],
    MODEL_DIR=calibrated['MODEL_DIR'],
    INPUT_FILE=str(source),
    OUTPUT_FILE=str(output),
    BAD_LINES='skip',
  )
  assert outputs == []
  first, unknown = records.read_jsonl(output)
  assert (first['line'], first['inputs'], first['id']) == (1, 'one two', 7)
  assert first['certified'] and 'warnings' not in first
  for piece, (start, end) in zip(first['pieces'], first['spans'], strict=True):
    said = first['text'][start:end].strip()
    assert said == ('' if piece == '</s>' else piece.strip('\u2581'))
  assert unknown['warnings'] == ['nothing of it is in the vocabulary']
  printed = capsys.readouterr()
  assert printed.out == ''
  assert 'line 3 has no text under' in printed.err
  assert 'line 2: nothing of it is in the vocabulary' in printed.err


@pytest.fixture(scope='module')
def with_classifier(trained):
  evaluation = call(
    'train_classifier',
    ['runs/train_classifier.gin', trained['task']],
    **bindings_of(trained),
    TRAIN_STEPS=120,
    BATCH_SIZE=32,
    LEARNING_RATE=2e-2,
    **{'training.warmup_cosine.warmup_steps': 10},
  )
  return trained, evaluation


def test_the_classifier_job_leaves_the_model_alone(with_classifier):
  files, evaluation = with_classifier
  run = pathlib.Path(files['MODEL_DIR'])
  folder = run / 'classifier'
  # Other numbers would not be loaded: they have another fingerprint.
  classifier = runs.load_classifier(run)
  assert classifier.kernel.shape == (32,)
  rows = list(records.read_jsonl(folder / 'train_log.jsonl'))
  losses = [row['loss'] for row in rows if row['kind'] == 'train']
  assert losses[-1] < losses[0]
  assert (folder / 'train_classifier.gin').exists()
  # The rows that the model and its classifier were trained on are the same.
  trained_on = records.read_training_rows(run / records.TRAINING_ROWS_NAME)
  assert len(trained_on.trained) == 700 and len(trained_on.selected) == 40
  read = records.read_record(
    folder / 'evaluation.json', records.ClassifierEvaluation
  )
  assert [layer.exit_layer for layer in read.layers] == [1, 2]
  assert read.num_tokens == evaluation.num_tokens > 100
  assert all(0 < layer.agreement <= 1 for layer in read.layers)


def test_generation_exits_by_the_classifier(with_classifier):
  files, _ = with_classifier
  (output,) = call(
    'generate',
    ['runs/generate.gin', 'policies/classifier.gin'],
    MODEL_DIR=files['MODEL_DIR'],
    INPUTS='one two three',
    **{'generate.run.threshold': 0.0},
  )
  # Eq. 5 at 0 asks for 0.1 at the first token and less after it.
  assert len(output.exit_layers) == len(output.tokens) > 0
  assert min(output.exit_layers) == 1
  assert 0 < max(output.confidences) < 1


@pytest.mark.slow
def test_a_certificate_holds_for_its_classifier_only(with_classifier):
  files, _ = with_classifier
  policy = 'policies/classifier.gin'
  run = pathlib.Path(files['MODEL_DIR'])
  output_dir = run / 'classifier' / 'calibration'
  certificate = call(
    'calibrate',
    ['runs/calibrate.gin', policy, files['task']],
    **bindings_of(files),
    TOLERANCE=0.4,
    **{
      'calibrate.run.thresholds': (0.9, 0.7),
      'calibrate.run.batch_size': 26,
      'calibrate.run.output_dir': str(output_dir),
    },
  )
  measure = certificate.context['policy']['exit_rule']['measure']
  assert measure == decoding.describe(runs.load_classifier(run))
  assert measure['kernel'].startswith('float32[32] sha256 ')
  path = str(output_dir / 'certificate.json')
  result = call(
    'evaluate',
    ['runs/evaluate.gin', policy, files['task']],
    **bindings_of(files),
    **{
      'evaluate.run.batch_size': 26,
      'evaluate.run.certificate': path,
      'evaluate.run.output_dir': str(run / 'classifier' / 'evaluation'),
      'evaluate.run.sweep_thresholds': (),
      'evaluate.run.timing_batch_sizes': (),
    },
  )
  assert result.certificate.measure == 'Classifier'
  call(
    'train_classifier',
    ['runs/train_classifier.gin', files['task']],
    **bindings_of(files),
    TRAIN_STEPS=20,
    CLASSIFIER='balanced',
    CLASSIFIER_LOSS='balanced',
    **{'training.warmup_cosine.warmup_steps': 2},
  )
  gin_runner.parse([policy], [f'MODEL_DIR = {str(run)!r}'])
  query = gin.config.query_parameter
  own = query('%POLICY').scoped_configurable_fn()
  load = dict(policy=own, certificate=path)
  assert pipeline.TextGenerator.from_checkpoint(run, **load)
  bindings = [f'MODEL_DIR = {str(run)!r}', "CLASSIFIER = 'balanced'"]
  gin_runner.parse([policy], bindings)
  other = query('%POLICY').scoped_configurable_fn()
  with pytest.raises(ValueError, match='policy: certified for'):
    pipeline.TextGenerator.from_checkpoint(run, **{**load, 'policy': other})


@pytest.mark.parametrize(
  'text, message',
  [('  ', 'input 0 is empty'), ('one ' * 40, 'tokens .*trained for 12')],
)
def test_bad_inputs_are_refused(trained, text, message):
  generator = pipeline.TextGenerator.from_checkpoint(trained['MODEL_DIR'])
  with pytest.raises(ValueError, match=message):
    generator.generate([text])


def test_a_certificate_holds_for_what_it_was_made_for_only(calibrated):
  path = pathlib.Path(calibrated['MODEL_DIR']) / 'calibration/certificate.json'
  gin_runner.parse(['policies/state_similarity.gin'])
  other = gin.config.query_parameter('%POLICY').scoped_configurable_fn()
  with pytest.raises(ValueError, match='policy: certified for'):
    pipeline.TextGenerator.from_checkpoint(
      calibrated['MODEL_DIR'], policy=other, certificate=path
    )


def test_what_a_certificate_does_not_cover_is_marked(calibrated, capsys):
  texts = {}
  for policy in ('softmax_margin', 'state_similarity'):
    (output,) = call(
      'generate',
      ['runs/generate.gin', f'policies/{policy}.gin'],
      MODEL_DIR=calibrated['MODEL_DIR'],
      INPUTS='one two three',
      ALLOW_UNCERTIFIED=True,
    )
    texts[output.certified] = capsys.readouterr().out
  assert 'UNCERTIFIED' in texts[False]
  assert 'UNCERTIFIED' not in texts[True]


def test_the_settings_of_a_grid_are_timed(calibrated):
  folder = pathlib.Path(calibrated['MODEL_DIR']) / 'calibration'
  table = records.read_loss_table(folder / 'loss_table.npz')
  speeds = records.find_setting_speeds(
    folder / 'loss_table.npz', table.settings, table.fingerprint
  )
  assert speeds.settings == (0.8, 0.4)
  assert speeds.full.mean_exit_layer == 3.0
  for row, speed_up in zip(speeds.timings, speeds.speed_ups, strict=True):
    assert (row.batch_size, row.num_batches) == (1, 1)
    expected = speeds.full.milliseconds_per_step / row.milliseconds_per_step
    assert speed_up == pytest.approx(expected)
  with pytest.raises(ValueError, match='other settings than'):
    records.find_setting_speeds(
      folder / 'loss_table.npz', (0.8, 0.5), table.fingerprint
    )


def test_the_wrong_vocabulary_is_refused(trained, tmp_path):
  run = pathlib.Path(trained['MODEL_DIR'])
  vocabulary = run / 'vocabulary.model'
  kept = vocabulary.read_bytes()
  result = run_main(
    'build_vocabulary',
    f'--input={trained["DATA_DIR"]}/train.jsonl',
    f'--output={tmp_path / "other.model"}',
    '--vocab_size=26',
  )
  assert result.returncode == 0, result.stderr
  try:
    vocabulary.write_bytes((tmp_path / 'other.model').read_bytes())
    with pytest.raises(ValueError, match='not the vocabulary of this'):
      runs.load_run(run)
  finally:
    vocabulary.write_bytes(kept)
  # Training into the directory of another run touches nothing in it.
  with pytest.raises(ValueError, match='seed: expected 7, found 0'):
    call(
      'train',
      ['runs/train.gin', trained['task']],
      **bindings_of(trained),
      BATCH_SIZE=32,
      **{'train.run.seed': 7},
    )
  assert vocabulary.read_bytes() == kept


@pytest.mark.parametrize('split', ['validation', 'calibration'])
def test_only_fresh_splits_are_evaluated(calibrated, split):
  with pytest.raises(ValueError, match=f"split '{split}' was trained on"):
    call(
      'evaluate',
      ['runs/evaluate.gin', 'policies/softmax_margin.gin', calibrated['task']],
      **bindings_of(calibrated),
      **{'evaluate.run.split': split},
    )


def test_a_task_with_another_prefix_is_refused(calibrated):
  with pytest.raises(ValueError, match="prefix 'count: '"):
    call(
      'calibrate',
      ['runs/calibrate.gin', 'policies/softmax_margin.gin', calibrated['task']],
      **bindings_of(calibrated),
      **{
        'tasks.JsonlTask.prefix': 'count: ',
        'tasks.JsonlTask.name': 'counting_with_prefix',
      },
    )


def test_thresholds_outside_the_range_are_refused(trained):
  with pytest.raises(ValueError, match=r'threshold 1.5, not in \[0, 1\]'):
    call(
      'generate',
      ['runs/generate.gin', 'policies/softmax_margin.gin'],
      MODEL_DIR=trained['MODEL_DIR'],
      INPUTS='one',
      **{'generate.run.threshold': 1.5},
    )


def test_evaluation_without_a_certificate_says_what_to_run(trained, tmp_path):
  with pytest.raises(FileNotFoundError, match='calm_jax.cli.calibrate'):
    call(
      'evaluate',
      [
        'runs/evaluate.gin',
        'policies/softmax_margin.gin',
        trained['task'],
      ],
      **bindings_of(trained),
      **{'evaluate.run.certificate': str(tmp_path / 'none.json')},
    )
