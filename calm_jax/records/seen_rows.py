"""What the inputs of a calibration were like, as certificates state it.

A certificate holds for inputs like those it was made from, and these are seldom
at hand when it is used.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from calm_jax.records.json_files import from_jsonable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lengths:
  """How long texts are, in tokens, EOS included.

  Attributes:
    smallest: of the shortest one.
    mean: of all.
    largest: of the longest one.
  """

  smallest: int
  mean: float
  largest: int

  @classmethod
  def of(cls, lengths: Sequence[int]) -> 'Lengths':
    """Returns those of N >= 1 texts."""
    return cls(
      smallest=int(min(lengths)),
      mean=round(float(sum(lengths)) / len(lengths), 2),
      largest=int(max(lengths)),
    )

  def describe(self) -> str:
    """Says it briefly.

    >>> Lengths.of([3, 4]).describe()
    '3 to 4 (mean 3.5)'
    """
    return f'{self.smallest} to {self.largest} (mean {self.mean:g})'


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeenRows:
  """The inputs of a calibration, and what the full model made of them.

  Attributes:
    date: of the calibration, ISO 8601, in UTC.
    given: rows that were given.
    used: inputs that were used: rows that are read alike are one.
    input_tokens: of these.
    filled: how many of them fill all places, and may have been cut.
    output_tokens: of the full model's outputs.
  """

  date: str
  given: int
  used: int
  input_tokens: Lengths
  filled: int
  output_tokens: Lengths

  def describe(self) -> str:
    """Says it in a sentence or two."""
    rows = f'{self.used:,} inputs'
    if self.given != self.used:
      rows += f' ({self.given:,} rows, some of them read alike)'
    return (
      f'Made on {self.date} from {rows} of {self.input_tokens.describe()} '
      f'tokens, {self.filled:,} of which fill all places and may have been '
      "cut; the full model's outputs had "
      f'{self.output_tokens.describe()} tokens.'
    )


def read_seen_rows(context: Mapping[str, Any]) -> SeenRows | None:
  """Returns what the context of a certificate says; None if nothing."""
  stored = context.get('seen')
  if stored is None:
    return None
  return from_jsonable(SeenRows, stored, where='seen')
