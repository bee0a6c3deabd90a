"""The task of long inputs and short labels."""

import gzip
import json

import pytest

from calm_jax.benchmarks import answer_kinds
from calm_jax.data.jsonl_files import read_examples


@pytest.mark.parametrize(
  ('answer', 'kind'),
  [
    ('winter of 1973–74', 'date'),
    ('the 1990s', 'date'),
    ('November 28', 'date'),
    ('five to ten years', 'number'),
    ('55 mph', 'number'),
    ('Al-Qaeda and the Taliban', 'name'),
    ('Élysée Palace', 'name'),
    ('the embargo', 'phrase'),
    ('The embargo', 'phrase'),
    ('of the', 'phrase'),
    ('?', 'phrase'),
  ],
)
def test_kinds_are_told_by_spelling(answer, kind):
  assert answer_kinds.kind_of(answer) == kind


def _write(path, rows):
  with gzip.open(path, 'wt', encoding='utf-8') as file:
    file.writelines(json.dumps(row) + '\n' for row in rows)


def test_inputs_stay_and_kinds_stand_for_answers(tmp_path, capsys):
  rows = [
    {'inputs': 'question: when? context: é', 'targets': 'in 1973'},
    {'inputs': 'question: who? context: b', 'targets': 'Ted Heath'},
  ]
  for split in answer_kinds.SPLITS:
    _write(tmp_path / f'squad_v1_short.{split}.jsonl.gz', rows)
  out = tmp_path / 'made' / 'here'
  answer_kinds.main([f'--data={tmp_path}', f'--output={out}'])
  for split in answer_kinds.SPLITS:
    found = list(read_examples(out / f'answer_kinds.{split}.jsonl.gz'))
    assert [row.inputs for row in found] == [row['inputs'] for row in rows]
    assert [row.targets for row in found] == ['date', 'name']
    assert [row.references for row in found] == [('date',), ('name',)]
  assert "2 rows, {'date': 1, 'name': 1}" in capsys.readouterr().out


def test_a_folder_without_questions_is_named(tmp_path):
  with pytest.raises(SystemExit, match='squad_v1_short.train.jsonl.gz'):
    answer_kinds.main([f'--data={tmp_path}', f'--output={tmp_path / "out"}'])


def test_a_bad_line_leaves_no_file(tmp_path):
  _write(tmp_path / 'squad_v1_short.train.jsonl.gz', [{'inputs': 'a'}])
  with pytest.raises(SystemExit, match='line 1'):
    answer_kinds.main([f'--data={tmp_path}', f'--output={tmp_path / "out"}'])
  assert not list((tmp_path / 'out').glob('*.gz'))
