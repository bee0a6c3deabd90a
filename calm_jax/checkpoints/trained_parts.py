"""Parts trained for a model's parameters, each in a folder beside them.

Such a part is a checkpoint of its own, in a folder of the model's run
directory, whose context says which parameters it was trained for. Beside any
others it would still give numbers, and they would mean nothing.
"""

import dataclasses
import os
from typing import Any

from calm_jax.array_types import Array, Params
from calm_jax.checkpoints import directories, native
from calm_jax.checkpoints.fingerprints import parameter_fingerprint

BACKBONE = 'backbone_parameters'
# Of the context of an encoder's gate: the heads that it was trained for.
JUDGED_HEADS = 'encoder_head_parameters'


@dataclasses.dataclass(frozen=True)
class TrainedPart:
  """A kind of part.

  Attributes:
    key: the one name at the top of its parameter tree, and of its folder where
      nobody gives another.
    title: what sentences call it.
    job: what trains it.
  """

  key: str
  title: str
  job: str


CLASSIFIER = TrainedPart(
  'classifier', 'classifier', 'calm_jax.cli.train_classifier'
)
DRAFT_HEAD = TrainedPart(
  'draft_head', 'draft head', 'calm_jax.cli.train_draft_head'
)
ENCODER_HEADS = TrainedPart(
  'encoder_heads', 'set of encoder heads', 'calm_jax.cli.train_encoder_heads'
)
EXIT_ADAPTERS = TrainedPart(
  'exit_adapters', 'set of exit adapters', 'calm_jax.cli.train_exits'
)
GATE = TrainedPart('gate', 'gate', 'calm_jax.cli.train_gates')
ENCODER_GATE = dataclasses.replace(
  GATE, title='gate of the encoder', job='calm_jax.cli.train_encoder_gate'
)
ROUTER = TrainedPart('router', 'router', 'calm_jax.cli.train_router')
SMALL_TWINS = TrainedPart(
  'small_twins', 'set of small twins', 'calm_jax.cli.train_twins'
)
SOURCE_SCORER = TrainedPart(
  'source_scorer', 'source scorer', 'calm_jax.cli.train_source'
)
TWIN_ROUTER = TrainedPart(
  'twin_router', 'router of small twins', 'calm_jax.cli.train_twin_router'
)
CONTEXT_GATES = TrainedPart(
  'context_gates', 'set of context gates', 'calm_jax.cli.train_context'
)


def backbone_context(params: Params) -> dict[str, Any]:
  """Returns what the context of a part says of its model."""
  return {BACKBONE: parameter_fingerprint(params)}


def part_directory(model_dir: str | os.PathLike, name: str) -> str:
  """Returns the directory of a part in that of its model.

  Raises:
    ValueError: for a folder that is the model's or elsewhere.
  """
  reserved = ('', '.', '..', directories.BEST, directories.INT8)
  if (
    name in reserved
    or os.path.basename(name) != name
    or name.startswith('checkpoint_')
  ):
    raise ValueError(
      f'name must be that of a folder of its own in model_dir, got {name!r}'
    )
  return os.path.join(os.fspath(model_dir), name)


def load_part(
  part: TrainedPart, model_dir: str | os.PathLike, name: str | None = None
) -> dict[str, Array]:
  """Returns the parameters of a part of a run directory, by their names.

  Args:
    part: what it is.
    model_dir: the model's run directory; its parameters are those that
      `load_params` takes from it.
    name: of the part's folder in it.

  Raises:
    FileNotFoundError: if there is no model or no such part.
    ValueError: if files are damaged, hold another part or none, or the part was
      trained for other parameters.
  """
  folder = os.path.abspath(os.fspath(model_dir))
  path = os.path.join(folder, part.key if name is None else name)
  if directories.latest_step(path) is None:
    # A folder without a model has no use for the job that is named then.
    directories.find_checkpoint(model_dir)
    raise FileNotFoundError(
      f'there is no {part.title} in {path}; run {part.job} for '
      f'{os.fspath(model_dir)} first'
    )
  params, _, metadata = native.load_params(path)
  trained_for = metadata['context'].get(BACKBONE)
  if trained_for is None or set(params) != {part.key}:
    raise ValueError(
      f'{path} is no {part.title}: it holds the parameters {sorted(params)}; '
      f'give the name of a folder that {part.job} wrote'
    )
  backbone = directories.find_checkpoint(model_dir)
  found = native.read_metadata(backbone)['parameter_fingerprint']
  if found != trained_for:
    raise ValueError(
      f'the {part.title} in {path} was trained for parameters {trained_for}, '
      f'but {backbone} holds {found}: train it again for these, under another '
      'name or in place of the old one'
    )
  return dict(params[part.key])


def part_folders(model_dir: str | os.PathLike) -> list[str]:
  """Returns the names of folders of a run directory that hold parts of it.

  Args:
    model_dir: the model's run directory.
  """
  folders = sorted(os.listdir(model_dir)) if os.path.isdir(model_dir) else []
  return [name for name in folders if _holds_part(model_dir, name)]


def _holds_part(model_dir: str | os.PathLike, name: str) -> bool:
  path = os.path.join(os.fspath(model_dir), name)
  if not os.path.isdir(path) or directories.latest_step(path) is None:
    return False
  metadata = native.read_metadata(directories.find_checkpoint(path))
  return BACKBONE in metadata['context']
