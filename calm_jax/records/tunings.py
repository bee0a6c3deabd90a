"""What a tuning tried, certified and chose: `tuned.json`."""

import dataclasses
import math
from typing import Any

from calm_jax.records.decoding_contexts import setting_in_words
from calm_jax.records.evaluations import RunContext
from calm_jax.records.json_files import FORMAT_VERSION
from calm_jax.records.promises import PromisedLoss
from calm_jax.records.validations import ViolationCount

# Of a run, and in that folder.
TUNED_FOLDER = 'tuned'
TUNED_NAME = 'tuned.json'
TUNED_CERTIFICATE = 'certificate.json'
SCREENING_TABLE = 'screening_table.npz'


@dataclasses.dataclass(frozen=True, kw_only=True)
class TunedCandidate:
  """One policy at one setting.

  Attributes:
    policy: the name of its policy in the space.
    setting: a threshold, or {path of a field of the policy: value}.
    described: all of the policy, as `decoding.describe` writes it down.
    weights: 'float', or which matrices are in 8 bits.
    lossless: whether its outputs are the full model's, so that nothing is
      tested.
    milliseconds: per step of the token loop, what is done once per batch shared
      out among the steps of the full model.
    speed_up: how many times faster than the full model; NaN if not measured.
    depth_loop: the loop of that time, of those tried the fastest.
    mean_exit_layer: layers per token on the rows that screen, without those
      that a plan left out and those caught up later; NaN if lossless.
    screening_means: mean loss of each promise on these rows.
    screening_p_value: the largest of the promises', on these rows.
    test_means: mean loss of each promise on the rows that test; () where it was
      not tested.
    test_p_value: the largest of the promises', on the rows that test.
    certified: whether it passed, and all those before it.
    mean_encoder_layer: encoder layers per source on the rows that screen; NaN
      where all run for all, and if lossless.
  """

  policy: str
  setting: Any
  described: dict[str, Any]
  weights: Any = 'float'
  lossless: bool = False
  milliseconds: float = math.nan
  speed_up: float = math.nan
  depth_loop: str = ''
  mean_exit_layer: float = math.nan
  screening_means: tuple[float, ...] = ()
  screening_p_value: float = math.nan
  test_means: tuple[float, ...] = ()
  test_p_value: float = math.nan
  certified: bool = False
  mean_encoder_layer: float = math.nan

  @property
  def label(self) -> str:
    """Its policy and setting in words."""
    if self.setting == {}:
      return self.policy
    return f'{self.policy}, {setting_in_words(self.setting)}'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuning:
  """A tuning: screened, tested, chosen.

  Attributes:
    fingerprint: of all that it was asked for but the time it may take.
    promises: what is promised, in the order of certificates.
    p_value: the name of the p-value.
    error_rate: how often the certified candidates may break a promise, as
      tested with.
    seed: of the split into rows that screen and rows that test.
    screening_ids: hashes of the inputs that screened.
    test_ids: hashes of the inputs that tested.
    batch_size: rows that the clock decoded together.
    full_milliseconds: per step, of the full model without any checks.
    full_depth_loop: the loop of that time, of those tried the fastest.
    depth_loops: those tried, by name; None for that of the backend alone.
    candidates: C of them, in the order in which they were screened.
    front: those that no other beats, safest first.
    sequence: those of the front that were to be tested, in that order.
    paper: the candidate that CALM's own calibration would choose of one policy
      by the rows that screen, for comparison; None for the full model.
    compared: the name of that policy.
    left_out: candidates that the time did not last for, in words.
    chosen: the fastest of the certified and lossless ones; None for the full
      model.
    certificate: the name of the certificate's file beside this one; None where
      nothing was tested.
    sentence: what was chosen and what holds of it, for everybody.
    least_gain: how many times as fast as what loses nothing a candidate had to
      be, to be tested.
    num_encoder_layers: L_enc; None where the decoder does not say.
    context: how this came about.
    format_version: of this schema.
  """

  fingerprint: str
  promises: tuple[PromisedLoss, ...]
  p_value: str
  error_rate: float
  seed: int
  screening_ids: tuple[str, ...]
  test_ids: tuple[str, ...]
  batch_size: int
  full_milliseconds: float
  candidates: tuple[TunedCandidate, ...]
  front: tuple[int, ...]
  sequence: tuple[int, ...]
  paper: int | None
  compared: str
  left_out: tuple[str, ...]
  context: RunContext
  chosen: int | None = None
  certificate: str | None = None
  sentence: str = ''
  least_gain: float = 1.0
  full_depth_loop: str = ''
  depth_loops: tuple[str, ...] | None = None
  num_encoder_layers: int | None = None
  format_version: int = FORMAT_VERSION

  @property
  def choice(self) -> TunedCandidate | None:
    """What was chosen; None for the full model."""
    return None if self.chosen is None else self.candidates[self.chosen]

  @property
  def depth_loop(self) -> str | None:
    """The loop to serve what was chosen in; None for that of the backend."""
    choice = self.choice
    if self.depth_loops is None:
      return None
    return self.full_depth_loop if choice is None else choice.depth_loop

  @property
  def certified(self) -> tuple[int, ...]:
    """The candidates that passed, in the order in which they were tested."""
    return tuple(
      place for place in self.sequence if self.candidates[place].certified
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class HandComparison:
  """What tunings choose on draws of a table, beside what one would by hand.

  By hand: every policy is calibrated by itself, on all rows, at the error rate
  over their number, and the fastest of what is certified is taken.

  Attributes:
    num_policies: K, by whose number the error rate is divided.
    num_draws: draws, the same for both.
    tuned_speed_up: mean of what tunings choose; what needs no certificate where
      nothing that is faster is certified.
    hand_speed_up: of what one would choose by hand.
    least_speed_up: of what needs no certificate.
    tuned_certified: share of draws in which something faster is certified.
    hand_certified: the same by hand.
  """

  num_policies: int
  num_draws: int
  tuned_speed_up: float
  hand_speed_up: float
  least_speed_up: float
  tuned_certified: float
  hand_certified: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class TunedValidation:
  """How often tunings on draws of a table break what they promise.

  Attributes:
    error_rate: what the share of such draws must not exceed.
    p_value: the name of the p-value.
    num_rows: rows of the table, which is taken for the population.
    candidates: those of the table, in words.
    counts: at what was promised, and with each tolerance in turn just below the
      risk of each candidate, where it is hardest.
    context: how this came about.
    by_hand: what one would choose by hand on the same draws; None if that was
      not asked.
    format_version: of this schema.
  """

  error_rate: float
  p_value: str
  num_rows: int
  candidates: tuple[str, ...]
  counts: tuple[ViolationCount, ...]
  context: RunContext
  by_hand: HandComparison | None = None
  format_version: int = FORMAT_VERSION
