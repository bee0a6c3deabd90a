"""What a tuning chose for a run, put to use: its policy and its certificate."""

import os

from calm_jax import decoding, interfaces, records
from calm_jax.runs.certified_policies import policy_described


def read_tuning(
  model_dir: str | os.PathLike, *, tuned: str = records.TUNED_FOLDER
) -> records.Tuning:
  """Reads what `calm_jax.cli.tune` tried and chose.

  Args:
    model_dir: the run directory.
    tuned: the folder in it that was tuned into, or any other by its path.

  Raises:
    FileNotFoundError: if nothing was.
    ValueError: if the file is not what that job writes.
  """
  path = os.path.join(model_dir, tuned, records.TUNED_NAME)
  if not os.path.exists(path):
    raise FileNotFoundError(
      f'there is no {path}; calm_jax.cli.tune writes it when it is done'
    )
  return records.read_record(path, records.Tuning)


def tuned_certificate(
  model_dir: str | os.PathLike, *, tuned: str = records.TUNED_FOLDER
) -> str | None:
  """Returns where the certificate of a tuning lies; None if it needs none.

  Lossless drafts and the full model say what the full model says.

  Args:
    model_dir: as for `read_tuning`.
    tuned: as for `read_tuning`.

  Raises:
    FileNotFoundError, ValueError: as `read_tuning`.
  """
  tuning = read_tuning(model_dir, tuned=tuned)
  if tuning.choice is None or tuning.certificate is None:
    return None
  return os.path.join(model_dir, tuned, tuning.certificate)


def load_tuned_policy(
  model_dir: str | os.PathLike, *, tuned: str = records.TUNED_FOLDER
) -> decoding.ComputePolicy:
  """Returns the policy that a tuning chose, to be used with its certificate.

  Args:
    model_dir: as for `read_tuning`; trained parts of the policy are read from
      it.
    tuned: as for `read_tuning`.

  Raises:
    FileNotFoundError, ValueError: as `read_tuning` and `policy_of`.
  """
  tuning = read_tuning(model_dir, tuned=tuned)
  if tuning.choice is not None:
    return policy_described(tuning.choice.described, model_dir)
  return decoding.ComputePolicy()


def tuned_depth_loop(
  model_dir: str | os.PathLike, *, tuned: str = records.TUNED_FOLDER
) -> interfaces.DepthLoop | None:
  """Returns the depth loop that a tuning found the fastest for its choice.

  Args:
    model_dir: as for `read_tuning`.
    tuned: as for `read_tuning`.

  Returns:
    The depth loop; None, for that of the backend, where the tuning was told of
    none.

  Raises:
    FileNotFoundError, ValueError: as `read_tuning`.
  """
  name = read_tuning(model_dir, tuned=tuned).depth_loop
  return None if name is None else decoding.DEPTH_LOOPS[name]
