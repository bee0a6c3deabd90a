"""Mains whose output is read by something that stops reading, or not at all."""

import os
import subprocess
import sys
import tempfile

import pytest
from tools import import_server
from tools.mains import run_main

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


@pytest.fixture
def python():
  return import_server.server(*import_server.OF_MAINS)


def run_until(lines, python, *command):
  """Runs Python; closes its output after some lines. Returns rc, stderr."""
  output, written = os.pipe()
  with tempfile.TemporaryFile('w+') as said:
    python.start(command, written, said.fileno())
    os.close(written)
    with open(output) as output:
      for _ in range(lines):
        assert output.readline()
    code = python.wait()
    said.seek(0)
    return code, said.read()


@pytest.mark.slow
def test_a_reader_that_leaves_ends_a_main_quietly(python):
  assert run_until(1, python, '-c', MAIN) == (141, '')


def test_what_else_breaks_is_not_hidden(python):
  process = python.run('-c', MAIN, 'other')
  assert process.returncode == 1
  assert 'BrokenPipeError: of something else' in process.stderr


@pytest.mark.parametrize('name', ['generate', 'convert'])
def test_help_may_be_read_in_part(python, name):
  code, said = run_until(1, python, '-m', f'calm_jax.cli.{name}', '--help')
  # Whether the rest had been written by then is up to the pipe.
  assert code in (1, 141)
  assert 'Traceback' not in said and 'Exception ignored' not in said


def test_what_a_user_can_mend_is_told_in_one_line():
  result = run_main(
    'generate',
    *('--gin_file=runs/generate.gin', '--gin.INPUT_FILE=nowhere.txt'),
    *('--gin.MODEL_DIR=x', '--gin.POLICY=@decoding.ComputePolicy()'),
  )
  assert result.returncode == 1
  assert result.stderr == (
    'FileNotFoundError: there is no input file nowhere.txt\n'
  )


PRINTS = r"""
import sys
from calm_jax.cli import app_runner
def main(argv):
  print('\u2581caf\xe9 \ud83d')
  print(*argv[1:], sys.stdin.read(), file=sys.stderr)
app_runner.run(main)
"""


@pytest.mark.parametrize(
  ('redirect', 'code', 'out', 'err'),
  [
    ('', 0, '\u2581caf\xe9 \\ud83d\n', 'x \n'),
    ('>/dev/full', 1, '', 'output cannot be written: No space left'),
    ('>&-', 1, '', 'standard output is closed'),
    ('<&-', 0, '\u2581caf\xe9 \\ud83d\n', 'x \n'),
    ('2>&-', 0, '\u2581caf\xe9 \\ud83d\n', ''),
  ],
)
def test_streams_that_are_full_or_closed(redirect, code, out, err):
  command = f'exec "$@" {redirect}'
  done = subprocess.run(
    ['bash', '-c', command, 'x', sys.executable, '-c', PRINTS, 'x'],
    stdin=subprocess.DEVNULL,
    capture_output=True,
    encoding='utf-8',
    env={**os.environ, 'PYTHONIOENCODING': 'utf-8'},
  )
  assert (done.returncode, done.stdout) == (code, out)
  # What main itself said may have come out before its output is flushed.
  said = [line for line in done.stderr.splitlines() if line != 'x ']
  assert err in done.stderr and len(said) <= 1


def test_a_terminal_of_ascii_is_no_error():
  done = subprocess.run(
    [sys.executable, '-c', PRINTS],
    stdin=subprocess.DEVNULL,
    capture_output=True,
    text=True,
    env={**os.environ, 'PYTHONIOENCODING': 'ascii'},
  )
  assert (done.returncode, done.stdout) == (0, '\\u2581caf\\xe9 \\ud83d\n')
