"""How far greedy outputs in 8 bits, at full depth, are from the float ones."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from calm_jax import decoding, evaluation, interfaces, model
from calm_jax.array_types import Params
from calm_jax.benchmarks import token_inputs
from calm_jax.benchmarks.quantisation_captures import Batch
from calm_jax.quantisation import Int8Weights

Detokenize = Callable[[Sequence[int]], str]


class Outputs(NamedTuple):
  """What 8 bits do to greedy outputs.

  Attributes:
    others: share of inputs whose output differs in a token.
    distance: mean textual loss against the float model's outputs (1 - ROUGE-L),
      as calibration measures it.
  """

  others: float
  distance: float


def compare_outputs(
  config: model.T5Config,
  params: Params,
  trees: Mapping[str, Params],
  weights: Mapping[str, Int8Weights],
  batches: Sequence[Batch],
  detokenize: Detokenize,
) -> Iterator[Outputs]:
  """Yields what comes of decoding with other parameters, tree by tree.

  Args:
    config: the model's shape.
    params: its parameters, float.
    trees: name -> parameters in 8 bits.
    weights: name -> which of them are.
    batches: inputs; outputs are decoded to the length that these have.
    detokenize: ids without padding and EOS -> text.
  """
  decoder = model.as_layered_decoder(config)
  loss = evaluation.get_loss('textual', 'rouge_l')
  expected = _decode(decoding.bind(decoder, params), batches)
  texts = [detokenize(token_inputs.without_padding(row)) for row in expected]
  for name, tree in trees.items():
    found = _decode(
      decoding.bind(decoder, tree, weights=weights[name]), batches
    )
    others = [
      not np.array_equal(one, other)
      for one, other in zip(found, expected, strict=True)
    ]
    distances = loss.of_texts(
      [detokenize(token_inputs.without_padding(row)) for row in found], texts
    )
    yield Outputs(float(np.mean(others)), float(np.mean(distances)))


def _decode(
  bound: interfaces.BoundDecoder, batches: Sequence[Batch]
) -> list[np.ndarray]:
  """Returns the greedy output of every input, int [T] each."""
  return [
    row
    for batch in batches
    for row in np.asarray(
      decoding.generate(
        bound, batch.inputs, max_length=batch.outputs.shape[1]
      ).tokens
    )
  ]


def ids_as_words(ids: Sequence[int]) -> str:
  """Returns a text for ids that have no vocabulary.

  >>> ids_as_words([7, 12])
  '7 12'
  """
  return ' '.join(map(str, ids))
