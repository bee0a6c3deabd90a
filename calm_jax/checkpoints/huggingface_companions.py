"""What lies beside weights written for transformers: how texts are read.

A folder of Hugging Face's gives all of its neighbours on. A run directory gives
its vocabulary, and transformers' files are made of it; a caller may name one
for any other checkpoint.
"""

import os

from calm_jax.checkpoints import huggingface_generation, huggingface_texts
from calm_jax.checkpoints.storage import Folder, is_url
from calm_jax.checkpoints.stored_checkpoint import StoredCheckpoint
from calm_jax.tokenizer import (
  Tokenizer,
  find_tokenizer,
  write_huggingface_files,
)

COMPANIONS = (huggingface_generation.FILE, *huggingface_texts.FILES)
_MISSING = (
  'no tokenizer lies beside the weights: name the vocabulary (--vocabulary), '
  "or put the model's spiece.model there."
)


def write_companions(
  path: str | os.PathLike,
  source: StoredCheckpoint,
  tokenizer: Tokenizer | None = None,
) -> tuple[str, ...]:
  """Writes a tokenizer's files into a folder of weights.

  Args:
    path: a local folder, written by `huggingface.write_folder`.
    source: the checkpoint that was written there.
    tokenizer: its tokenizer; what the source has beside it if None.

  Returns:
    Notes of what could not be written.

  Raises:
    ValueError: if the vocabulary beside a run directory is not the one that it
      was trained with.
  """
  copied: set[str] = set()
  if source.format == 'huggingface':
    folder = Folder.open(source.path)
    copied = set(folder.names()).intersection(
      COMPANIONS if tokenizer is None else COMPANIONS[:1]
    )
    for name in copied:
      with open(os.path.join(path, name), 'wb') as file:
        file.write(folder.read(name))
  if tokenizer is None and copied.isdisjoint(huggingface_texts.FILES):
    tokenizer = _of_run(source)
    if tokenizer is None:
      return (f'{source.path} says nothing of a vocabulary, so {_MISSING}',)
  if tokenizer is not None:
    write_huggingface_files(tokenizer, path)
  return ()


def _of_run(source: StoredCheckpoint) -> Tokenizer | None:
  """Returns the tokenizer of a run directory, None where there is none."""
  context = source.metadata.get('context', {})
  needed = {'vocabulary_file', 'vocabulary_fingerprint', 'extra_ids'}
  if is_url(source.path) or not needed <= set(context):
    return None
  try:
    return find_tokenizer(context, source.path)
  except FileNotFoundError:
    return None
