"""seqio Tasks of text rows: from JSONL files by a gin-friendly definition.

A `JsonlTask` is a plain definition (strings, numbers, a dict of paths);
`register()` makes it a seqio Task with train, validation, calibration and test
splits that share no input. Any other seqio Task works in the rest of the
project as well, if its `targets` are text.
"""

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from calm_jax.data.jsonl_files import TextExample, read_examples, resolve_path
from calm_jax.data.seqio import preprocessors, task_metrics
from calm_jax.data.seqio.tensorflow_setup import seqio
from calm_jax.data.seqio.vocabularies import seqio_vocabulary
from calm_jax.data.splits import SPLITS, SplitPlan
from calm_jax.tokenizer import BYTES, KEEPS_EOS, LOSES_EOS

# Definitions registered in this process, by task name.
_REGISTERED: dict[str, Any] = {}


@dataclasses.dataclass(frozen=True)
class JsonlTask:
  """A seqio Task over JSONL(.gz) files of `inputs` and `targets`.

  Attributes:
    name: the Task's name: letters, digits, `_`, `.` and `:`.
    paths: split name ('train', 'validation', 'test', 'calibration') to file;
      'train' is required. Where there is no calibration file, `SplitPlan`
      carves the split out of the test rows.
    vocabulary: path of the SentencePiece model, or 'bytes' (ByT5's).
    directory: where relative `paths` start; `~` and `$VARIABLES` are expanded.
    prefix: put in front of every input, for example 'summarize: '.
    extra_ids: sentinels at the end of the vocabulary, as for seqio.
    metrics: names in `task_metrics.METRICS`, computed by seqio's Evaluator
      against all references.
    calibration_fraction: see `SplitPlan`.
    held_out_fraction: see `SplitPlan`.
  """

  name: str
  paths: Mapping[str, str]
  vocabulary: str
  directory: str = ''
  prefix: str = ''
  extra_ids: int = 0
  metrics: Sequence[str] = ('bleu', 'rouge_l')
  calibration_fraction: float = 0.5
  held_out_fraction: float = 0.0

  def __post_init__(self):
    if 'train' not in self.paths:
      raise ValueError(
        f'Task {self.name!r} has no train file; paths are {dict(self.paths)}.'
      )
    unknown = sorted(set(self.paths) - set(SPLITS))
    if unknown:
      raise ValueError(
        f'Task {self.name!r} has unknown splits {unknown}; use {SPLITS}.'
      )
    object.__setattr__(self, 'paths', dict(self.paths))
    object.__setattr__(self, 'metrics', tuple(self.metrics))
    task_metrics.metric_fns(self.metrics)
    self.split_plan()

  def split_plan(self) -> SplitPlan:
    """Returns how the rows are divided."""
    return SplitPlan(self.calibration_fraction, self.held_out_fraction)

  def read_splits(self) -> dict[str, list[TextExample]]:
    """Reads the files and returns the rows of every split that has some.

    Says how many rows are not in the split of their file, and why.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: on a bad line, named by file and number; if all inputs of a
        file are those of files before it.
    """
    rows = {
      split: list(read_examples(resolve_path(path, self.directory)))
      for split, path in self.paths.items()
    }
    for dropped in self.split_plan().dropped(rows):
      if dropped.all_shared:
        raise ValueError(
          f'Task {self.name!r}: nothing is left of {self.paths[dropped.split]}'
          f', for splits share no input; {dropped}. Give a file of other '
          'inputs, or none.'
        )
      print(f'Task {self.name!r}: {dropped}', file=sys.stderr)
    return self.split_plan().apply(rows)

  def register(self):
    """Registers the Task, once, and returns it.

    The files are read here, so that a missing file or a bad row shows before
    anything is trained.

    Raises:
      ValueError: if another definition, or other code, has taken the name.
    """
    return register_once(
      self,
      lambda: rows_source(self.read_splits()),
      vocabulary=self.vocabulary,
      extra_ids=self.extra_ids,
      prefix=self.prefix,
      metrics=self.metrics,
    )


def register_jsonl_task(name: str, paths: Mapping[str, str], **arguments):
  """Registers and returns `JsonlTask(name, paths, **arguments)`."""
  return JsonlTask(name, paths, **arguments).register()


def register_once(
  definition,
  make_source: Callable[[], Any],
  *,
  vocabulary: str,
  extra_ids: int = 0,
  prefix: str = '',
  metrics: Sequence[str] = (),
):
  """Registers the seqio Task of a definition, or finds it registered.

  Args:
    definition: a dataclass with a `name`; compared with the one that took the
      name before.
    make_source: called if the Task is new; returns a seqio source of `inputs`,
      `targets` and `references`, as `rows_source` does.
    vocabulary: path of the SentencePiece model, or 'bytes'.
    extra_ids: sentinels of the vocabulary.
    prefix: put in front of every input.
    metrics: names in `task_metrics.METRICS`.

  Returns:
    The seqio Task.

  Raises:
    ValueError: if the name is taken by something else.
  """

  def make():
    name = vocabulary if vocabulary == BYTES else resolve_path(vocabulary)
    feature = seqio.Feature(seqio_vocabulary(name, extra_ids), add_eos=True)
    source = make_source()
    return seqio.TaskRegistry.add(
      definition.name,
      source=source,
      preprocessors=preprocessors.text_preprocessors(prefix),
      output_features={'inputs': feature, 'targets': feature},
      postprocess_fn=preprocessors.references_or_prediction,
      metric_fns=task_metrics.metric_fns(metrics),
    )

  return register_once_as(definition, seqio.TaskRegistry, make)


def register_once_as(definition, registry, make: Callable[[], Any]):
  """Returns what a registry has of a definition; makes it if it has nothing.

  Args:
    definition: a dataclass with a `name`.
    registry: seqio.TaskRegistry or seqio.MixtureRegistry.
    make: adds to the registry and returns what it added.

  Raises:
    ValueError: if the name is taken by something else.
  """
  name = definition.name
  if name in _registered_names():
    if _REGISTERED.get(name) != definition:
      raise ValueError(
        f'Task {name!r} is registered already with another definition '
        f'({_REGISTERED.get(name, "made elsewhere")}); choose another name '
        f'for {definition}.'
      )
    return registry.get(name)
  made = make()
  _REGISTERED[name] = definition
  return made


def _registered_names() -> set[str]:
  return seqio.TaskRegistry.names() | seqio.MixtureRegistry.names()


def rows_source(splits: Mapping[str, Sequence[TextExample]]):
  """Returns a seqio source of rows in memory, shuffled as a whole."""

  def dataset_fn(split, shuffle_files, seed=None):
    return preprocessors.shuffled_examples_dataset(
      splits[split], shuffle=shuffle_files, seed=seed
    )

  return seqio.FunctionDataSource(
    dataset_fn,
    splits=tuple(splits),
    num_input_examples={name: len(rows) for name, rows in splits.items()},
  )


def as_task(task):
  """Returns a seqio Task from a Task, its name or a definition.

  Raises:
    ValueError: if the name is not registered.
  """
  if hasattr(task, 'register'):
    return task.register()
  if not isinstance(task, str):
    return task
  if task in _registered_names():
    return seqio.get_mixture_or_task(task)
  raise ValueError(
    f'No seqio Task or Mixture is registered as {task!r}; registered here: '
    f'{sorted(_REGISTERED)}. Import the module that registers it, or give a '
    'JsonlTask.'
  )


def definition_of(task):
  """Returns the definition that a Task or Mixture was made of here, or None.

  Args:
    task: a definition, a Task or Mixture, or its name.
  """
  return _REGISTERED.get(as_task(task).name)


def prefix_of(task) -> str:
  """Returns the prefix that a Task made here puts in front of every input.

  Args:
    task: a definition, a Task or its name; for a Mixture, and for Tasks made
      elsewhere, whose preprocessors do what they do, it is ''.
  """
  return getattr(definition_of(task) or task, 'prefix', '')


def subtasks_of(task) -> list:
  """Returns the Tasks of a Mixture, or the Task alone."""
  task = as_task(task)
  return list(task.tasks) if isinstance(task, seqio.Mixture) else [task]


def inputs_cut_of(task, form: str = KEEPS_EOS) -> str:
  """Returns how inputs of a Task or Mixture are cut.

  Args:
    task: a Task or Mixture, its name, or a definition.
    form: the form where they end with EOS; where they do not, there is none to
      be kept.
  """
  feature = as_task(task).output_features['inputs']
  return form if feature.add_eos else LOSES_EOS


def check_split(task, split: str) -> None:
  """Checks that a Task or Mixture has a split.

  Raises:
    ValueError: if not, naming those it has.
  """
  task = as_task(task)
  if split not in task.splits:
    raise ValueError(
      f'{task.name} has no split {split!r}; it has {sorted(task.splits)}.'
    )
