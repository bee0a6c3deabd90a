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

from absl import app, flags, logging

from calm_jax import checkpoints, runs
from calm_jax.checkpoints import classifiers, conversion
from calm_jax.checkpoints.stored_tensors import DTYPES
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
  "SentencePiece model of the source, copied beside it; 'bytes' for ByT5's.",
)
_EXTRA_IDS = flags.DEFINE_integer(
  'extra_ids',
  100,
  'Sentinel ids after the vocabulary; 0 for mT5, 125 for ByT5.',
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
    dry_run: print the mapping and stop.

  Raises:
    OSError, ValueError: see `open_checkpoint` and `convert`.
  """
  ours = target.format == 'calm_jax'
  if texts is not None and not ours:
    raise ValueError(
      f'--vocabulary is for --to=calm_jax; copy the file into {directory}'
    )
  opened = checkpoints.open_checkpoint(source)
  if step is not None:
    opened = dataclasses.replace(opened, step=step)
  if texts is None:
    context = opened.metadata.get('context', {})
  else:
    context = texts.context(opened.config.vocab_size)
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
  if texts is not None and texts.vocabulary != BYTES:
    keep_vocabulary(texts.tokenizer(opened.config.vocab_size), directory)
    print(f'{os.path.join(directory, VOCABULARY_NAME)}: the vocabulary')
  _keep_classifier(opened, directory, ours, written.fingerprint)


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
      dry_run=DRY_RUN.value,
    )


if __name__ == '__main__':
  app_runner.run(main)
