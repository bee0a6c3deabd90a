"""What jobs share that train a part on what the run's model itself says."""

import dataclasses
from typing import Any

from calm_jax import checkpoints, checks, evaluation, records
from calm_jax.cli import own_outputs, part_rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputPlan:
  """Which inputs the model is asked, and how its outputs are learnt from.

  Attributes:
    batch_size: rows of a training step.
    max_inputs: different inputs to learn from at most; None for all.
    eval_inputs: those of the validation split to measure on at most.
    length_buckets: (inputs, outputs) lengths that batches are padded to.
  """

  batch_size: int = 32
  max_inputs: int | None = 2000
  eval_inputs: int | None = 200
  length_buckets: tuple[tuple[int, int], ...] = ()

  def __post_init__(self):
    """Raises ValueError for numbers below 1."""
    for name in ('batch_size', 'max_inputs', 'eval_inputs'):
      if (value := getattr(self, name)) is not None or name == 'batch_size':
        checks.check_whole(value, name, low=1)


@dataclasses.dataclass(frozen=True)
class OwnRows:
  """Inputs of a Task and what the model says, decoded unless it is kept.

  Attributes:
    inputs: which inputs, and how rows are put together; the defaults if None.
    layout: how they are decoded together; the defaults if None.
  """

  inputs: InputPlan | None = None
  layout: evaluation.BatchLayout | None = None
  reads_targets = False

  def of(self, part: own_outputs.Part) -> part_rows.PartRows:
    """Returns the rows of a part; those to measure on are decoded last."""
    inputs = InputPlan() if self.inputs is None else self.inputs
    outputs = own_outputs.OwnOutputs(part, self.layout)
    most = {'train': inputs.max_inputs, 'validation': inputs.eval_inputs}
    return part_rows.rows_of_outputs(
      outputs,
      inputs,
      context=_context(outputs, inputs),
      prepare=lambda split: outputs.decode(split, most[split]),
    )


def _context(
  outputs: own_outputs.OwnOutputs, inputs: InputPlan
) -> dict[str, Any]:
  """Returns what a restart must give again."""
  context = records.to_jsonable(dataclasses.asdict(inputs))
  directory = outputs.part.directory
  step = checkpoints.latest_step(directory)
  if step is not None:
    path = checkpoints.checkpoint_path(directory, step)
    if 'inputs_hash' not in checkpoints.read_metadata(path)['context']:
      # Begun when runs did not say it yet.
      return context
  # A restart skips what it has seen: of other inputs it would skip others.
  return {**context, 'inputs_hash': outputs.inputs_hash('train')}
