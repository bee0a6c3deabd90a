"""Splits that share no input, for learning, selecting, certifying, reporting.

A certificate holds only if the calibration rows chose nothing else and each
counts once. So train, validation, calibration and test are disjoint by
normalised INPUT, the last three have one row per input, and where the files
bring no calibration split it is carved out of the test rows (and, if wished, of
train inputs that training then never sees) by a hash of the input, which is the
same on every machine and for every order of the rows.
"""

import dataclasses
import hashlib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from calm_jax.data.jsonl_files import TextExample

SPLITS = ('train', 'validation', 'calibration', 'test')


def normalise_input(text: str) -> str:
  """Returns the text NFKC-normalised, case-folded, with single spaces."""
  folded = unicodedata.normalize('NFKC', text).casefold()
  # Case folding can leave composed forms behind, hence once more.
  return ' '.join(unicodedata.normalize('NFKC', folded).split())


def normalised_input_hash(text: str, salt: str = '') -> int:
  """Returns a stable 64-bit hash of the normalised text."""
  data = f'{salt}\0{normalise_input(text)}'.encode()
  return int.from_bytes(hashlib.sha256(data).digest()[:8], 'big')


@dataclasses.dataclass(frozen=True)
class Dropped:
  """What becomes of the rows of a file besides being in its split.

  Attributes:
    split: the file's split.
    rows: how many it has.
    repeated: those whose input an earlier row of it has; their references go
      to that row.
    shared: inputs that the splits before it have, and it therefore loses.
    empty: rows that lack an input or a target.
  """

  split: str
  rows: int
  repeated: int
  shared: int
  empty: int = 0

  @property
  def all_shared(self) -> bool:
    """Whether nothing is left of it."""
    return self.shared > 0 and self.repeated + self.shared == self.rows

  def __str__(self) -> str:
    """Says it in words."""
    parts = []
    if self.empty:
      parts.append(f'{self.empty} lack an input or a target (dropped)')
    if self.repeated:
      parts.append(f'{self.repeated} repeat an input of it (merged)')
    if self.shared:
      parts.append(f'{self.shared} have inputs of another split (dropped)')
    return f'{self.split}: of {self.rows} rows {", ".join(parts)}'


def in_fraction(text: str, fraction: float, salt: str) -> bool:
  """Says whether a text falls in the first `fraction` of the hash range.

  The same for all texts equal after normalisation; independent between salts.
  """
  return normalised_input_hash(text, salt) < fraction * 2.0**64


def one_per_input(examples: Iterable[TextExample]) -> list[TextExample]:
  """Keeps the first row of each normalised input, with everyone's references.

  A system is then scored against all texts that any row of that input gives.
  """
  first: dict[int, TextExample] = {}
  references: dict[int, dict[str, None]] = {}
  for example in examples:
    key = normalised_input_hash(example.inputs)
    first.setdefault(key, example)
    references.setdefault(key, {}).update(dict.fromkeys(example.references))
  return [
    dataclasses.replace(example, references=tuple(references[key]))
    for key, example in first.items()
  ]


def drop_inputs_of(
  examples: Sequence[TextExample], *others: Sequence[TextExample]
) -> list[TextExample]:
  """Returns the examples whose normalised input occurs in none of `others`."""
  seen = {
    normalised_input_hash(example.inputs)
    for other in others
    for example in other
  }
  return [
    example
    for example in examples
    if normalised_input_hash(example.inputs) not in seen
  ]


@dataclasses.dataclass(frozen=True)
class SplitPlan:
  """How the rows of the files become four splits disjoint by input.

  Held-out train inputs and the rows of the test file form one pool, and that
  pool is divided into calibration and test: the two are then draws from the
  same population, which is what a certificate assumes.

  Attributes:
    calibration_fraction: the share of the pool, in [0, 1), that becomes the
      calibration split; not used where the files bring a calibration split
      (they form the calibration split as they are, the pool is all test).
    held_out_fraction: the share of distinct train inputs, in [0, 1), that
      training never sees and the pool receives, one row per input.
  """

  calibration_fraction: float = 0.5
  held_out_fraction: float = 0.0

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if not 0.0 <= value < 1.0:
        raise ValueError(
          f'{field.name} is {value!r}; it must be at least 0 and below 1.'
        )

  def dropped(self, rows: Mapping[str, Sequence[TextExample]]) -> list[Dropped]:
    """Returns what `apply` leaves out of each file, of those where it does.

    Args:
      rows: as for `apply`. Of the train file nothing is dropped.
    """
    seen = {
      normalised_input_hash(row.inputs)
      for row in rows['train']
      if not in_fraction(row.inputs, self.held_out_fraction, 'held out')
    }
    found = []
    for split in SPLITS[1:]:
      hashes = [
        normalised_input_hash(row.inputs) for row in rows.get(split, ())
      ]
      own = set(hashes)
      count = Dropped(
        split, len(hashes), len(hashes) - len(own), len(own & seen)
      )
      if count.repeated or count.shared:
        found.append(count)
      seen |= own
    return found

  def apply(
    self, rows: Mapping[str, Sequence[TextExample]]
  ) -> dict[str, list[TextExample]]:
    """Divides the rows of the files.

    Precedence where an input occurs in several files: train, validation,
    calibration, test; later splits lose it.

    Args:
      rows: by the name of the file's split; 'train' is required, the others of
        `SPLITS` are not.

    Returns:
      The splits that have rows, in the order of `SPLITS`; validation,
      calibration and test in an order that follows from the inputs' hashes.
    """
    held_out, train = [], []
    for example in rows['train']:
      chosen = in_fraction(example.inputs, self.held_out_fraction, 'held out')
      (held_out if chosen else train).append(example)
    validation = drop_inputs_of(
      one_per_input(rows.get('validation', ())), train
    )
    pool = drop_inputs_of(
      one_per_input([*rows.get('test', ()), *held_out]), train, validation
    )
    if 'calibration' in rows:
      calibration = drop_inputs_of(
        one_per_input(rows['calibration']), train, validation
      )
      test = drop_inputs_of(pool, calibration)
    else:
      calibration, test = [], []
      for example in pool:
        chosen = in_fraction(
          example.inputs, self.calibration_fraction, 'calibration'
        )
        (calibration if chosen else test).append(example)
    for examples in (validation, calibration, test):
      # Files are sorted; the first rows of a split must be like the others.
      examples.sort(key=lambda row: normalised_input_hash(row.inputs, 'order'))
    splits = dict(
      zip(SPLITS, (train, validation, calibration, test), strict=True)
    )
    return {name: examples for name, examples in splits.items() if examples}
