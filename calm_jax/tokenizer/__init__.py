"""Tokenizers without TensorFlow, equal to seqio's vocabularies.

Decoding, serving and reports need text as ids and back, and must not load
TensorFlow for it. `SentencePieceTokenizer` and `ByteTokenizer` are two
`Tokenizer`s; `load_tokenizer` finds either by the name of its vocabulary.
"""

from calm_jax.tokenizer.byte_tokens import BYTES, ByteTokenizer
from calm_jax.tokenizer.cutting import (
  FORMS,
  KEEPS_EOS,
  LOSES_EOS,
  check_form,
  cut_input,
)
from calm_jax.tokenizer.huggingface_files import write_huggingface_files
from calm_jax.tokenizer.interface import Span, Tokenizer
from calm_jax.tokenizer.sentence_pieces import SentencePieceTokenizer
from calm_jax.tokenizer.special_ids import EOS_ID, PAD_ID, UNKNOWN_ID
from calm_jax.tokenizer.training import train_sentencepiece
from calm_jax.tokenizer.vocabularies import (
  VOCABULARY_NAME,
  find_tokenizer,
  keep_vocabulary,
  load_tokenizer,
  vocabulary_context,
)

__all__ = [
  'BYTES',
  'EOS_ID',
  'FORMS',
  'KEEPS_EOS',
  'LOSES_EOS',
  'PAD_ID',
  'UNKNOWN_ID',
  'VOCABULARY_NAME',
  'ByteTokenizer',
  'SentencePieceTokenizer',
  'Span',
  'Tokenizer',
  'check_form',
  'cut_input',
  'find_tokenizer',
  'keep_vocabulary',
  'load_tokenizer',
  'train_sentencepiece',
  'vocabulary_context',
  'write_huggingface_files',
]
