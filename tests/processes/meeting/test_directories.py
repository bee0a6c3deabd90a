import os

import pytest

from calm_jax.processes.meeting import Mark, Report, not_shared


def reports(*directories):
  marks = [Mark(directory) for directory in directories]
  return marks, [
    Report(
      index=i,
      count=len(marks),
      host=f'host{i}',
      marks={'model_dir': (mark.directory, mark.name)},
    )
    for i, mark in enumerate(marks)
  ]


def test_one_directory_is_shared_and_left_as_it_was(tmp_path):
  run = tmp_path / 'not' / 'yet' / 'there'
  marks, said = reports(run, run)
  assert len(os.listdir(tmp_path)) == 2
  assert not not_shared(said, patience_seconds=0)
  for mark in marks:
    mark.remove()
    mark.remove()
  assert not os.listdir(tmp_path)


def test_the_host_that_does_not_share_is_named(tmp_path):
  for name in 'ab':
    (tmp_path / name).mkdir()
  here, there = tmp_path / 'a' / 'run', tmp_path / 'b' / 'run'
  _, said = reports(here, here, there)
  (line,) = not_shared(said, patience_seconds=0.3)
  assert line.startswith('model_dir is not shared: what process 2 on host2')
  assert str(there) in line and f'{here} on host0' in line
  assert 'host1' not in line


def test_what_cannot_be_written_to_is_named(tmp_path):
  file = tmp_path / 'file'
  file.touch()
  with pytest.raises(ValueError, match=f'cannot write to {file}/run'):
    Mark(file / 'run')
  with pytest.raises(ValueError, match='cannot write to /proc/run'):
    Mark('/proc/run')
  assert os.listdir(tmp_path) == ['file']
