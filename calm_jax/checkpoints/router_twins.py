"""Which small twins a router was trained beside, and whether these are they.

A router learns where a twin is good enough in place of a block. Beside other
twins of the same model it would still answer, and mean nothing.
"""

import os
from typing import Any

from calm_jax.array_types import PyTree
from calm_jax.checkpoints import directories, native
from calm_jax.checkpoints.fingerprints import parameter_fingerprint
from calm_jax.checkpoints.trained_parts import SMALL_TWINS, TWIN_ROUTER

ROUTED = 'small_twin_parameters'


def twins_context(twins: PyTree) -> dict[str, Any]:
  """Returns what the context of a router says of twins.

  Their fingerprint is the one that their own checkpoint has.

  Args:
    twins: `small_twins.SmallTwins`, as they were loaded.
  """
  return {ROUTED: parameter_fingerprint({SMALL_TWINS.key: twins})}


def check_routed(model_dir: str | os.PathLike, router: str, twins: str) -> None:
  """Checks that a router was trained beside the twins that it will choose.

  Args:
    model_dir: the model's run directory.
    router: the name of the router's folder in it.
    twins: that of the twins.

  Raises:
    FileNotFoundError: if a folder is not there.
    ValueError: if the router was trained beside others.
  """
  folder = os.path.abspath(os.fspath(model_dir))
  path = os.path.join(folder, twins)
  if directories.latest_step(path) is None:
    raise FileNotFoundError(
      f'there is no {SMALL_TWINS.title} in {path}; give the folder of those '
      f'that the router was trained beside'
    )
  wanted = _metadata(os.path.join(folder, router))['context'].get(ROUTED)
  found = _metadata(path)['parameter_fingerprint']
  if wanted != found:
    raise ValueError(
      f'the router in {os.path.join(folder, router)} was trained beside twins '
      f'{wanted}, but {path} holds {found}: give the folder of those, or train '
      f'it again with {TWIN_ROUTER.job} and --gin.SMALL_TWINS={twins}'
    )


def _metadata(path: str) -> dict[str, Any]:
  return native.read_metadata(directories.find_checkpoint(path))
