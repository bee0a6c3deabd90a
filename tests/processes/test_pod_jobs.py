"""Jobs shared by several local processes, as on a pod; what --all turns on.

Gloo connects them on CPU. One model is trained once; every test decodes copies
of its directory.
"""

import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from fakes import counting_task

pytest.importorskip('gin')
pytest.importorskip('seqio', reason='the jobs read seqio Tasks')

from calm_jax import checkpoints, records

pytestmark = pytest.mark.slow

# Seconds after which a silent process counts as dead.
HEARTBEAT = 12


def free_port():
  with socket.socket() as sock:
    sock.bind(('localhost', 0))
    return sock.getsockname()[1]


class Pod:
  """The processes of one job."""

  def __init__(self, job, files, count, *, devices=1, bindings):
    flags = f'--xla_force_host_platform_device_count={devices}'
    shared = {**counting_task.bindings_of(files), **bindings}
    port = free_port()
    self.members = [
      subprocess.Popen(
        [
          *(sys.executable, '-m', f'calm_jax.cli.{job}'),
          f'--gin_file=runs/{job}.gin',
          '--gin_file=policies/softmax_margin.gin',
          f'--gin_file={files["task"]}',
          *(f'--gin.{name}={value!r}' for name, value in shared.items()),
          *(
            (
              f'--coordinator_address=localhost:{port}',
              f'--process_count={count}',
              f'--process_index={index}',
              f'--heartbeat_timeout_seconds={HEARTBEAT}',
            )
            if count > 1
            else ()
          ),
        ],
        env={
          **os.environ,
          'XLA_FLAGS': f'{os.environ.get("XLA_FLAGS", "")} {flags}',
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
      for index in range(count)
    ]

  def wait(self, *, seconds=600):
    """Waits for all; returns exit codes and what each said."""
    said = [member.communicate(timeout=seconds) for member in self.members]
    return [member.returncode for member in self.members], said

  def check(self):
    """Waits for all, which must succeed; returns what process 0 said."""
    codes, said = self.wait()
    assert not any(codes), [errors[-2000:] for _, errors in said]
    for out, _ in said[1:]:
      # Only the first process speaks, and Gloo, whose lines may mix.
      said_ourselves = [l for l in out.splitlines() if 'peer ranks' not in l]
      assert not any(map(str.strip, said_ourselves)), out
    return said[0][0]


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  files = counting_task.write(tmp_path_factory.mktemp('counting'))
  bindings = {
    'TRAIN_STEPS': 60,
    'BATCH_SIZE': 32,
    'LEARNING_RATE': 5e-3,
    'training.Plan.eval_every': 30,
    'training.Plan.checkpoint_every': 30,
    'training.warmup_cosine.warmup_steps': 10,
    'data.DataPlan.length_buckets': ((12, 12),),
  }
  for name, count, more in (
    ('run', 2, {'PARTITIONING': 'fsdp', 'devices': 2}),
    ('four', 4, {}),
    ('alone', 1, {}),
  ):
    devices = more.pop('devices', 1)
    where = {**files, 'MODEL_DIR': f'{files["DATA_DIR"]}/{name}'}
    changed = {
      'train.run.partitioning': more.get('PARTITIONING', 'data_parallel')
    }
    pod = Pod(
      'train', where, count, devices=devices, bindings={**bindings, **changed}
    )
    pod.check()
  return files


def losses_of(files, name):
  path = pathlib.Path(files['DATA_DIR']) / name / 'train_log.jsonl'
  rows = records.read_jsonl(path)
  return [row['loss'] for row in rows if row['kind'] == 'train']


@pytest.fixture
def copy(trained, tmp_path):
  """Makes copies of the trained directory, without what was decoded."""

  def make(name):
    shutil.copytree(trained['MODEL_DIR'], tmp_path / name)
    return {**trained, 'MODEL_DIR': str(tmp_path / name)}

  return make


CALIBRATE = {
  'TOLERANCE': 0.3,
  'evaluation.CalibrationPlan.settings': (0.8, 0.4),
  'evaluation.BatchLayout.batch_size': 8,
}


@pytest.fixture(scope='module')
def calibrated(trained):
  Pod('calibrate', trained, 1, bindings=CALIBRATE).check()
  shutil.rmtree(f'{trained["MODEL_DIR"]}/decodes')
  return trained


EVALUATE = {
  'evaluation.ComparisonPlan.sweep_thresholds': (),
  'evaluation.ComparisonPlan.timing_batch_sizes': (),
  'evaluation.BatchLayout.batch_size': 8,
}


def evaluation(files):
  """Result and predictions of an evaluation, without how they came about."""
  folder = pathlib.Path(files['MODEL_DIR']) / 'evaluation'
  result = records.read_json(folder / 'result.json')
  del result['context']
  predictions = {}
  for name in ('full', 'early'):
    rows = [
      row
      for path in sorted((folder / 'predictions').glob(f'{name}-*.jsonl'))
      for row in records.read_jsonl(path)
    ]
    predictions[name] = sorted(rows, key=lambda row: row['line'])
  return result, predictions


@pytest.fixture(scope='module')
def expected(calibrated, tmp_path_factory):
  """What one process makes of the test split."""
  folder = tmp_path_factory.mktemp('expected') / 'run'
  shutil.copytree(calibrated['MODEL_DIR'], folder)
  files = {**calibrated, 'MODEL_DIR': str(folder)}
  Pod('evaluate', files, 1, bindings=EVALUATE).check()
  return evaluation(files)


def test_training_is_the_same_on_one_two_and_four_processes(trained):
  alone = losses_of(trained, 'alone')
  assert len(alone) == 4 and alone[-1] < alone[0]
  for name in ('run', 'four'):
    np.testing.assert_allclose(losses_of(trained, name), alone, rtol=1e-3)
  # What two processes saved over four devices is read by one.
  params = checkpoints.load_params(trained['MODEL_DIR']).params
  assert params['token_embedder']['embedding'].shape == (64, 32)


@pytest.mark.parametrize('count', [2, 4])
def test_calibration_is_the_same_on_several(calibrated, copy, count):
  files = copy('run')
  shutil.rmtree(f'{files["MODEL_DIR"]}/calibration')
  Pod('calibrate', files, count, bindings=CALIBRATE).check()
  here, there = (
    pathlib.Path(one['MODEL_DIR']) / 'calibration'
    for one in (files, calibrated)
  )
  tables = [
    records.read_loss_table(at / 'loss_table.npz') for at in (here, there)
  ]
  np.testing.assert_array_equal(tables[0].losses, tables[1].losses)
  assert tables[0].example_ids == tables[1].example_ids
  certificates = [
    records.read_json(at / 'certificate.json') for at in (here, there)
  ]
  assert certificates[0] == certificates[1]


def check_alike(predictions, expected):
  """Rows in batches of another size: equal but for rounding (law 1b)."""
  for name, rows in expected.items():
    for here, there in zip(predictions[name], rows, strict=True):
      for field in ('line', 'inputs', 'output', 'tokens', 'exit_layers'):
        assert here[field] == there[field], (name, field)
      for field in ('confidences', 'score'):
        values = (np.array(row[field], np.float64) for row in (here, there))
        np.testing.assert_allclose(*values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(('count', 'devices'), [(2, 2), (4, 1)])
def test_evaluation_is_the_same_on_several(
  calibrated, copy, expected, count, devices
):
  files = copy('run')
  said = Pod(
    'evaluate', files, count, devices=devices, bindings=EVALUATE
  ).check()
  assert 'tokens/s' in said or 'decoding with the full model' in said
  result, predictions = evaluation(files)
  lines = [row['line'] for row in predictions['early']]
  assert lines == list(range(1, result['num_examples'] + 1))
  if devices == 1:
    assert (result, predictions) == expected
  else:
    check_alike(predictions, expected[1])
  folder = pathlib.Path(files['MODEL_DIR']) / 'evaluation' / 'predictions'
  assert len(list(folder.glob('early-*.jsonl'))) == count


def wait_for_rows(files, number):
  """Waits until the jobs have kept so many files of decoded rows."""
  folder = pathlib.Path(files['MODEL_DIR']) / 'decodes'
  deadline = time.monotonic() + 300
  while time.monotonic() < deadline:
    rows = sorted(folder.glob('*/rows-*.npz'))
    if len(rows) >= number:
      return rows
    time.sleep(0.02)
  raise AssertionError('nothing was decoded')


def test_a_killed_process_ends_the_others_and_they_go_on_later(
  calibrated, copy, expected
):
  files = copy('run')
  pod = Pod('evaluate', files, 2, bindings=EVALUATE)
  wait_for_rows(files, 3)
  pod.members[1].send_signal(signal.SIGKILL)
  killed = time.monotonic()
  codes, said = pod.wait(seconds=120)
  assert time.monotonic() - killed < HEARTBEAT + 10
  assert codes[0] not in (0, None) and codes[1] == -signal.SIGKILL
  errors = said[0][1]
  assert 'process 1' in errors and 'Start the same command again' in errors
  kept = {path: path.stat().st_mtime_ns for path in wait_for_rows(files, 3)}
  Pod('evaluate', files, 2, bindings=EVALUATE).check()
  assert evaluation(files) == expected
  # Nothing that was kept was decoded again.
  assert kept == {path: path.stat().st_mtime_ns for path in kept}
  keys = [key for path in wait_for_rows(files, 3) for key in zip_keys(path)]
  assert len(keys) == len(set(keys))


def zip_keys(path):
  """The folder and key of every row of a file."""
  with np.load(path) as arrays:
    return [(path.parent.name, str(key)) for key in arrays['keys']]


def test_a_slow_process_is_waited_for(calibrated, copy, expected):
  files = copy('run')
  pod = Pod('evaluate', files, 2, bindings=EVALUATE)
  wait_for_rows(files, 1)
  pod.members[1].send_signal(signal.SIGSTOP)
  time.sleep(HEARTBEAT / 2)
  pod.members[1].send_signal(signal.SIGCONT)
  pod.check()
  assert evaluation(files) == expected
