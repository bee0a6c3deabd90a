"""seqio Tasks over TensorFlow Datasets by a gin-friendly definition.

The paper's three tasks are definitions of this kind; see
`gin_configs/tasks/{cnn_dailymail,wmt15_en_fr,squad}.gin`. The data sets must
have been prepared before: a Task reads them and never downloads.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence

from calm_jax.data.jsonl_files import resolve_path
from calm_jax.data.seqio import task_metrics
from calm_jax.data.seqio.tasks import register_once
from calm_jax.data.seqio.tfds_source import TfdsTextSource
from calm_jax.data.splits import SPLITS


@dataclasses.dataclass(frozen=True)
class TfdsTask:
  """A seqio Task over a prepared data set of TensorFlow Datasets.

  No input occurs in two splits, in the sense of `splits.normalise_input`:
  splits that name the same TFDS split divide it by the hash of the input, and
  train loses the inputs of all others. Calibration and test taken from one TFDS
  split are then draws from the same population, as a certificate assumes.

  Attributes:
    name: the Task's name.
    dataset: name, config and version of the data set: 'squad/v1.1:3.0.0'.
    splits: our split ('train', 'validation', 'calibration', 'test') to a TFDS
      split or slice; 'train' is required and shares its TFDS split with none.
    form: what makes `inputs`, `targets` and `references` of an example: one of
      `calm_jax.data.seqio.text_forms`.
    vocabulary: path of the SentencePiece model.
    directory: the folder that TensorFlow Datasets keeps its data sets in; if
      '', $TFDS_DATA_DIR or else ~/tensorflow_datasets, as for itself.
    prefix: put in front of every input, for example 'summarize: '.
    extra_ids: sentinels at the end of the vocabulary; T5's own has 100.
    metrics: names in `calm_jax.data.seqio.task_metrics.METRICS`.
  """

  name: str
  dataset: str
  splits: Mapping[str, str]
  form: Callable
  vocabulary: str
  directory: str = ''
  prefix: str = ''
  extra_ids: int = 100
  metrics: Sequence[str] = ('rouge_l',)

  def __post_init__(self):
    object.__setattr__(self, 'splits', dict(self.splits))
    object.__setattr__(self, 'metrics', tuple(self.metrics))
    task_metrics.metric_fns(self.metrics)
    if 'train' not in self.splits:
      raise ValueError(
        f'Task {self.name!r} has no train split; splits are {self.splits}.'
      )
    unknown = sorted(set(self.splits) - set(SPLITS))
    if unknown:
      raise ValueError(
        f'Task {self.name!r} has unknown splits {unknown}; use {SPLITS}.'
      )
    if list(self.splits.values()).count(self.splits['train']) > 1:
      raise ValueError(
        f'Task {self.name!r} reads {self.splits["train"]!r} for train and for '
        f'a held-out split ({self.splits}); give slices such as '
        "'train[:95%]' and 'train[95%:]'."
      )

  @property
  def data_directory(self) -> str:
    """The folder that holds the data set."""
    default = os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
    return resolve_path(self.directory or default)

  def register(self):
    """Registers the Task, once, and returns it.

    No rows are read yet; the data set is looked for, so that a missing one
    shows before anything is trained.

    Raises:
      FileNotFoundError: if the vocabulary or the data set is missing.
      ValueError: if another definition, or other code, has taken the name.
    """
    return register_once(
      self,
      lambda: TfdsTextSource(
        self.dataset, self.data_directory, self.splits, self.form
      ),
      vocabulary=self.vocabulary,
      extra_ids=self.extra_ids,
      prefix=self.prefix,
      metrics=self.metrics,
    )
