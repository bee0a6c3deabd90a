"""Jobs that write a folder: one at a time, and none where nothing is done."""

import os
import pathlib

import pytest
from fakes.counting_task import bindings_of

gin = pytest.importorskip('gin')
pytest.importorskip('seqio', reason='the jobs read seqio Tasks')

from calm_jax.cli import gin_runner
from calm_jax.processes.file_locks import FileLock

FOLDERS = {'calibrate': 'calibration', 'evaluate': 'evaluation'}


def configured(job, files):
  gin_runner.parse(
    [f'runs/{job}.gin', 'policies/softmax_margin.gin', files['task']],
    [f'{name} = {value!r}' for name, value in bindings_of(files).items()],
  )
  return gin.get_configurable(f'calm_jax.cli.{job}.run')


def contents(folder):
  return {
    path: path.stat().st_mtime_ns
    for path in pathlib.Path(folder).rglob('*')
    if path.is_file()
  }


@pytest.mark.parametrize('job', FOLDERS)
def test_a_second_job_on_a_folder_is_refused_before_it_writes(calibrated, job):
  folder = os.path.join(calibrated['MODEL_DIR'], FOLDERS[job])
  run = configured(job, calibrated)
  lock = FileLock(os.path.join(folder, f'{job}.gin'))
  before = contents(calibrated['MODEL_DIR'])
  try:
    said = f'{job}.gin is being written by process {os.getpid()} on .*'
    with pytest.raises(ValueError, match=f'{said}name another OUTPUT_DIR'):
      run()
    # Nothing is written by a dry run, which therefore asks nobody.
    assert run(dry_run=True) is None
    assert contents(calibrated['MODEL_DIR']) == before
  finally:
    lock.release()


def test_a_finished_job_leaves_no_lock(calibrated):
  assert not list(pathlib.Path(calibrated['MODEL_DIR']).rglob('*.lock'))
