"""Files on disk <-> one parameter tree.

`native` is this project's own form (Orbax arrays and a JSON description): what
training writes, in the background, and everything else loads.
`parameter_fingerprint` names a set of parameters in certificates.
"""

from calm_jax.checkpoints.directories import (
  best_step,
  checkpoint_path,
  find_checkpoint,
  latest_step,
)
from calm_jax.checkpoints.fingerprints import parameter_fingerprint
from calm_jax.checkpoints.native import (
  Checkpoint,
  CheckpointWriter,
  SaveError,
  check_same_run,
  load_params,
  read_metadata,
  restore_train_state,
  save,
)

__all__ = [
  'Checkpoint',
  'CheckpointWriter',
  'SaveError',
  'best_step',
  'check_same_run',
  'checkpoint_path',
  'find_checkpoint',
  'latest_step',
  'load_params',
  'parameter_fingerprint',
  'read_metadata',
  'restore_train_state',
  'save',
]
