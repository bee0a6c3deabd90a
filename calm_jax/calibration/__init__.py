"""Which early-exit setting keeps the output close enough, and how sure is that?

A table of losses goes in, a certified setting comes out (Learn then Test, arXiv
2110.01052, as CALM, arXiv 2207.07061, uses it). NumPy and SciPy only: nothing
here knows of JAX, models or text.
"""

from calm_jax.calibration.anytime import AnytimeSequence
from calm_jax.calibration.beta_mixture import (
  BetaLaw,
  BetaMixture,
  fit_beta_mixture,
)
from calm_jax.calibration.bets import Betting, betting
from calm_jax.calibration.blocks import calibrate_in_blocks, next_block
from calm_jax.calibration.bounds import Bound, TestedBound
from calm_jax.calibration.certificate import Certificate
from calm_jax.calibration.corrections import Bonferroni, Holm
from calm_jax.calibration.hand_choices import choose_by_hand
from calm_jax.calibration.inputs import check_error_rate, check_settings
from calm_jax.calibration.joint import (
  calibrate_jointly,
  joint_p_values,
  next_column_jointly,
)
from calm_jax.calibration.loaded_tables import load_loss_tables
from calm_jax.calibration.loss_watch import LossWatch
from calm_jax.calibration.monitor_states import standing_alarm
from calm_jax.calibration.multiple_testing import (
  FixedSequence,
  Procedure,
  fixed_sequence,
)
from calm_jax.calibration.named_p_values import P_VALUES, default_p_value
from calm_jax.calibration.p_values import (
  PValue,
  bentkus,
  exact_binomial,
  hoeffding,
  hoeffding_bentkus,
)
from calm_jax.calibration.pareto import Screening, pareto_front, screen
from calm_jax.calibration.paths import staircase_path
from calm_jax.calibration.procedure import calibrate, next_column
from calm_jax.calibration.risk_monitor import RiskMonitor
from calm_jax.calibration.sample_sizes import (
  TooManyExamples,
  required_examples,
)
from calm_jax.calibration.tuned_choices import choose_tuned, count_tuned
from calm_jax.calibration.tuned_study import validate_tuning
from calm_jax.calibration.tuning import (
  Tuned,
  certified_of,
  next_candidate,
  split_rows,
  tune_on_table,
)
from calm_jax.calibration.validation_plan import ValidationPlan
from calm_jax.calibration.validation_study import validate

__all__ = [
  'P_VALUES',
  'AnytimeSequence',
  'BetaLaw',
  'BetaMixture',
  'Betting',
  'Bonferroni',
  'Bound',
  'Certificate',
  'FixedSequence',
  'Holm',
  'LossWatch',
  'PValue',
  'Procedure',
  'RiskMonitor',
  'Screening',
  'TestedBound',
  'TooManyExamples',
  'Tuned',
  'ValidationPlan',
  'bentkus',
  'betting',
  'calibrate',
  'calibrate_in_blocks',
  'calibrate_jointly',
  'certified_of',
  'check_error_rate',
  'check_settings',
  'choose_by_hand',
  'choose_tuned',
  'count_tuned',
  'default_p_value',
  'exact_binomial',
  'fit_beta_mixture',
  'fixed_sequence',
  'hoeffding',
  'hoeffding_bentkus',
  'joint_p_values',
  'load_loss_tables',
  'next_block',
  'next_candidate',
  'next_column',
  'next_column_jointly',
  'pareto_front',
  'required_examples',
  'screen',
  'split_rows',
  'staircase_path',
  'standing_alarm',
  'tune_on_table',
  'validate',
  'validate_tuning',
]
