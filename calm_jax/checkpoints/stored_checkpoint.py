"""A checkpoint of any format, opened: our names, and tensors still on disk.

Every format's `open` returns one, and everything that loads, converts or checks
takes one, so that a format is one module that knows nothing of the others.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from calm_jax.checkpoints.huggingface_generation import GenerationRules
from calm_jax.checkpoints.huggingface_texts import TextFacts
from calm_jax.checkpoints.stored_tensors import StoredTensor
from calm_jax.model.config import T5Config


@dataclasses.dataclass(frozen=True)
class StoredCheckpoint:
  """An opened checkpoint; its values are read when asked for.

  Attributes:
    path: where it lies.
    format: 'calm_jax', 't5x', 't5x_orbax' or 'huggingface'.
    config: the model's configuration, saved with it or told by its shapes.
    tensors: its parameters by our names, with the shapes `config` demands.
    step: training steps taken; 0 where the format does not say.
    classifier: the early-exit classifier of CALM's release, if it has one:
      {'kernel' [D], 'bias' []}.
    notes: what was found and left aside, in sentences.
    metadata: the description of a checkpoint of our own form, else empty.
    generation: what its outputs begin with and lack, by its own account.
    texts: what it says of its tokenizer.
  """

  path: str
  format: str
  config: T5Config
  tensors: dict[str, StoredTensor]
  step: int = 0
  classifier: dict[str, np.ndarray] | None = None
  notes: tuple[str, ...] = ()
  metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  generation: GenerationRules = GenerationRules()
  texts: TextFacts = TextFacts()
