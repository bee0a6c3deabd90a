"""Heads of a run's encoder layers, from disk: what classifies with them."""

import os
from collections.abc import Sequence
from typing import Any

from calm_jax import exits, model, records
from calm_jax.checkpoints import directories, native, trained_parts
from calm_jax.data.class_labels import CLASS_LABELS, ClassLabels
from calm_jax.encoder_heads import EncoderHeads
from calm_jax.label_words import LabelWords
from calm_jax.runs.loading import LoadedRun, load_run

_KEY = trained_parts.ENCODER_HEADS.key


def load_encoder_heads(
  model_dir: str | os.PathLike,
  *,
  name: str = _KEY,
  run: LoadedRun | None = None,
) -> EncoderHeads | LabelWords:
  """Loads the heads that were trained for a run's encoder layers.

  Or the words for its classes, of a folder that
  `calm_jax.cli.find_label_words` wrote.

  Args:
    model_dir: a run directory that `calm_jax.cli.train_encoder_heads` was run
      on, or wrote.
    name: of the heads' folder in it.
    run: the run, whose decoder label words read; loaded if None.

  Raises:
    FileNotFoundError: if there are none.
    ValueError: if they were trained or found for other parameters than the
      directory holds.
  """
  kept = _label_words(model_dir, name)
  if kept is not None:
    run = load_run(model_dir) if run is None else run
    if kept.parameters != run.fingerprint:
      raise ValueError(
        f'the label words in {os.fspath(model_dir)}/{name} are of the '
        f'parameters {kept.parameters}, but the run holds {run.fingerprint}: '
        'run calm_jax.cli.find_label_words again'
      )
    return label_words(run, kept.tokens)
  part = trained_parts.ENCODER_HEADS
  return EncoderHeads(**trained_parts.load_part(part, model_dir, name))


def load_encoder_gate(
  model_dir: str | os.PathLike,
  *,
  name: str = 'encoder_gate',
  heads: str = _KEY,
) -> exits.Gate:
  """Loads the gate that was trained for heads of a run's encoder layers.

  Args:
    model_dir: a run directory that `calm_jax.cli.train_encoder_gate` was run
      on.
    name: of the gate's folder in it.
    heads: of the folder of the heads that classify.

  Raises:
    FileNotFoundError: if there is no such gate.
    ValueError: if it was trained for other parameters or heads.
  """
  part = trained_parts.ENCODER_GATE
  if _label_words(model_dir, heads) is not None:
    raise ValueError(
      f'{heads} in {os.fspath(model_dir)} holds words of labels, and no '
      f'{part.title} is trained for these: name the heads that {name} was '
      'trained for'
    )
  gate = exits.Gate(**trained_parts.load_part(part, model_dir, name))
  path = directories.find_checkpoint(_path(model_dir, name))
  context = native.read_metadata(path)['context']
  judged = context.get(trained_parts.JUDGED_HEADS)
  own = directories.find_checkpoint(_folder(model_dir, heads))
  found = native.read_metadata(own)['parameter_fingerprint']
  if judged != found:
    raise ValueError(
      f'the {part.title} in {path} was trained for heads {judged}, but {own} '
      f'holds {found}: give the heads that it was trained for, or another '
      f'gate; {part.job} trains one for these'
    )
  return gate


def label_words(run: LoadedRun, tokens: Sequence[Sequence[int]]) -> LabelWords:
  """Returns classes by the words that a run's decoder was trained to write.

  Args:
    run: a loaded run.
    tokens: the token ids of each label, `ClassLabels.tokens`.

  Raises:
    ValueError: for labels that cannot be told apart.
  """
  decoder = model.as_layered_decoder(run.config)
  return LabelWords.of(decoder, run.params, tokens)


def load_class_labels(
  model_dir: str | os.PathLike, *, name: str = _KEY
) -> ClassLabels:
  """Loads the classes that heads were trained for.

  Args:
    model_dir: as for `load_encoder_heads`.
    name: of the heads' folder in it.

  Raises:
    FileNotFoundError: if there are none.
    ValueError: if the folder holds something else.
  """
  kept = _label_words(model_dir, name)
  if kept is not None:
    return ClassLabels(kept.texts, kept.tokens)
  path = _folder(model_dir, name)
  context = native.read_metadata(directories.find_checkpoint(path))['context']
  if CLASS_LABELS not in context:
    raise ValueError(
      f'{path} names no classes: it holds no '
      f'{trained_parts.ENCODER_HEADS.title}; give the name of a folder that '
      f'{trained_parts.ENCODER_HEADS.job} wrote'
    )
  return ClassLabels.read(context)


def load_class_temperatures(
  model_dir: str | os.PathLike, *, name: str = _KEY
) -> tuple[float, ...]:
  """Loads the temperatures of heads, for `exits.Tempered`: L numbers.

  They were fitted on the validation split when training ended.

  Args:
    model_dir: as for `load_encoder_heads`.
    name: of the heads' folder in it.

  Raises:
    FileNotFoundError: if there are none.
  """
  folder = _path(model_dir, name)
  if _label_words(model_dir, name) is None:
    folder = _folder(model_dir, name)
  path = os.path.join(folder, 'evaluation.json')
  if not os.path.exists(path):
    raise FileNotFoundError(
      f'there is no {path}, where temperatures are: the Task had no validation '
      'inputs, or training did not end; run '
      f'{trained_parts.ENCODER_HEADS.job} again, or find_label_words'
    )
  found: Any = records.read_record(path, records.EncoderHeadEvaluation)
  return tuple(layer.temperature for layer in found.layers)


def _path(model_dir: str | os.PathLike, name: str) -> str:
  return os.path.join(os.path.abspath(os.fspath(model_dir)), name)


def _label_words(
  model_dir: str | os.PathLike, name: str
) -> records.LabelWordList | None:
  """Returns the label words in a folder; None if it holds none."""
  path = os.path.join(_path(model_dir, name), records.LABEL_WORDS_NAME)
  if not os.path.exists(path):
    return None
  return records.read_record(path, records.LabelWordList)


def _folder(model_dir: str | os.PathLike, name: str) -> str:
  """Returns the folder of heads; raises FileNotFoundError without any."""
  path = _path(model_dir, name)
  if directories.latest_step(path) is None:
    raise FileNotFoundError(
      f'there is no {trained_parts.ENCODER_HEADS.title} in {path}; run '
      f'{trained_parts.ENCODER_HEADS.job} for {os.fspath(model_dir)} first'
    )
  return path
