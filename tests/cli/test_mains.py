"""Every main explains itself, and ends in one line where it cannot run."""

import pathlib

import pytest
from tools.mains import run_main

pytest.importorskip('gin')
pytest.importorskip('seqio', reason='the jobs read seqio Tasks')


from calm_jax.cli import gin_runner, macro_help

MAINS = sorted(
  path.stem
  for path in pathlib.Path(gin_runner.__file__).parent.glob('*.py')
  if "if __name__ == '__main__'" in path.read_text(encoding='utf-8')
)


def test_there_are_the_mains_of_the_readme():
  assert MAINS == [
    'build_vocabulary',
    'calibrate',
    'calibrate_encoder',
    'convert',
    'evaluate',
    'export',
    'find_label_words',
    'generate',
    'monitor',
    'report',
    'tokenize',
    'train',
    'train_classifier',
    'train_context',
    'train_draft_head',
    'train_encoder_gate',
    'train_encoder_heads',
    'train_exits',
    'train_gates',
    'train_router',
    'train_source',
    'train_twin_router',
    'train_twins',
    'tune',
    'tune_encoder',
    'validate',
  ]


# Configured by flags of their own, not by gin.
OWN_FLAGS = {
  'build_vocabulary': '--vocab_size',
  'convert': '--source',
  'monitor': '--rows',
  'report': '--run_dir',
  'validate': '--table',
}


def macros_of(name):
  """Returns what a job's gin file says of its macros."""
  file = gin_runner.shipped_configs() / 'runs' / f'{name}.gin'
  return macro_help.meanings(file.read_text(encoding='utf-8'))


@pytest.mark.parametrize('name', [n for n in MAINS if n not in OWN_FLAGS])
def test_macros_have_a_meaning(name):
  found = macros_of(name)
  assert len(found) >= 2
  for macro, (_, meaning) in found.items():
    assert meaning, f'runs/{name}.gin does not say what {macro} means'


# One that trains, one that decodes, one that is without JAX and one with flags
# of its own: the others are started alike.
@pytest.mark.parametrize(
  'name',
  [
    pytest.param(
      name,
      marks=()
      if name in ('train', 'generate', 'validate', 'convert')
      else pytest.mark.slow,
    )
    for name in MAINS
  ],
)
def test_help_teaches(name):
  result = run_main(name, '--help')
  text = result.stdout + result.stderr
  assert f'python -m calm_jax.cli.{name}' in text
  if name in OWN_FLAGS:
    assert OWN_FLAGS[name] in text
    return
  for flag in ('--gin_file', '--[no]dry_run', '--process_count'):
    assert f'\n  {flag}: ' in text
  for macro in macros_of(name):
    assert f'--gin.{macro}' in text


def test_bad_configurations_end_in_one_line(tmp_path):
  result = run_main('train', '--gin_file=runs/trian.gin')
  assert result.returncode != 0
  assert "no gin file 'runs/trian.gin'" in result.stderr
  assert 'Traceback' not in result.stderr


@pytest.mark.slow
def test_a_directory_that_cannot_be_written_ends_in_one_line():
  result = run_main(
    'train',
    '--gin_file=runs/train.gin',
    '--gin_file=models/narrow.gin',
    '--gin_file=tasks/embedded_corpus.gin',
    '--gin.MODEL_DIR=/proc/run',
  )
  assert result.returncode == 1
  assert 'model_dir: cannot write to /proc/run' in result.stderr
  assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
  'given,message',
  [
    (('--process_count=2',), 'but no --coordinator_address'),
    (
      ('--process_count=2', '--coordinator_address=a:1', '--process_index=0'),
      'this job runs in one process',
    ),
  ],
)
def test_flags_of_several_processes_end_in_one_line(given, message):
  result = run_main(
    'generate',
    '--gin_file=runs/generate.gin',
    '--gin_file=policies/softmax_margin.gin',
    '--gin.MODEL_DIR=nowhere',
    *given,
  )
  assert result.returncode == 1
  assert message in result.stderr
  assert len(result.stderr.strip().splitlines()) == 1


def test_an_unknown_flag_ends_in_a_hint():
  result = run_main('train', '--gin_file=runs/train.gin', '--nonsense')
  assert result.returncode != 0
  assert "Unknown command line flag 'nonsense'" in result.stderr
  assert 'Traceback' not in result.stderr
