"""What other programs say of the arena's inputs, and T5X's CALM among them."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from calm_jax import decoding
from calm_jax.benchmarks import peers, token_inputs, whole_outputs
from calm_jax.benchmarks.t5x_calm import T5XCalm


@dataclasses.dataclass(frozen=True, eq=False)
class PeerOutputs:
  """The outputs of all inputs.

  Attributes:
    tokens: int [N, T], 0 after the end.
    mean_layers: layers per token; NaN where the program does not say.
  """

  tokens: np.ndarray
  mean_layers: float = math.nan


def decode_all(
  decode: peers.Decode, sources: Sequence[np.ndarray]
) -> PeerOutputs:
  """Returns what a program says of N sources, token ids with EOS."""
  if isinstance(decode, T5XCalm):
    (padded,) = token_inputs.whole_batches(sources, len(sources))
    said = decode.one_by_one(padded)
    return PeerOutputs(said.tokens, said.mean_layers)
  parts = [decode(part) for part in whole_outputs.fixed_batches(sources)]
  return PeerOutputs(np.concatenate(parts)[: len(sources)])


def layers_in_batches(
  decode: peers.Decode, batches: Sequence[np.ndarray]
) -> float:
  """Returns layers per token of batches [B, S]; NaN for other programs.

  Rows of T5X's CALM leave together, so that layers depend on the batch.
  """
  if not isinstance(decode, T5XCalm):
    return math.nan
  said = [decode.decode(batch) for batch in batches]
  layers = [one.exit_layers[one.tokens != 0] for one in said]
  return float(np.concatenate(layers).mean())


def agreement(
  decode: peers.Decode,
  outputs: PeerOutputs,
  found: Mapping[str, decoding.DecodeResult],
) -> tuple[str, float]:
  """Returns what should say the same, and for how many inputs it does.

  Args:
    decode: the program.
    outputs: what it said of N inputs.
    found: name -> what ways of decoding of this library said of them.

  Returns:
    The name, and the share of the inputs; ('', NaN) where nothing should.
  """
  ours = found.get(getattr(decode, 'same_as', ''))
  if not isinstance(decode, T5XCalm) or ours is None:
    return '', math.nan
  same = (np.asarray(ours.tokens) == outputs.tokens).all(axis=1)
  return decode.same_as, float(same.mean())
