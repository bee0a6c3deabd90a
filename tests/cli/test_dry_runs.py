"""--dry_run of the jobs: what they would do is said, and nothing is done."""

import pathlib

import pytest
from fakes.counting_task import bindings_of
from tools.mains import run_main

gin = pytest.importorskip('gin')
pytest.importorskip('seqio', reason='the jobs read seqio Tasks')

from cases.job_cases import call

from calm_jax.cli import gin_runner


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
