r"""Converts checkpoints between calm_jax, T5X and Hugging Face.

  python -m calm_jax.cli.convert --source=flan-t5-small --target=runs/flan \
    --to=calm_jax --vocabulary=flan-t5-small/spiece.model
  python -m calm_jax.cli.convert --source=runs/flan --target=flan-out \
    --to=huggingface --dtype=bfloat16 --dry_run

The source's format is recognised: a run directory, a T5X checkpoint (legacy or
Orbax, layers stacked or not) or a folder of Hugging Face's, local or gs://.
--dry_run prints what becomes what and writes nothing. Whatever is written is
read back and compared before it gets its name. With --vocabulary the result in
our form is a run directory that decodes and that training starts from.
"""

import collections
import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from absl import app, flags, logging

from calm_jax import checkpoints, runs
from calm_jax.checkpoints import classifiers, conversion
from calm_jax.checkpoints.huggingface_companions import COMPANIONS
from calm_jax.checkpoints.loading import agreed_config
from calm_jax.checkpoints.stored_tensors import DTYPES
from calm_jax.checkpoints.t5x_description import ASSUMED
from calm_jax.cli import app_runner
from calm_jax.cli.dry_run_flag import DRY_RUN
from calm_jax.tokenizer import BYTES, VOCABULARY_NAME, keep_vocabulary

_SOURCE = flags.DEFINE_string(
  'source', None, 'Checkpoint or directory of several.', required=True
)
_TARGET = flags.DEFINE_string(
  'target', None, 'Local directory to write into.', required=True
)
_TO = flags.DEFINE_enum(
  'to', None, checkpoints.FORMATS, 'Format to write.', required=True
)
_DTYPE = flags.DEFINE_enum(
  'dtype', None, sorted(DTYPES), "Cast to it; by default every tensor's own."
)
_STACKED = flags.DEFINE_bool(
  'stacked', False, "Stack layers as T5X's scan_layers does (t5x, t5x_orbax)."
)
_MODEL_TYPE = flags.DEFINE_enum(
  'model_type', 't5', ('t5', 'mt5'), "For Hugging Face's config.json."
)
_MAX_FILE_BYTES = flags.DEFINE_integer(
  'max_file_bytes', 5 * 10**9, 'Hugging Face: files are divided above it.', 1
)
_VOCABULARY = flags.DEFINE_string(
  'vocabulary',
  None,
  "SentencePiece model of the source (or transformers' tokenizer.json), copied "
  "beside it; 'bytes' for ByT5's. A run directory and a folder of Hugging "
  "Face's have their own.",
)
_EXTRA_IDS = flags.DEFINE_integer(
  'extra_ids',
  None,
  'Sentinel ids after the vocabulary: 100 for T5, 0 for mT5, 125 for ByT5; by '
  'default what the source says, or 100.',
  0,
)
_INPUT_LENGTH = flags.DEFINE_integer(
  'input_length', 512, 'Longest input in tokens, for decoding.', 1
)
_TARGET_LENGTH = flags.DEFINE_integer(
  'target_length', 128, 'Longest output in tokens, for decoding.', 1
)
_PREFIX = flags.DEFINE_string('prefix', '', 'Put in front of every input.')
_STEP = flags.DEFINE_integer(
  'step',
  None,
  "Training steps taken, where the source does not say (Hugging Face's). T5X "
  'finds no checkpoint of step 0 in a model directory.',
  0,
)
_ACTIVATIONS = flags.DEFINE_list(
  'activations',
  None,
  "Of the feed-forward, where the source is T5X's, which does not say: "
  '"gelu,linear", "silu,linear", "relu" ...',
)
_RELATIVE_MAX_DISTANCE = flags.DEFINE_integer(
  'relative_max_distance',
  None,
  "The farthest relative position, where the source is T5X's; T5 has 128.",
  1,
)
_ALLOW_NONFINITE = flags.DEFINE_bool(
  'allow_nonfinite', False, 'Write NaN and infinity all the same.'
)
flags.declare_key_flag('dry_run')


def describe(source: checkpoints.StoredCheckpoint) -> str:
  """Returns what was found, with sizes by dtype, in a few lines."""
  sizes: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
  for tensor in source.tensors.values():
    sizes[tensor.dtype.name][0] += 1
    sizes[tensor.dtype.name][1] += tensor.nbytes
  lines = [
    f'{source.path}: {source.format}, step {source.step}',
    f'  {source.config}',
  ]
  lines += [
    f'  {count} tensors of {dtype}, {size:,} bytes'
    for dtype, (count, size) in sorted(sizes.items())
  ]
  return '\n'.join([*lines, *(f'  note: {note}' for note in source.notes)])


def mapping_table(source, target: checkpoints.Target) -> str:
  """Returns `conversion.mapping` as aligned lines."""
  header = ('source', 'calm_jax', target.format, 'shape', 'dtype')
  rows = [header, *conversion.mapping(source, target)]
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return '\n'.join(
    '  '.join(map(str.ljust, row, widths)).rstrip() for row in rows
  )


def run(
  source: str,
  directory: str,
  target: checkpoints.Target,
  *,
  texts: runs.TextFeatures | None = None,
  step: int | None = None,
  said: Mapping[str, Any] | None = None,
  dry_run: bool = False,
) -> None:
  """Converts a checkpoint and prints what became of it.

  Args:
    source: the checkpoint, or a directory of several.
    directory: local, to write into.
    target: what to write; its context is filled in here.
    texts: the source's vocabulary, which is copied into the run directory, and
      what else makes a run of it.
    step: training steps taken, where the source does not say.
    said: fields of the configuration that a source of T5X's leaves open.
    dry_run: print the mapping and stop.

  Raises:
    OSError, ValueError: see `open_checkpoint` and `convert`.
  """
  ours = target.format == 'calm_jax'
  if texts is not None and target.format not in ('calm_jax', 'huggingface'):
    raise ValueError(
      "--vocabulary is for --to=calm_jax and --to=huggingface; T5X's forms "
      f'hold parameters alone: copy the file into {directory}'
    )
  opened = _open(source, said)
  if step is not None:
    opened = dataclasses.replace(opened, step=step)
  if texts is None:
    context = opened.metadata.get('context', {})
  else:
    texts = texts.agreed(opened.texts)
    context = texts.context(opened.config.vocab_size)
    tokenizer = texts.tokenizer(opened.config.vocab_size)
    runs.check_own_vocabulary(opened.path, tokenizer)
    doubts = runs.vocabulary_doubts(tokenizer, opened.config.vocab_size)
    opened = dataclasses.replace(opened, notes=(*opened.notes, *doubts))
    target = dataclasses.replace(target, tokenizer=tokenizer)
  target = dataclasses.replace(target, context=context)
  print(describe(opened))
  if dry_run:
    print(mapping_table(opened, target))
    place = conversion.destination_of(opened, directory, target)
    print(f'dry run: {place} would be written; nothing was')
    return
  written = checkpoints.convert(opened, directory, target)
  print(
    f'{written.path}: {target.format}, {written.num_tensors} tensors, '
    f'{written.num_bytes:,} bytes, read back and equal; fingerprint '
    f'{written.fingerprint}'
  )
  for note in written.notes[len(opened.notes) :]:
    print(f'note: {note}')
  if ours and 'vocabulary_file' not in context:
    print(
      'note: no vocabulary was named, so this is no run directory that decodes '
      'or trains on: give --vocabulary'
      + (f'={opened.path}/{own[0]}' if (own := _own(opened)) else '')
    )
  if not ours:
    beside = sorted(set(os.listdir(written.path)) & set(COMPANIONS))
    if beside:
      print(f'beside it: {", ".join(beside)}')
  elif texts is not None and texts.vocabulary != BYTES:
    keep_vocabulary(texts.tokenizer(opened.config.vocab_size), directory)
    print(f'{os.path.join(directory, VOCABULARY_NAME)}: the vocabulary')
  _keep_classifier(opened, directory, ours, written.fingerprint)


def _own(opened: checkpoints.StoredCheckpoint) -> list[str]:
  """Returns the vocabularies that lie beside a checkpoint."""
  if opened.format != 'huggingface' or not os.path.isdir(opened.path):
    return []
  return [name for name in COMPANIONS[1:3] if name in os.listdir(opened.path)]


def _open(
  source: str, said: Mapping[str, Any] | None
) -> checkpoints.StoredCheckpoint:
  """Opens the source, with what is said of its configuration."""
  opened = checkpoints.open_checkpoint(source)
  if not said:
    return opened
  config = agreed_config(opened, dataclasses.replace(opened.config, **said))
  notes = (note for note in opened.notes if not note.startswith(ASSUMED))
  return dataclasses.replace(opened, config=config, notes=tuple(notes))


def _keep_classifier(opened, directory: str, ours: bool, backbone: str) -> None:
  """Writes the release's early-exit classifier where there is one."""
  if opened.classifier is None:
    return
  if not ours:
    print('note: the early-exit classifier was left out; --to=calm_jax has it')
    return
  path = classifiers.save_classifier(
    directory,
    opened.classifier,
    opened.config,
    backbone=backbone,
    step=opened.step,
  )
  print(f'{path}: the early-exit classifier')


def _texts() -> runs.TextFeatures | None:
  """Returns what the flags say of texts, None without a vocabulary."""
  if not _VOCABULARY.value:
    return None
  return runs.TextFeatures(
    app_runner.path(_VOCABULARY),
    extra_ids=_EXTRA_IDS.value,
    feature_lengths={
      'inputs': _INPUT_LENGTH.value,
      'targets': _TARGET_LENGTH.value,
    },
    prefix=_PREFIX.value,
  )


def _said() -> dict[str, Any]:
  """Returns what the flags say of the configuration."""
  said: dict[str, Any] = {}
  if _ACTIVATIONS.value:
    said['mlp_activations'] = tuple(_ACTIVATIONS.value)
  if _RELATIVE_MAX_DISTANCE.value:
    said['relative_max_distance'] = _RELATIVE_MAX_DISTANCE.value
  return said


def main(argv):
  """Runs the job that the flags describe."""
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}; use --source=PATH')
  # What JAX says of backends that are not there would bury the lines below.
  if not logging.level_debug():
    logging.set_verbosity(logging.WARNING)
  with app_runner.in_one_line('convert'):
    run(
      app_runner.path(_SOURCE),
      app_runner.path(_TARGET),
      checkpoints.Target(
        format=_TO.value,
        dtype=_DTYPE.value,
        stacked=_STACKED.value,
        model_type=_MODEL_TYPE.value,
        max_file_bytes=_MAX_FILE_BYTES.value,
        allow_nonfinite=_ALLOW_NONFINITE.value,
      ),
      texts=_texts(),
      step=_STEP.value,
      said=_said(),
      dry_run=DRY_RUN.value,
    )


if __name__ == '__main__':
  app_runner.run(main)
