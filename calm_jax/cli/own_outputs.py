"""What a run's model says to inputs of a Task, kept to learn from.

No reference is read: the targets are the model's own greedy outputs. They lie
beside the part that learns from them, as token ids, and decoded rows in the
run's `decodes`, so that a restart, whenever it comes, decodes nothing twice.
"""

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from calm_jax import data as datasets
from calm_jax import decoding, evaluation, runs, training
from calm_jax.cli import jobs
from calm_jax.data import batches as batching
from calm_jax.processes import speaking


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
  """A part that is to be trained for a run's model.

  Attributes:
    loaded: the run.
    model_dir: its directory.
    directory: the part's.
    task: the Task.
    seed: of what is drawn from it, and of the order.
  """

  loaded: runs.LoadedRun
  model_dir: str
  directory: str
  task: Any
  seed: int

  @property
  def has_validation(self) -> bool:
    """Whether the Task has a split to measure on."""
    return 'validation' in datasets.as_task(self.task).splits


@dataclasses.dataclass(frozen=True)
class OwnOutputs:
  """The full model's outputs for inputs of a Task.

  Attributes:
    part: in whose directory they are kept, as `training.write_npz` writes them;
      the Task's targets are not looked at.
    layout: how rows are decoded together; the defaults if None.
  """

  part: Part
  layout: evaluation.BatchLayout | None = None

  def path(self, split: str) -> str:
    """Returns the file of a split's."""
    return os.path.join(self.part.directory, f'outputs_{split}.npz')

  def decode(self, split: str, max_inputs: int | None) -> None:
    """Writes the file of a split, unless it is there.

    Args:
      split: the split.
      max_inputs: how many different inputs at most; None for all.

    Raises:
      ValueError: if the split has no inputs.
    """
    path, about = self.path(split), self._about(split, max_inputs)
    if os.path.exists(path) and training.npz_metadata(path) == about:
      speaking.say(f'{path}: what the model says is there already')
      return
    inputs = self._different_inputs(split, max_inputs)
    said = self._say(inputs)
    # Up to where a model says padding, which no target may hold, or its logits
    # are not finite.
    told = [_before_padding(out) for out in said.tokens]
    count = training.write_npz(
      path,
      [
        {'inputs': ids, 'targets': out}
        for ids, out in zip(inputs, told, strict=True)
        if len(out)
      ],
      metadata=about,
    )
    speaking.say(
      f'{path}: {count:,} inputs of {split}, {said.num_tokens:,} tokens that '
      'the model says'
    )

  def check(self, split: str) -> None:
    """Checks that outputs are there, and of this model and these inputs.

    Which of the inputs were drawn was up to whoever wrote them.

    Args:
      split: the split.

    Raises:
      FileNotFoundError: if there is no file of that split.
      ValueError: if it is of another model, Task or file of inputs.
    """
    path = self.path(split)
    if not os.path.exists(path):
      raise FileNotFoundError(
        f'there is no {os.path.basename(path)} in {self.part.directory}, with '
        f'what the model itself says to inputs of {split!r}: run '
        'calm_jax.cli.train_exits for that folder to the end; it writes it'
      )
    found = training.npz_metadata(path)
    differ = [
      f'{name}: expected {value!r}, found {found.get(name)!r}'
      for name, value in self._about(split, None).items()
      if name not in ('seed', 'max_inputs') and found.get(name) != value
    ]
    if differ:
      raise ValueError(
        f'{path} is not of this run and Task: {"; ".join(differ)}. Give the '
        'Task, and its inputs, that calm_jax.cli.train_exits was given'
      )

  def batches(
    self,
    split: str,
    batch_size: int,
    length_buckets: Sequence[tuple[int, int]],
    **order: Any,
  ) -> Iterator[Mapping[str, Any]]:
    """Returns batches of a split's outputs.

    Args:
      split: the split.
      batch_size: rows of a batch.
      length_buckets: (inputs, outputs) lengths that batches are padded to.
      **order: as for `training.npz_batches`.
    """
    return training.npz_batches(
      self.path(split),
      batch_size,
      feature_lengths=self.part.loaded.feature_lengths,
      length_buckets=length_buckets,
      **order,
    )

  def inputs_hash(self, split: str) -> str:
    """Returns what tells the inputs of a split from others."""
    hashes = datasets.input_hashes(self.part.task, split)
    return hashlib.sha256(hashes.tobytes()).hexdigest()[:16]

  def _about(self, split: str, max_inputs: int | None) -> dict[str, Any]:
    """Returns what outputs depend on."""
    loaded = self.part.loaded
    return {
      'parameters': loaded.fingerprint,
      'task': datasets.as_task(self.part.task).name,
      'split': split,
      'inputs': self.inputs_hash(split),
      'seed': self.part.seed,
      'max_inputs': max_inputs,
      'feature_lengths': dict(loaded.feature_lengths),
      'prefix': loaded.prefix,
      'suppressed_tokens': list(loaded.suppressed_tokens),
    }

  def _different_inputs(
    self, split: str, max_inputs: int | None
  ) -> list[np.ndarray]:
    """Returns inputs as the model reads them, in an order that is drawn."""
    found: dict[bytes, np.ndarray] = {}
    for ids in self._inputs(split):
      found.setdefault(ids.tobytes(), ids)
      if len(found) == max_inputs:
        break
    return list(found.values())

  def _inputs(self, split: str) -> Iterator[np.ndarray]:
    """Yields the ids of every input of a split, once through."""
    plan = datasets.DataPlan(feature_lengths=self.part.loaded.feature_lengths)
    for batch in datasets.train_batches(
      self.part.task, plan, seed=self.part.seed, split=split, num_epochs=1
    ):
      for row in batch['encoder_input_tokens'][: batch['num_valid']]:
        yield row[: np.count_nonzero(row)]

  def _say(self, inputs: list[np.ndarray]) -> evaluation.DecodedDataset:
    """Decodes inputs with the full model."""
    layout = evaluation.BatchLayout() if self.layout is None else self.layout
    batches = batching.batch_examples(
      [{'inputs': ids, 'targets': ids[:1]} for ids in inputs],
      layout.batch_size,
      [(max(map(len, inputs)), 1)],
    )
    names = ('encoder_input_tokens', 'num_valid')
    decode = jobs.dataset_decoder(
      self.part.loaded, layout, model_dir=self.part.model_dir
    )
    return decode(
      [{name: batch[name] for name in names} for batch, _ in batches],
      policy=decoding.ComputePolicy(),
    )


def _before_padding(tokens: np.ndarray) -> np.ndarray:
  """Returns the tokens [T] before the first 0."""
  return tokens[: np.argmin(np.append(tokens, 0) != 0)]
