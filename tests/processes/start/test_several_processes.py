"""Real processes that start, fail and die together; see member_process.py."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from tools.free_ports import free_port
from tools.paths import PROGRAMS

from calm_jax import checkpoints, records
from calm_jax.processes.meeting import Membership
from calm_jax.processes.start import environment

SCRIPT = PROGRAMS / 'member_process.py'
# What JAX says where nothing of ours comes first.
ABORT = 'Terminating process because the JAX distributed service detected'


def start(port, index, *flags, count=2):
  devices = '--xla_force_host_platform_device_count=2'
  return subprocess.Popen(
    [
      *(sys.executable, str(SCRIPT)),
      f'--coordinator_address=localhost:{port}',
      f'--process_count={count}',
      f'--process_index={index}',
      *flags,
    ],
    env={
      **os.environ,
      'PYTHONPATH': os.pathsep.join(sys.path),
      'XLA_FLAGS': f'{os.environ.get("XLA_FLAGS", "")} {devices}',
    },
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def finish(*processes):
  """Returns the exit codes and what was said."""
  said = [process.communicate(timeout=600)[0] for process in processes]
  return [process.returncode for process in processes], said


def last_line(text):
  return text.strip().splitlines()[-1]


@pytest.mark.slow
def test_an_unreachable_coordinator_is_said_plainly():
  port = free_port()
  (code,), (said,) = finish(start(port, 1, '--initialization_timeout=1'))
  assert code == 1 and ABORT not in said
  assert f'did not reach process 0 at localhost:{port} within 1 s' in said
  assert 'Traceback' not in said


@pytest.mark.slow
def test_a_port_in_use_is_said_plainly():
  """JAX's own answer to it is a segmentation fault."""
  with socket.create_server(('', 0)) as taken:
    port = taken.getsockname()[1]
    (code,), (said,) = finish(start(port, 0, '--initialization_timeout=1'))
  assert code == 1 and f'cannot listen on port {port}' in last_line(said)


def test_other_versions_end_all_before_jax_connects_them():
  port = free_port()
  codes, said = finish(
    start(port, 0), start(port, 1, '--pretend_version=0.0.9')
  )
  assert codes == [1, 1]
  for text in said:
    assert 'version of calm_jax differs: ' in last_line(text)
    assert f'0.0.9 (process 1 on {socket.gethostname()})' in last_line(text)


@pytest.mark.slow
def test_what_is_wrong_with_one_is_said_by_all(tmp_path):
  here = f'--directory={tmp_path}'
  cases = [
    ((), ('--error=no gin file x',), ': no gin file x'),
    (
      (),
      ('--configuration=a = 2',),
      'gin configuration differs: a = 1 (process 0',
    ),
    ((here,), (f'{here}/elsewhere',), 'model_dir is not shared'),
    ((here,), ('--directory=/proc/x',), 'model_dir: cannot write to /proc/x'),
  ]
  (tmp_path / 'elsewhere').mkdir()
  for first, second, message in cases:
    port = free_port()
    codes, said = finish(start(port, 0, *first), start(port, 1, *second))
    assert codes == [1, 1], said
    for text in said:
      assert message in last_line(text)
  assert os.listdir(tmp_path) == ['elsewhere']


@pytest.mark.slow
def test_they_work_together_and_process_0_speaks():
  port = free_port()
  codes, said = finish(*(start(port, i, count=3) for i in range(3)))
  assert codes == [0, 0, 0]
  assert all('sum 3' in text and 'done' in text for text in said)
  promise = '3 processes with 6 x cpu meet at'
  assert [promise in text for text in said] == [True, False, False]


@pytest.mark.slow
def test_an_error_in_one_process_ends_the_others_with_it():
  port = free_port()
  codes, said = finish(
    *(start(port, i, '--job=own_error', count=3) for i in range(3))
  )
  assert codes == [1, 1, 1]
  assert 'ValueError: a bad row\nin the data' in said[2]
  for text in said[:2]:
    assert 'ends because of process 2' in last_line(text)
    assert last_line(text).endswith('ValueError: a bad row')


def wait_for_checkpoint(directory, process):
  while checkpoints.latest_step(directory) is None:
    assert process.poll() is None, process.communicate()
    time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize('victim', [0, 1])
def test_when_one_is_killed_the_other_ends_and_both_resume(tmp_path, victim):
  run = tmp_path / 'run'
  flags = (
    '--job=train',
    f'--directory={run}',
    '--heartbeat_timeout_seconds=30',
  )
  port = free_port()
  pair = [start(port, i, *flags, '--steps=100000') for i in range(2)]
  wait_for_checkpoint(run, pair[0])
  killed = time.monotonic()
  pair[victim].send_signal(signal.SIGKILL)
  codes, said = finish(*pair)
  assert time.monotonic() - killed < 40
  assert codes[victim] == -signal.SIGKILL
  # 75, or JAX's abort, where that was faster.
  assert codes[1 - victim] in (75, -signal.SIGABRT)
  line = f'ends: process {victim} on {socket.gethostname()} is gone'
  assert line in said[1 - victim]
  assert 'Start the same command again' in said[1 - victim]
  saved = checkpoints.latest_step(run)
  port, last = free_port(), saved + 3
  pair = [start(port, i, *flags, f'--steps={last}') for i in range(2)]
  codes, said = finish(*pair)
  assert codes == [0, 0], said
  assert f'resumes at step {saved} of {last}' in said[0]
  log = records.read_jsonl(run / 'train_log.jsonl')
  trained = [row['step'] for row in log if row['kind'] == 'train']
  assert trained == list(range(1, last + 1))


@pytest.mark.slow
def test_a_signal_to_one_stops_all_in_order(tmp_path):
  """They agree on a step, save it, and none takes the others for dead."""
  run, port = tmp_path / 'run', free_port()
  flags = ('--job=train', f'--directory={run}', '--steps=100000')
  pair = [start(port, i, *flags) for i in range(2)]
  wait_for_checkpoint(run, pair[0])
  pair[1].send_signal(signal.SIGTERM)
  codes, said = finish(*pair)
  assert codes == [128 + signal.SIGTERM] * 2, said
  assert f'interrupted at step {checkpoints.latest_step(run)}; saved' in said[0]
  assert not any('is gone' in text for text in said)


@pytest.mark.slow
def test_when_one_hangs_the_other_ends_in_time(tmp_path):
  """It is named; JAX's heartbeats do the rest."""
  run, port = tmp_path / 'run', free_port()
  flags = (
    '--job=train',
    f'--directory={run}',
    '--heartbeat_timeout_seconds=10',
  )
  pair = [start(port, i, *flags, '--steps=100000') for i in range(2)]
  wait_for_checkpoint(run, pair[0])
  try:
    pair[1].send_signal(signal.SIGSTOP)
    stopped = time.monotonic()
    (code,), (said,) = finish(pair[0])
  finally:
    pair[1].kill()
    pair[1].communicate()
  assert time.monotonic() - stopped < 40
  assert code != 0
  assert 'should one die, the others end within 10 s' in said
  name = f'process 1 on {socket.gethostname()}'
  assert f'{name} has been silent for 5 s' in said


def test_devices_that_differ_are_named():
  where = Membership('a:1', 3, 0)
  check = environment.device_objections
  equal = {index: ['H200'] * 2 for index in range(3)}
  assert not check(where, equal)
  (line,) = check(where, {**equal, 2: ['H200']})
  assert '2 x H200 in [0, 1]; 1 x H200 in [2]' in line
  (line,) = check(where, {**equal, 1: ['cpu', 'cpu']})
  assert '2 x cpu in [1]' in line
  (line,) = check(where, {0: ['cpu']})
  assert 'processes [0] of 3' in line


def test_facts_hold_what_changes_programs(monkeypatch):
  before = environment.facts('a = 1')
  assert before['version of jax'] and before['gin configuration'] == 'a = 1'
  monkeypatch.setenv('LIBTPU_INIT_ARGS', '--fast')
  after = environment.facts('a = 1')
  changed = {name for name in after if after[name] != before[name]}
  assert changed == {'$LIBTPU_INIT_ARGS'}
