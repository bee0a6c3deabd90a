"""What one policy made of N inputs, and how its rows come together.

Rows may come in any order, some decoded, some found in a store, some by other
processes; they are put back into the order of the inputs.
"""

import dataclasses
import hashlib
import io
import itertools
from collections.abc import Sequence

import numpy as np

from calm_jax.evaluation.decode_store import WORK, row_key
from calm_jax.processes import collectives


@dataclasses.dataclass(frozen=True, eq=False)
class DecodedDataset:
  """What one policy made of N inputs.

  Attributes:
    tokens: int32 [N, T], EOS included, 0 after it.
    exit_layers: int32 [N, T], layers used in 1..L; -1 where never decoded.
    confidences: float32 [N, T], NaN where the rule did not look.
    rejected_confidences: float32 [N, T], the highest confidence the rule went
      on at, -inf where there was none.
    scores: float32 [N], sum of the tokens' log-probabilities.
    lengths: int32 [N], decoded tokens, EOS included.
    work: int64 [N, columns], the ledger of each row, summed over its positions;
      the columns are those of `interfaces.Work`.
    seconds: float64 [N], the share of each row in the wall clock of its batch,
      compilation left out; 0 for rows taken over from another decode.
    texts: N detokenised outputs.
    inputs_text: N source texts ('' where the batches had none).
    references: N tuples of reference texts, possibly empty.
    example_ids: N hashes of the inputs' tokens.
    batch_shapes: N pairs (B, S), the batch that each row was decoded in.
    num_layers: L.
    encoder_exit_layers: int32 [N], encoder layers that each source ran,
      1..L_enc; None where all run for all.
    num_encoder_layers: L_enc; None for a decoder that does not say.
  """

  tokens: np.ndarray
  exit_layers: np.ndarray
  confidences: np.ndarray
  rejected_confidences: np.ndarray
  scores: np.ndarray
  lengths: np.ndarray
  work: np.ndarray
  seconds: np.ndarray
  texts: tuple[str, ...]
  inputs_text: tuple[str, ...]
  references: tuple[tuple[str, ...], ...]
  example_ids: tuple[str, ...]
  batch_shapes: tuple[tuple[int, int], ...]
  num_layers: int
  encoder_exit_layers: np.ndarray | None = None
  num_encoder_layers: int | None = None

  @property
  def num_examples(self) -> int:
    """N."""
    return len(self.texts)

  @property
  def num_tokens(self) -> int:
    """Decoded tokens of all rows, EOS included."""
    return int(np.count_nonzero(self.exit_layers > 0))

  @property
  def mean_exit_layer(self) -> float:
    """Layers used per decoded token, in [1, L]; NaN if nothing was decoded."""
    decoded = self.exit_layers[self.exit_layers > 0]
    return float(decoded.mean()) if decoded.size else float('nan')

  @property
  def mean_encoder_layer(self) -> float:
    """Encoder layers per source, in [1, L_enc]; NaN where all run for all."""
    if self.encoder_exit_layers is None:
      return float('nan')
    return float(self.encoder_exit_layers.mean())

  @property
  def mean_layers_run(self) -> float:
    """Layers run per decoded token, those of companions and drafts included."""
    work = self.total_work()
    run = work['attention'] + work['caught_up']
    return run / self.num_tokens if self.num_tokens else float('nan')

  def total_work(self) -> dict[str, int]:
    """Returns the ledger of all rows together, by column."""
    return dict(zip(WORK, self.work.sum(axis=0).tolist(), strict=True))

  def exit_layer_histogram(self) -> tuple[int, ...]:
    """Returns L counts: decoded tokens that left after layer 1, ..., L."""
    decoded = self.exit_layers[self.exit_layers > 0]
    counts = np.bincount(decoded, minlength=self.num_layers + 1)
    return tuple(int(count) for count in counts[1:])


def join_datasets(parts: Sequence[DecodedDataset]) -> DecodedDataset:
  """Returns decodes of different inputs by one model, one after the other."""
  fields = {}
  for field in dataclasses.fields(DecodedDataset):
    values = [getattr(part, field.name) for part in parts]
    if isinstance(values[0], np.ndarray):
      fields[field.name] = np.concatenate(values)
    elif isinstance(values[0], tuple):
      fields[field.name] = tuple(itertools.chain(*values))
  return dataclasses.replace(parts[0], **fields)


@dataclasses.dataclass(frozen=True, eq=False)
class Input:
  """One input.

  Attributes:
    tokens: int32 [S], its ids, 0 = padding.
    place: where it stands in the result.
    batch_shape: (B, S), the batches that it is decoded in.
    example_id: the hash of its ids.
    inputs_text: its text, or ''.
    references: its reference texts, possibly none.
  """

  tokens: np.ndarray
  place: int
  batch_shape: tuple[int, int]
  example_id: str
  inputs_text: str
  references: tuple[str, ...]

  @property
  def key(self) -> str:
    """Where a store has it."""
    return row_key(self.example_id, self.batch_shape)


class CollectedRows:
  """Gathers rows as they come, and puts them in the order of the inputs."""

  def __init__(
    self,
    detokenize,
    eos_id: int,
    num_layers: int,
    share: collectives.Share,
    num_encoder_layers: int | None = None,
  ):
    self._share = share
    self._detokenize = detokenize
    self._eos_id = eos_id
    self._num_layers = num_layers
    self._num_encoder_layers = num_encoder_layers
    self._inputs: list[Input] = []
    self._places: list[int] = []
    self._arrays: dict[str, list[np.ndarray]] = {}

  @property
  def num_inputs(self) -> int:
    """Inputs seen so far, decoded or waiting."""
    return len(self._inputs)

  def expect(self, row: Input) -> None:
    """Notes an input that is to be decoded."""
    self._inputs.append(row)

  def add(self, rows: Sequence[Input], arrays: dict[str, np.ndarray]) -> None:
    """Keeps what became of some rows."""
    self._places.extend(row.place for row in rows)
    for name, array in arrays.items():
      self._arrays.setdefault(name, []).append(array)

  def finish(self) -> DecodedDataset:
    """Joins the rows, those of other processes included."""
    arrays = self._gathered()
    order = np.argsort(arrays.pop('places'))
    arrays = {name: array[order] for name, array in arrays.items()}
    return DecodedDataset(
      **arrays,
      texts=tuple(map(self._text, arrays['tokens'], arrays['lengths'])),
      inputs_text=tuple(row.inputs_text for row in self._inputs),
      references=tuple(row.references for row in self._inputs),
      example_ids=tuple(row.example_id for row in self._inputs),
      batch_shapes=tuple(row.batch_shape for row in self._inputs),
      num_layers=self._num_layers,
      num_encoder_layers=self._num_encoder_layers,
    )

  def _gathered(self) -> dict[str, np.ndarray]:
    """Returns the arrays of all processes, one after the other."""
    mine = {name: np.concatenate(of) for name, of in self._arrays.items()}
    mine['places'] = np.array(self._places, np.int64)
    if self._share.count == 1:
      return mine
    file = io.BytesIO()
    np.savez(file, **mine)
    everybody = []
    for payload in self._share.gather(file.getvalue()):
      with np.load(io.BytesIO(payload), allow_pickle=False) as theirs:
        # One that had nothing to do has places alone.
        if theirs['places'].size:
          everybody.append(dict(theirs))
    return {
      name: np.concatenate([arrays[name] for arrays in everybody])
      for name in everybody[0]
    }

  def _text(self, tokens: np.ndarray, length: int) -> str:
    ids = tokens[:length].tolist()
    if ids and ids[-1] == self._eos_id:
      ids.pop()
    return self._detokenize(ids)


def example_id(tokens: np.ndarray) -> str:
  """Returns a hash of one input's ids [S] that padding does not change.

  >>> import numpy as np
  >>> a, b = np.array([5, 6, 1, 0]), np.array([5, 6, 1, 0, 0])
  >>> example_id(a) == example_id(b)
  True
  """
  nonzero = np.flatnonzero(tokens)
  trimmed = tokens[: nonzero[-1] + 1] if nonzero.size else tokens[:0]
  content = np.ascontiguousarray(trimmed, dtype='<i4').tobytes()
  return hashlib.sha256(content).hexdigest()[:16]
