"""The words by which a text-to-text model names classes."""

import dataclasses

from calm_jax.records.json_files import FORMAT_VERSION

# In the folder of label words.
LABEL_WORDS_NAME = 'label_words.json'


@dataclasses.dataclass(frozen=True)
class LabelWordList:
  """Classes by the texts of a task's targets, for a model that writes them.

  Attributes:
    texts: C different ones.
    tokens: the token ids of each, EOS included.
    parameters: fingerprint of the model's.
    format_version: of this schema.
  """

  texts: tuple[str, ...]
  tokens: tuple[tuple[int, ...], ...]
  parameters: str
  format_version: int = FORMAT_VERSION
