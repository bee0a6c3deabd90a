"""Inputs of a token file with their references, for benchmarks of quality."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from calm_jax import runs
from calm_jax.benchmarks import token_inputs
from calm_jax.data import token_files
from calm_jax.evaluation import seen_text
from calm_jax.tokenizer import cut_input


@dataclasses.dataclass(frozen=True, eq=False)
class Inputs:
  """What is decoded.

  Attributes:
    sources: N inputs, token ids with EOS.
    references: N texts.
    max_length: T, the most tokens of an output.
    metric: the text metric of distance and quality.
  """

  sources: Sequence[np.ndarray]
  references: Sequence[str]
  max_length: int
  metric: str


def read_inputs(
  path: str,
  run: runs.LoadedRun,
  *,
  number: int,
  max_length: int | None,
  metric: str | None,
) -> Inputs:
  """Returns the inputs of a token file, cut as wherever the run decodes.

  Args:
    path: the token file.
    run: whose inputs these are.
    number: at most so many.
    max_length: T; as trained if None.
    metric: by the alphabet of the references if None.

  Raises:
    FileNotFoundError, ValueError: as `token_files.read_npz`.
  """
  examples = token_files.read_npz(path)

  def rows(name):
    ends = examples[f'{name}_offsets'][1 : number + 1]
    return np.split(examples[f'{name}_ids'][: ends[-1]], ends[:-1])

  references = [
    run.tokenizer.decode(token_inputs.without_padding(row))
    for row in rows('targets')
  ]
  return Inputs(
    sources=[
      cut_input(row, run.feature_lengths['inputs']) for row in rows('inputs')
    ],
    references=references,
    max_length=max_length or run.feature_lengths['targets'],
    metric=metric or seen_text.default_metric(references),
  )
