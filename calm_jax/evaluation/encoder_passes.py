"""All layers of a data set, run once, and what exit rules make of them."""

import dataclasses
import hashlib
import time
from collections.abc import Sequence

import jax
import numpy as np

from calm_jax import encoding, interfaces
from calm_jax.array_types import PyTree
from calm_jax.encoder_heads import EncoderHeads
from calm_jax.encoding.input_checks import check_inputs
from calm_jax.evaluation.compile_clock import compile_seconds
from calm_jax.evaluation.decode_dataset import Batch, valid_rows
from calm_jax.evaluation.decode_store import WORK
from calm_jax.evaluation.decoded_dataset import DecodedDataset, Input
from calm_jax.source_heads import SourceHeads

# Of the ledger: what a row runs as often as layers.
_PER_LAYER = ('attention', 'feed_forward')


def content_of(batches: Sequence[Batch]) -> str:
  """Returns a hash of all that a pass tells of these batches."""
  found = hashlib.sha256()
  for batch in batches:
    for row in valid_rows(batch, 0):
      about = row.example_id, row.inputs_text, row.references, row.batch_shape
      found.update(repr(about).encode())
  return found.hexdigest()


def _check_numbers(logits: np.ndarray, before: int) -> None:
  """Raises ValueError for NaN in logits [L, B, C], after `before` inputs."""
  bad = np.argwhere(np.isnan(logits).any(axis=2))
  if len(bad):
    layer, row = bad[0]
    raise ValueError(
      f'the logits of input {before + row} after encoder layer {layer + 1} are '
      'NaN: the parameters are broken, or overflow in this dtype; look at the '
      'checkpoint, or take float32'
    )


@dataclasses.dataclass(frozen=True, eq=False)
class EncoderPass:
  """All layers of N inputs.

  Attributes:
    rows: N of them.
    layers: what exit rules look at, rows of padding left out.
    seconds: the wall clock, compilation left out.
  """

  rows: tuple[Input, ...]
  layers: encoding.AllLayers
  seconds: float

  @classmethod
  def run(
    cls,
    encoder: interfaces.LayeredEncoder,
    params: PyTree,
    heads: EncoderHeads | SourceHeads,
    batches: Sequence[Batch],
  ) -> 'EncoderPass':
    """Runs all layers of all inputs.

    Args:
      encoder: the encoder.
      params: its parameters, laid out or not.
      heads: of its layers, checked.
      batches: as for `decode_dataset`.

    Raises:
      ValueError: if there are no inputs, for token ids that are none of the
        model's, and for logits that are no numbers: the classes of all layers
        would be the first one, and agree.
    """
    rows: list[Input] = []
    parts = []
    began, compiled = time.perf_counter(), compile_seconds()
    for batch in batches:
      added = list(valid_rows(batch, len(rows)))
      inputs = np.asarray(batch['encoder_input_tokens'], np.int32)
      if added:
        check_inputs(inputs[: len(added)], encoder.vocab_size)
      found = jax.device_get(
        encoding.all_layers(encoder, params, inputs, heads)
      ).first_rows(len(added))
      _check_numbers(found.logits, len(rows))
      rows += added
      parts.append(found)
    if not rows:
      raise ValueError('there are no inputs to classify: is the split empty?')
    layers = jax.tree.map(lambda *some: np.concatenate(some, axis=1), *parts)
    seconds = time.perf_counter() - began - (compile_seconds() - compiled)
    return cls(tuple(rows), layers, max(seconds, 1e-9))

  def under(
    self,
    encoder: interfaces.LayeredEncoder,
    rule: interfaces.ExitRule,
    class_texts: Sequence[str],
  ) -> DecodedDataset:
    """Returns what an exit rule makes of the inputs.

    Args:
      encoder: the encoder.
      rule: the exit rule.
      class_texts: C names of classes, which are the outputs.
    """
    exit_layers, confidences = jax.device_get(
      encoding.replay(encoder, rule, self.layers)
    )
    places = np.arange(len(self.rows))
    logits = self.layers.logits[exit_layers - 1, places].astype(np.float64)
    classes = logits.argmax(axis=1)
    best = logits.max(axis=1)
    total = best + np.log(np.exp(logits - best[:, None]).sum(axis=1))
    work = np.zeros((len(self.rows), len(WORK)), np.int64)
    for name in _PER_LAYER:
      work[:, WORK.index(name)] = exit_layers
    return DecodedDataset(
      # 0 is padding.
      tokens=(classes[:, None] + 1).astype(np.int32),
      exit_layers=exit_layers[:, None].astype(np.int32),
      confidences=confidences[:, None],
      rejected_confidences=np.full((len(self.rows), 1), -np.inf, np.float32),
      scores=(best - total).astype(np.float32),
      lengths=np.ones(len(self.rows), np.int32),
      work=work,
      seconds=np.zeros(len(self.rows)),
      texts=tuple(class_texts[number] for number in classes),
      inputs_text=tuple(row.inputs_text for row in self.rows),
      references=tuple(row.references for row in self.rows),
      example_ids=tuple(row.example_id for row in self.rows),
      batch_shapes=tuple(row.batch_shape for row in self.rows),
      num_layers=encoder.num_layers,
    )
