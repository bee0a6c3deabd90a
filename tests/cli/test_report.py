"""The report command: one page from files on disk, without JAX."""

import dataclasses
import os
import shutil

import pytest
from cases import example_result, validation_cases
from tools import import_server
from tools.mains import run_main

from calm_jax import records
from calm_jax.cli import report

pytest.importorskip('jinja2')
pytest.importorskip('matplotlib')


def write_run(folder):
  """Writes what the jobs leave in a run directory, but for a validation."""
  records.write_json(
    folder / 'evaluation' / 'result.json', example_result.evaluation_result()
  )
  return str(folder)


@pytest.fixture(scope='module')
def _validated(tmp_path_factory):
  folder = tmp_path_factory.mktemp('validated')
  validation_cases.validation(folder, output_dir=str(folder / 'calibration'))
  write_run(folder)
  return folder


@pytest.fixture
def validated(_validated, tmp_path):
  """A run directory of the test's own, with a validation."""
  return shutil.copytree(_validated, tmp_path / 'run')


@pytest.mark.slow
def test_the_job_writes_a_page_without_jax(validated):
  program = (
    'import runpy, sys\n'
    'for name in ("jax", "flax", "tensorflow", "seqio", "gin"):\n'
    '  sys.modules[name] = None\n'
    'sys.argv[0] = "report"\n'
    'runpy.run_module("calm_jax.cli.report", run_name="__main__")\n'
  )
  python = import_server.server(*import_server.OF_LAPTOPS)
  result = python.run('-c', program, f'--run_dir={validated}')
  assert result.returncode == 0, result.stderr
  page = (validated / 'report.html').read_text('utf-8')
  assert 'Certified: setting 7 of 21' in page
  assert 'The guarantee, counted' in page
  assert str(validated / 'report.html') in result.stdout


def test_without_a_validation_the_page_says_nothing_of_it(tmp_path, capsys):
  run_dir = write_run(tmp_path)
  path = report.run(run_dir, output=str(tmp_path / 'deep' / 'page.html'))
  with open(path, encoding='utf-8') as file:
    assert 'The guarantee, counted' not in file.read()
  assert 'calm_jax.cli.validate' in capsys.readouterr().out


def test_files_may_be_elsewhere(validated, tmp_path):
  path = report.run(
    str(tmp_path / 'empty'),
    evaluation=str(validated / 'evaluation' / 'result.json'),
    validation=str(validated / 'calibration' / 'validation.json'),
  )
  assert path == str(tmp_path / 'empty' / 'report.html')
  assert os.path.getsize(path) > 10_000


def test_missing_files_are_named_with_the_job_that_writes_them(tmp_path):
  with pytest.raises(
    FileNotFoundError,
    match=r'no evaluation at .*result.json; calm_jax\.cli\.eval',
  ):
    report.run(str(tmp_path))
  run_dir = write_run(tmp_path)
  # Asked for, it is not left out in silence.
  with pytest.raises(
    FileNotFoundError, match=r'no validation at none.json; calm_jax\.cli\.val'
  ):
    report.run(run_dir, validation='none.json')
  assert not (tmp_path / 'report.html').exists()


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    ({'task': 'x'}, "has no 'split'"),
    ([], 'expected'),
    (
      dataclasses.replace(
        example_result.evaluation_result(), rows=({'name': 3},)
      ),
      r'rows\[0\]',
    ),
  ],
)
def test_what_is_no_evaluation_is_named(tmp_path, content, message):
  path = tmp_path / 'evaluation' / 'result.json'
  records.write_json(path, content)
  with pytest.raises(ValueError, match=message) as error:
    report.run(str(tmp_path))
  assert str(path) in str(error.value)
  assert 'calm_jax.cli.evaluate' in str(error.value)


def test_half_a_file_is_named(validated):
  path = validated / 'calibration' / 'validation.json'
  path.write_text(path.read_text('utf-8')[:500], encoding='utf-8')
  with pytest.raises(ValueError, match='validation.json is not valid JSON'):
    report.run(str(validated))


@pytest.mark.slow
def test_the_main_ends_in_one_line(tmp_path):
  result = run_main('report', f'--run_dir={tmp_path}')
  assert result.returncode != 0
  assert result.stderr.startswith('report: there is no evaluation at')
  assert 'Traceback' not in result.stderr


@pytest.mark.slow
def test_some_outputs_become_a_picture(tmp_path, capsys):
  run_dir = write_run(tmp_path)
  picture = tmp_path / 'picture.svg'
  report.run(run_dir, picture=str(picture), samples=[2, 1])
  both = picture.stat().st_size
  report.run(run_dir, picture=str(picture), samples=[1])
  assert picture.stat().st_size < both
  assert str(picture) in capsys.readouterr().out
  with pytest.raises(ValueError, match=r'no sample 0: .* 1 to \d'):
    report.run(run_dir, picture=str(picture), samples=[0])
