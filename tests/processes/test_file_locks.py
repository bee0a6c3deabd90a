"""One writer at a time, and a killed one stands in nobody's way."""

import signal
import subprocess
import sys

import pytest
from tools.paths import ROOT

from calm_jax.processes import collectives
from calm_jax.processes.file_locks import FileLock, held_by_job

HOLD = (
  'import sys, time\n'
  'from calm_jax.processes.file_locks import FileLock\n'
  'lock = FileLock(sys.argv[1])\n'
  'print("held", flush=True)\n'
  'time.sleep(600)\n'
)


def test_another_process_is_named_and_a_killed_one_leaves_no_lock(tmp_path):
  path = tmp_path / 'new' / 'rows.jsonl'
  holder = subprocess.Popen(
    [sys.executable, '-c', HOLD, str(path)],
    stdout=subprocess.PIPE,
    cwd=ROOT,
  )
  try:
    assert holder.stdout.readline() == b'held\n'
    message = f'rows.jsonl is being written by process {holder.pid} on .*'
    with pytest.raises(ValueError, match=f'{message}OUTPUT_FILE'):
      FileLock(str(path))
  finally:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
  # What it left behind is no lock.
  assert [one.name for one in path.parent.iterdir()] == ['rows.jsonl.lock']
  lock = FileLock(str(path))
  with pytest.raises(ValueError, match='is being written by process'):
    FileLock(str(path))
  lock.release()
  lock.release()
  assert list(path.parent.iterdir()) == []
  FileLock(str(path)).release()


def test_a_lock_whose_file_is_gone_does_not_take_anothers(tmp_path):
  path = tmp_path / 'rows.jsonl'
  lock = FileLock(str(path))
  (tmp_path / 'rows.jsonl.lock').unlink()
  other = FileLock(str(path))
  lock.release()
  with pytest.raises(ValueError, match='is being written'):
    FileLock(str(path))
  other.release()


def test_places_where_nothing_can_be_written_are_named(tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(ValueError, match='rows.jsonl cannot be written'):
    FileLock(str(tmp_path / 'file' / 'rows.jsonl'))


def test_of_the_processes_of_a_job_the_first_one_holds_it(
  tmp_path, monkeypatch
):
  path = str(tmp_path / 'rows.jsonl')
  with held_by_job(path, 'OUTPUT_DIR'):
    with pytest.raises(ValueError, match='or name another OUTPUT_DIR'):
      with held_by_job(path, 'OUTPUT_DIR'):
        pass
    monkeypatch.setattr(collectives, 'is_main_process', lambda: False)
    with held_by_job(path, 'OUTPUT_DIR'):
      pass
    assert (tmp_path / 'rows.jsonl.lock').exists()
  assert list(tmp_path.iterdir()) == []
