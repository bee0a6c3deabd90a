"""Mains whose output is read by something that stops reading."""

import subprocess
import sys

import pytest

MAIN = """
import sys
from calm_jax.cli import app_runner
def main(argv):
  if argv[1:] == ['other']:
    raise BrokenPipeError('of something else')
  for _ in range(20_000):
    print('a line of output')
app_runner.run(main)
"""


def run_until(lines, *command):
  """Runs Python; closes its output after some lines. Returns rc, stderr."""
  process = subprocess.Popen(
    [sys.executable, *command],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  for _ in range(lines):
    assert process.stdout.readline()
  process.stdout.close()
  said = process.stderr.read()
  process.stderr.close()
  return process.wait(), said


def test_a_reader_that_leaves_ends_a_main_quietly():
  assert run_until(1, '-c', MAIN) == (141, '')


def test_what_else_breaks_is_not_hidden():
  process = subprocess.run(
    [sys.executable, '-c', MAIN, 'other'], capture_output=True, text=True
  )
  assert process.returncode == 1
  assert 'BrokenPipeError: of something else' in process.stderr


@pytest.mark.parametrize('name', ['generate', 'convert'])
def test_help_may_be_read_in_part(name):
  code, said = run_until(1, '-m', f'calm_jax.cli.{name}', '--help')
  # Whether the rest had been written by then is up to the pipe.
  assert code in (1, 141)
  assert 'Traceback' not in said and 'Exception ignored' not in said


def test_what_a_user_can_mend_is_told_in_one_line():
  result = subprocess.run(
    [
      *(sys.executable, '-m', 'calm_jax.cli.generate'),
      *('--gin_file=runs/generate.gin', '--gin.INPUT_FILE=nowhere.txt'),
      *('--gin.MODEL_DIR=x', '--gin.POLICY=@decoding.ComputePolicy()'),
    ],
    capture_output=True,
    text=True,
  )
  assert result.returncode == 1
  assert result.stderr == (
    'FileNotFoundError: there is no input file nowhere.txt\n'
  )
