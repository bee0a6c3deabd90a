"""What a calibration cost."""

import dataclasses
from typing import Any

from calm_jax.records.json_files import FORMAT_VERSION


@dataclasses.dataclass(frozen=True)
class SettingCost:
  """What one setting of a grid cost.

  Attributes:
    setting: the setting.
    num_decoded: inputs decoded at it, if only from some token on; the others
      were known from the setting before, or from the full model's outputs.
    seconds: wall clock of decoding them.
    num_inputs: inputs that it was wanted for; all N if None.
  """

  setting: Any
  num_decoded: int
  seconds: float
  num_inputs: int | None = None


@dataclasses.dataclass(frozen=True)
class CalibrationCost:
  """Where the time of a calibration went, in seconds.

  Attributes:
    num_examples: N.
    full_seconds: one pass of the full model over the N inputs; it looks at all
      exits on the way where settings follow from them.
    settings: the settings decoded.
    scoring_seconds: computing losses from texts.
    statistics_seconds: p-values and tests.
    compile_seconds: compiling, in none of the others.
    trace_seconds: telling what follows from exits, and looking at those of
      outputs that had been decoded before; 0 where nothing follows.
    format_version: of this schema.
  """

  num_examples: int
  full_seconds: float
  settings: tuple[SettingCost, ...]
  scoring_seconds: float
  statistics_seconds: float
  compile_seconds: float
  trace_seconds: float = 0.0
  format_version: int = FORMAT_VERSION

  @property
  def total_seconds(self) -> float:
    """Everything but compilation."""
    return (
      self.full_seconds
      + self.trace_seconds
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
    wanted = sum(
      self.num_examples if entry.num_inputs is None else entry.num_inputs
      for entry in self.settings
    )
    traces = ''
    if self.trace_seconds:
      traces = f'its exits {self.trace_seconds:.1f} s, '
    return (
      f'Calibration cost {self.ratio:.2f} full-model passes of '
      f'{self.num_examples} inputs: full model {self.full_seconds:.1f} s, '
      f'{traces}{len(self.settings)} settings {decoding:.1f} s ({decoded} of '
      f'{wanted} decodes, the others known without), '
      f'scoring {self.scoring_seconds:.1f} s, '
      f'statistics {self.statistics_seconds:.1f} s; compilation '
      f'{self.compile_seconds:.1f} s beside it.'
    )
