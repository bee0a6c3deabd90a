"""READMEs show what the JSON files of the benchmarks say."""

import json
import pathlib
import shutil

import pytest

from calm_jax.benchmarks import readme_places, registered_tables, tables

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / 'calm_jax' / 'benchmarks' / 'results'
PLACE = '<!-- table: throughput -->\n<!-- end of table: throughput -->\n'


def places(root):
  for path in readme_places.find_readmes(root):
    text = path.read_text(encoding='utf-8')
    yield from readme_places.find_places(text, str(path))


def test_every_readme_shows_what_the_json_files_say(capsys):
  tables.main([f'--root={ROOT}', f'--results={RESULTS}', '--check'])
  assert capsys.readouterr().out.startswith('all tables are')


def test_every_table_is_shown_once():
  shown = sorted(place.name for place in places(ROOT))
  assert shown == sorted(registered_tables.TABLES)


def test_no_json_file_is_without_a_table():
  used = {
    name for table in registered_tables.TABLES.values() for name in table.files
  }
  assert used == {path.name for path in RESULTS.glob('*.json')}


def altered(value):
  """Returns JSON in which every figure is another one."""
  if isinstance(value, dict):
    return {key: altered(item) for key, item in value.items()}
  if isinstance(value, list):
    return [altered(item) for item in value]
  if isinstance(value, str):
    return value.translate(str.maketrans('0123456789', '1234567891'))
  if isinstance(value, (int, float)) and not isinstance(value, bool):
    return 2 * value + 1
  return value


@pytest.mark.parametrize('name', registered_tables.TABLES)
def test_a_table_follows_each_of_its_files(name, tmp_path):
  table = registered_tables.TABLES[name]
  for file in table.files:
    shutil.copytree(RESULTS, tmp_path, dirs_exist_ok=True)
    content = json.loads((tmp_path / file).read_text(encoding='utf-8'))
    measured = {'rows', 'layers', 'timings', 'depths', 'candidates'} & set(
      content
    )
    assert measured
    content |= {key: altered(content[key]) for key in measured}
    (tmp_path / file).write_text(json.dumps(content), encoding='utf-8')
    assert table.content(tmp_path) != table.content(RESULTS), file


@pytest.fixture
def repository(tmp_path):
  """A folder with a README beside a copy of the results; and its flags."""
  results = tmp_path / 'results'
  shutil.copytree(RESULTS, results)
  (tmp_path / 'README.md').write_text(f'# Head\n\n{PLACE}\nTail', 'utf-8')
  return tmp_path, [f'--root={tmp_path}', f'--results={results}']


def test_the_command_writes_and_the_check_fails_on_changed_figures(
  repository, capsys
):
  root, flags = repository
  readme = root / 'README.md'
  empty = readme.read_text('utf-8')
  with pytest.raises(SystemExit, match='README.md: throughput'):
    tables.main([*flags, '--check'])
  assert readme.read_text('utf-8') == empty
  tables.main(flags)
  assert capsys.readouterr().out == 'README.md: throughput\n'
  written = readme.read_text('utf-8')
  assert written.startswith('# Head\n\n<!-- table: throughput -->\n\n| run |')
  assert written.endswith('\n\n<!-- end of table: throughput -->\n\nTail')
  tables.main([*flags, '--check'])
  path = root / 'results' / 'e2e_nlg_throughput_cpu.json'
  content = json.loads(path.read_text('utf-8'))
  content['rows'][0]['tokens_per_second'] += 1
  path.write_text(json.dumps(content), 'utf-8')
  with pytest.raises(SystemExit, match='README.md: throughput') as ended:
    tables.main([*flags, '--check'])
  assert ended.value.code != 0
  assert readme.read_text('utf-8') == written
  tables.main(flags)
  assert readme.read_text('utf-8') != written


def test_a_lacking_or_bad_json_file_is_named_with_its_place(repository):
  root, flags = repository
  path = root / 'results' / 'e2e_nlg_throughput_cpu.json'
  path.write_text('{"rows": [{}], "context": {}}', 'utf-8')
  with pytest.raises(SystemExit, match=r'README.md:3: .*throughput_cpu.json'):
    tables.main(flags)
  path.unlink()
  with pytest.raises(SystemExit, match=r'README.md:3: .*throughput_cpu.json'):
    tables.main(flags)


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('<!-- table: speeds -->\n<!-- end of table: speeds -->', '1: there is no'),
    ('\n<!-- table: abuse -->\n| a |', '2: table abuse has no end'),
    ('a\n\n<!-- end of table: abuse -->', '3: .* stands outside any table'),
    (
      '<!-- table: abuse -->\n<!-- table: results -->',
      '2: .* stands inside table abuse of line 1',
    ),
    (
      '<!-- table: abuse -->\n<!-- end of table: results -->',
      '2: .* stands inside table abuse of line 1',
    ),
    ('<!-- table:abuse -->', '1: .* is no marker'),
    ('x\n <!-- Table: abuse -->', '2: .* is no marker'),
    ('<!-- table: abuse --> below', '1: .* is no marker'),
    ('<!-- table: abuse -->\n<!-- end table: abuse -->', '2: .* is no marker'),
  ],
)
def test_bad_markers_are_refused_with_file_and_line(tmp_path, text, message):
  (tmp_path / 'README.md').write_text(text, 'utf-8')
  with pytest.raises(SystemExit, match=f'^tables: README.md:{message}'):
    tables.main([f'--root={tmp_path}', f'--results={RESULTS}', '--check'])


def test_a_folder_that_is_no_checkout_is_refused(tmp_path):
  with pytest.raises(SystemExit, match='has no README.md; give --root'):
    tables.main([f'--root={tmp_path}'])


def test_fenced_code_and_other_comments_are_left_alone():
  text = f'<!-- a comment -->\n```\n{PLACE}```\n~~~\n```\n{PLACE}~~~\n{PLACE}'
  (place,) = readme_places.find_places(text, 'README.md')
  assert text.split('\n')[place.first - 1] == '<!-- table: throughput -->'
  assert place.first == 11 and place.last == 12
  filled, stale = readme_places.fill(text, 'README.md', lambda name: '```\n1')
  assert stale == ['throughput']
  assert filled.startswith(text[: -len(PLACE)])
  assert readme_places.fill(filled, 'README.md', lambda name: '```\n1') == (
    filled,
    [],
  )


def test_readmes_are_found_where_people_write_them(tmp_path):
  kept = ['README.md', 'gin_configs/runs/README.md', 'tests/README.md']
  for name in [*kept, 'runs/README.md', '.venv/README.md', 'a/.b/README.md']:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
  found = readme_places.find_readmes(tmp_path)
  assert [str(path.relative_to(tmp_path)) for path in found] == kept
