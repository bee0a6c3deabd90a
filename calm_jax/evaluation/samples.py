"""Picks outputs to look at and takes them apart token by token.

A reader should meet the worst outputs first, and beside them some that were not
picked for anything. Each sample carries the tokenizer's pieces with their exit
layers and confidences, early exit beside full model.
"""

from collections.abc import Callable, Sequence

import numpy as np

from calm_jax import records
from calm_jax.evaluation.decoded_dataset import DecodedDataset

Pieces = Callable[[Sequence[int]], Sequence[str]]


def sample_outputs(
  early: DecodedDataset,
  full: DecodedDataset,
  *,
  losses: np.ndarray,
  pieces: Pieces,
  num_worst: int = 6,
  num_random: int = 6,
  seed: int = 0,
) -> tuple[tuple[records.SampleOutput, ...], str]:
  """Returns samples, largest loss first, and how they were chosen, in words.

  Args:
    early: the early-exit decode.
    full: the full model's decode of the same inputs.
    losses: float [N], the textual loss of each early output.
    pieces: ids -> the tokenizer's pieces, one for one.
    num_worst: outputs with the largest losses.
    num_random: outputs drawn from all the others.
    seed: of the draw.

  Raises:
    ValueError: if the two decodes or the losses are of other inputs.
  """
  losses = np.asarray(losses, dtype=np.float64)
  if early.example_ids != full.example_ids:
    raise ValueError('early and full are decodes of different inputs.')
  if losses.shape != (early.num_examples,):
    raise ValueError(
      f'losses have shape {losses.shape}, expected ({early.num_examples},).'
    )
  order = np.argsort(-losses, kind='stable')
  worst, others = order[:num_worst], order[num_worst:]
  drawn = np.random.default_rng(seed).permutation(others)[:num_random]
  drawn = drawn[np.argsort(-losses[drawn], kind='stable')]
  samples = tuple(
    _sample(early, full, row, float(losses[row]), pieces)
    for row in [*worst.tolist(), *drawn.tolist()]
  )
  words = (
    f'the {len(worst)} outputs of {early.num_examples} that are farthest from '
    f"the full model's, then {len(drawn)} drawn at random from the others "
    f'(seed {seed})'
  )
  return samples, words


def decoded_text(
  decoded: DecodedDataset, row: int, pieces: Pieces
) -> records.DecodedText:
  """Takes one output of a decode apart."""
  length = int(decoded.lengths[row])
  tokens = decoded.tokens[row, :length].tolist()
  return records.DecodedText(
    text=decoded.texts[row],
    tokens=tuple(tokens),
    pieces=tuple(pieces(tokens)),
    exit_layers=tuple(decoded.exit_layers[row, :length].tolist()),
    confidences=tuple(decoded.confidences[row, :length].tolist()),
    encoder_exit_layer=None
    if decoded.encoder_exit_layers is None
    else int(decoded.encoder_exit_layers[row]),
  )


def _sample(early, full, row: int, loss: float, pieces: Pieces):
  """Returns one input with both of its outputs."""
  return records.SampleOutput(
    example_id=early.example_ids[row],
    source=early.inputs_text[row],
    references=early.references[row],
    early=decoded_text(early, row, pieces),
    full=decoded_text(full, row, pieces),
    loss=loss,
  )
