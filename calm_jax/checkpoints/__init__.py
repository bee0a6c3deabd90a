"""Files on disk <-> one parameter tree.

`native` is this project's own form (Orbax arrays and a JSON description): what
training writes, in the background, and everything else loads. `load` reads it
and, without T5X or PyTorch, T5X's and Hugging Face's checkpoints; `convert`
writes all of them. `parameter_fingerprint` names a set of parameters in
certificates.
"""

from calm_jax.checkpoints.conversion import (
  FORMATS,
  Converted,
  Target,
  convert,
  from_params,
)
from calm_jax.checkpoints.directories import (
  best_step,
  checkpoint_path,
  find_checkpoint,
  latest_step,
)
from calm_jax.checkpoints.fingerprints import parameter_fingerprint
from calm_jax.checkpoints.formats import open_checkpoint
from calm_jax.checkpoints.huggingface_generation import GenerationRules
from calm_jax.checkpoints.huggingface_texts import TextFacts
from calm_jax.checkpoints.int8_files import int8_path, load_int8, save_int8
from calm_jax.checkpoints.loading import check_all_finite, load
from calm_jax.checkpoints.native import (
  Checkpoint,
  CheckpointWriter,
  SaveError,
  check_same_run,
  config_of,
  load_params,
  read_metadata,
  restore_train_state,
  save,
)
from calm_jax.checkpoints.stored_checkpoint import StoredCheckpoint

__all__ = [
  'FORMATS',
  'Checkpoint',
  'CheckpointWriter',
  'Converted',
  'GenerationRules',
  'SaveError',
  'StoredCheckpoint',
  'Target',
  'TextFacts',
  'best_step',
  'check_all_finite',
  'check_same_run',
  'checkpoint_path',
  'config_of',
  'convert',
  'find_checkpoint',
  'from_params',
  'int8_path',
  'latest_step',
  'load',
  'load_int8',
  'load_params',
  'open_checkpoint',
  'parameter_fingerprint',
  'read_metadata',
  'restore_train_state',
  'save',
  'save_int8',
]
