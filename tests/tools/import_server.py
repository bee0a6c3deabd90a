"""Python processes that need not import the libraries again.

Most of what a main takes to print its help is importing JAX. An ImportServer is
a process that has imported some libraries and nothing of calm_jax. It runs each
program in a fork of itself: `python -m MODULE ...` or `python -c CODE ...` in a
process of its own, as far as the program can tell, whose environment, working
directory and standard streams are those it is asked for. It waits for one
program at a time.

What does not hold: variables that a library reads while it is imported (JAX
reads JAX_*) are those of the server's start. Tests that set some need a process
that they start themselves.
"""

import functools
import gc
import importlib
import json
import os
import runpy
import socket
import subprocess
import sys
import tempfile

# Without TensorFlow, which calm_jax sets up before it imports it.
OF_MAINS = (
  'absl.app',
  'flax.linen',
  'gin',
  'jax',
  'optax',
  'orbax.checkpoint',
  'scipy.stats',
  'sentencepiece',
  'typeguard',
)
# JAX is not installed there.
OF_LAPTOPS = ('absl.app', 'jinja2', 'matplotlib.figure', 'scipy.stats')


@functools.cache
def server(*libraries):
  """Returns this process's server that has imported some libraries."""
  return ImportServer(libraries)


class ImportServer:
  """A process that has imported libraries; it ends with the one it was made in.

  Args:
    libraries: names of modules. What importing them writes to standard error
      is at the start of the standard error of every program.
  """

  def __init__(self, libraries):
    self._socket, theirs = socket.socketpair()
    with theirs:
      self._process = subprocess.Popen(
        [sys.executable, __file__, str(theirs.fileno()), *libraries],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
      )

  def run(self, *arguments):
    """Runs Python; returns its args, returncode, stdout and stderr.

    Args:
      *arguments: '-m', a module and its arguments, or '-c', code and its.
    """
    with (
      tempfile.TemporaryFile('w+') as out,
      tempfile.TemporaryFile('w+') as err,
    ):
      self.start(arguments, out.fileno(), err.fileno())
      returncode = self.wait()
      said = [file.seek(0) or file.read() for file in (out, err)]
    return subprocess.CompletedProcess(arguments, returncode, *said)

  def start(self, arguments, stdout, stderr):
    """Starts Python with two file descriptors, which it gets copies of."""
    request = dict(
      arguments=arguments, directory=os.getcwd(), environment=dict(os.environ)
    )
    message = json.dumps(request).encode()
    header = len(message).to_bytes(8, 'big')
    socket.send_fds(self._socket, [header], [stdout, stderr])
    self._socket.sendall(message)

  def wait(self):
    """Returns the exit status of what was started, as subprocess does."""
    answer = self._socket.recv(8)
    if not answer:
      raise RuntimeError(f'the server ended: {self._process.wait()}')
    return int.from_bytes(answer, 'big', signed=True)


def _fork_per_request(client):
  """Serves; returns, in forks of this process only, the arguments to run."""
  said = tempfile.TemporaryFile()
  os.dup2(said.fileno(), 2)
  for name in sys.argv[2:]:
    importlib.import_module(name)
  sys.stderr.flush()
  gc.freeze()
  said.seek(0)
  said = said.read()
  while True:
    header, streams, _, _ = socket.recv_fds(client, 8, 2)
    if not header:
      # Nothing was run here that would have to be cleaned up.
      os._exit(0)
    size = int.from_bytes(header, 'big')
    request = json.loads(client.recv(size, socket.MSG_WAITALL))
    child = os.fork()
    if not child:
      client.close()
      return _become(streams, said, **request)
    for stream in streams:
      os.close(stream)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    client.sendall(status.to_bytes(8, 'big', signed=True))


def _become(streams, said, *, arguments, directory, environment):
  """Takes streams, directory and environment; returns the arguments."""
  for number, stream in enumerate(streams, start=1):
    os.dup2(stream, number)
    os.close(stream)
  os.write(2, said)
  os.environ.clear()
  os.environ.update(environment)
  os.chdir(directory)
  return arguments


if __name__ == '__main__':
  # The folder of this file, where Python puts that of `-m` and `-c`.
  del sys.path[0]
  kind, what, *rest = _fork_per_request(socket.socket(fileno=int(sys.argv[1])))
  sys.path.insert(0, os.getcwd())
  sys.argv = [kind, *rest]
  # What these raise ends the process as it does any Python.
  if kind == '-m':
    runpy.run_module(what, run_name='__main__', alter_sys=True)
  else:
    exec(compile(what, '<string>', 'exec'), {'__name__': '__main__'})
