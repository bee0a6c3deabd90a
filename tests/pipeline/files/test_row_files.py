"""Rows that wait for their turn take little room, and none of them is lost."""

import json

import pytest

from calm_jax.pipeline.files import row_files
from calm_jax.pipeline.files.row_files import RowFile


def make_rows(*lines):
  return [{'line': line, 'inputs': 'ä' * 50} for line in lines]


def test_the_file_of_waiting_rows_stays_small(tmp_path, monkeypatch):
  monkeypatch.setattr(row_files, '_LARGE', 500)
  path, waiting = tmp_path / 'rows', tmp_path / 'rows.waiting'
  last, sizes = 40, []
  with RowFile(str(path), {}) as rows:
    for line in range(1, last + 1):
      rows.expect(line, 'ä' * 50)
    rows.add(make_rows(2))
    # After every batch one row waits.
    for line in range(1, last - 2, 2):
      rows.add(make_rows(line, line + 3))
      sizes.append(waiting.stat().st_size)
      written = path.read_text('utf-8') + waiting.read_text('utf-8')
      there = {json.loads(row)['line'] for row in written.splitlines()}
      assert there == {*range(1, line + 2), line + 3}
    assert max(sizes) < 1000 < path.stat().st_size
  # As after a kill: what waited is still there.
  with RowFile(str(path), {}) as rows:
    assert last in rows and last - 1 not in rows
    for line in range(1, last + 1):
      rows.expect(line, 'ä' * 50)
    rows.add(make_rows(last - 1))
    rows.finish()
  lines = [json.loads(row)['line'] for row in path.open(encoding='utf-8')]
  assert lines == list(range(1, last + 1))
  assert sorted(one.name for one in tmp_path.iterdir()) == [
    'rows',
    'rows.about',
  ]


def test_two_jobs_do_not_share_a_file(tmp_path):
  path = str(tmp_path / 'rows')
  with RowFile(path, {}) as rows:
    rows.add(make_rows(1))
    with pytest.raises(ValueError, match='rows is being written by process'):
      RowFile(path, {})
  # Also after one that was refused.
  for _ in range(2):
    with pytest.raises(ValueError, match='made otherwise: seed None there, 1'):
      RowFile(path, {'seed': 1})
  with RowFile(path, {}) as rows:
    assert 1 in rows
