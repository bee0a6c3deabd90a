"""What a calibration cost."""

import dataclasses
from typing import Any

from calm_jax.records.json_files import FORMAT_VERSION


@dataclasses.dataclass(frozen=True)
class SettingCost:
  """What one setting of a grid cost.

  Attributes:
    setting: the setting.
    num_decoded: inputs decoded at it; the others were known to come out as at
      the setting before.
    seconds: wall clock of decoding them.
  """

  setting: Any
  num_decoded: int
  seconds: float


@dataclasses.dataclass(frozen=True)
class CalibrationCost:
  """Where the time of a calibration went, in seconds.

  Attributes:
    num_examples: N.
    full_seconds: one pass of the full model over the N inputs.
    settings: the settings decoded.
    scoring_seconds: computing losses from texts.
    statistics_seconds: p-values and tests.
    compile_seconds: compiling, in none of the others.
    format_version: of this schema.
  """

  num_examples: int
  full_seconds: float
  settings: tuple[SettingCost, ...]
  scoring_seconds: float
  statistics_seconds: float
  compile_seconds: float
  format_version: int = FORMAT_VERSION

  @property
  def total_seconds(self) -> float:
    """Everything but compilation."""
    return (
      self.full_seconds
      + sum(entry.seconds for entry in self.settings)
      + self.scoring_seconds
      + self.statistics_seconds
    )

  @property
  def ratio(self) -> float:
    """Calibration time over the time of one full-model pass."""
    return self.total_seconds / self.full_seconds

  def describe(self) -> str:
    """Says it in a sentence."""
    decoding = sum(entry.seconds for entry in self.settings)
    decoded = sum(entry.num_decoded for entry in self.settings)
    return (
      f'Calibration cost {self.ratio:.2f} full-model passes of '
      f'{self.num_examples} inputs: full model {self.full_seconds:.1f} s, '
      f'{len(self.settings)} settings {decoding:.1f} s ({decoded} of '
      f'{len(self.settings) * self.num_examples} decodes, the others known '
      f'from the setting before), scoring {self.scoring_seconds:.1f} s, '
      f'statistics {self.statistics_seconds:.1f} s; compilation '
      f'{self.compile_seconds:.1f} s beside it.'
    )
