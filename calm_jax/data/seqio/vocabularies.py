"""seqio's vocabularies and this project's tokenizers, one for the other.

Both read the same ids; a Task needs seqio's, everything that must not load
TensorFlow the other.
"""

from calm_jax.data.seqio.tensorflow_setup import seqio
from calm_jax.tokenizer import (
  BYTES,
  ByteTokenizer,
  SentencePieceTokenizer,
  Tokenizer,
  load_tokenizer,
)


def seqio_vocabulary(name: str, extra_ids: int = 0):
  """Returns seqio's vocabulary of a SentencePiece model, or of 'bytes'.

  Raises:
    FileNotFoundError: if there is no such model.
    ValueError: if it is damaged, or `extra_ids` is negative.
  """
  # seqio opens it much later and says less when it is missing or damaged.
  tokenizer = load_tokenizer(name, extra_ids)
  if tokenizer.name == BYTES:
    return seqio.ByteVocabulary(extra_ids=extra_ids)
  if tokenizer.name.endswith('.json'):
    raise ValueError(
      f'{tokenizer.name} is a tokenizer.json of transformers, and seqio reads '
      'SentencePiece models: calm_jax.cli.convert --to=calm_jax '
      f'--vocabulary={tokenizer.name} makes one of it, RUN/vocabulary.model'
    )
  return seqio.SentencePieceVocabulary(tokenizer.name, extra_ids=extra_ids)


def tokenizer_of(vocabulary) -> Tokenizer:
  """Returns the tokenizer that gives the ids of a seqio vocabulary.

  Raises:
    ValueError: if there is none.
  """
  if isinstance(vocabulary, seqio.ByteVocabulary):
    return ByteTokenizer(vocabulary.extra_ids)
  if isinstance(vocabulary, seqio.SentencePieceVocabulary):
    path = vocabulary.sentencepiece_model_file
    return SentencePieceTokenizer(path, vocabulary.extra_ids)
  raise ValueError(
    f'the task has a {type(vocabulary).__name__}; use a '
    'seqio.SentencePieceVocabulary or a seqio.ByteVocabulary'
  )
