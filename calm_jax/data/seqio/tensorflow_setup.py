"""TensorFlow and seqio, imported once, quiet and without an accelerator.

Everything in `calm_jax.data` takes `tf` and `seqio` from here. TensorFlow
reserves all memory of the accelerators it sees, and JAX then fails for lack of
it, so they are hidden from it before anything can start them.
"""

import contextlib
import os
import sys
import tempfile

__all__ = ['seqio', 'tf']


@contextlib.contextmanager
def quiet_native_code():
  """Holds back what C++ code writes to stderr; shows it after an exception."""
  sys.stderr.flush()
  stderr = os.dup(2)
  with tempfile.TemporaryFile() as held:
    os.dup2(held.fileno(), 2)
    try:
      yield
    except BaseException:
      held.seek(0)
      os.write(stderr, held.read())
      raise
    finally:
      os.dup2(stderr, 2)
      os.close(stderr)


def hide_accelerators() -> None:
  """Hides GPUs and TPUs from TensorFlow; CPU is all that input needs.

  Raises:
    RuntimeError: if TensorFlow has already taken an accelerator.
  """
  for kind in ('GPU', 'TPU'):
    try:
      tf.config.set_visible_devices([], kind)
    except (RuntimeError, ValueError):
      if tf.config.get_visible_devices(kind):
        raise RuntimeError(
          f'TensorFlow has already taken a {kind}. Import calm_jax.data before '
          'anything that starts TensorFlow.'
        ) from None


# Read by the C++ side when the library is loaded; the few lines it writes
# before it looks at this need the redirection.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
with quiet_native_code():
  import seqio
  import tensorflow as tf

  hide_accelerators()
  tf.zeros(())  # starts the runtime, which talks once more
tf.get_logger().setLevel('ERROR')
