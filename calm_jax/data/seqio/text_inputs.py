"""A Task of inputs alone: for what needs no references.

A model that is finished can be made to exit early, and be certified by its
distance to itself, from texts as they come in; nobody has to know what would be
right to say.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from calm_jax.data.jsonl_files import TextExample
from calm_jax.data.seqio.tasks import (
  definition_of,
  register_once,
  rows_source,
  subtasks_of,
)
from calm_jax.data.splits import SPLITS, normalised_input_hash, one_per_input

# Of the hashes of inputs; no test split, for there is nothing to report on.
_SHARES = {'train': 0.5, 'validation': 0.05, 'calibration': 0.45}


@dataclasses.dataclass(frozen=True)
class TextInputs:
  """A seqio Task over texts, whose targets are empty.

  Splits are made of the inputs' hashes, so that the same text is always in the
  same one, whatever stands beside it.

  Attributes:
    name: the Task's name: letters, digits, `_`, `.` and `:`.
    inputs: the texts, without prefix; a repeated one counts once.
    vocabulary: path of the SentencePiece model, or 'bytes' (ByT5's).
    prefix: put in front of every input, for example 'summarize: '.
    extra_ids: sentinels at the end of the vocabulary, as for seqio.
    shares: split name ('train', 'validation', 'calibration', 'test') to its
      share of the inputs, in (0, 1], at most 1 together.
  """

  name: str
  inputs: Sequence[str]
  vocabulary: str
  prefix: str = ''
  extra_ids: int = 0
  shares: Mapping[str, float] = dataclasses.field(
    default_factory=lambda: dict(_SHARES)
  )

  def __post_init__(self):
    """Raises ValueError for no inputs, empty ones, or shares that are none."""
    if isinstance(self.inputs, str):
      raise ValueError(
        f'inputs of Task {self.name!r} are one text, {self.inputs!r}; give a '
        'list of texts'
      )
    object.__setattr__(self, 'inputs', tuple(self.inputs))
    object.__setattr__(self, 'shares', dict(self.shares))
    if not self.inputs:
      raise ValueError(f'Task {self.name!r} has no inputs')
    empty = [n for n, text in enumerate(self.inputs) if not text.strip()]
    if empty:
      raise ValueError(
        f'input {empty[0]} of Task {self.name!r} is empty; leave it out'
      )
    shares = self.shares
    if (
      not shares
      or not set(shares) <= set(SPLITS)
      or not all(0.0 < share <= 1.0 for share in shares.values())
      or sum(shares.values()) > 1.0 + 1e-9
    ):
      raise ValueError(
        f'shares of Task {self.name!r} are {shares}; give numbers in (0, 1] '
        f'that are at most 1 together, for some of {SPLITS}'
      )

  def read_splits(self) -> dict[str, list[TextExample]]:
    """Returns the rows of every split that has some, by their hashes."""
    rows = one_per_input(TextExample(text, '', ()) for text in self.inputs)
    found: dict[str, list[TextExample]] = {split: [] for split in self.shares}
    for row in rows:
      place = normalised_input_hash(row.inputs, 'inputs') / 2.0**64
      for split, share in self.shares.items():
        if place < share:
          found[split].append(row)
          break
        place -= share
    for split in found:
      found[split].sort(
        key=lambda row: normalised_input_hash(row.inputs, 'order')
      )
    return {split: rows for split, rows in found.items() if rows}

  def register(self):
    """Registers the Task, once, and returns it.

    Raises:
      ValueError: if another definition, or other code, has taken the name.
    """
    return register_once(
      self,
      lambda: rows_source(self.read_splits()),
      vocabulary=self.vocabulary,
      extra_ids=self.extra_ids,
      prefix=self.prefix,
    )


def refuse_inputs_alone(task, *, job: str) -> None:
  """Checks that a Task has targets to train on.

  Args:
    task: a Task or Mixture, its name, or a definition.
    job: what would train on it, for the message.

  Raises:
    ValueError: for one of `TextInputs`, whose targets are empty.
  """
  for part in subtasks_of(task):
    if isinstance(definition_of(part), TextInputs):
      raise ValueError(
        f'Task {part.name!r} holds inputs alone, and {job} learns from '
        'targets: give a Task that has some, or calm_jax.cli.train_exits, '
        'which learns from what the model itself says, and after it '
        'calm_jax.cli.train_gates with EXIT_ADAPTERS'
      )
