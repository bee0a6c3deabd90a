"""When may a token stop? Exit rules, the measures they read, their thresholds.

Everything here reads a `LayerView` and nothing more: no model, no loop. A new
criterion is a new object, either a confidence measure for `ConfidenceExit` or
an exit rule of its own.
"""

from calm_jax.exits.budget import BudgetState, LayerBudget, PerPosition
from calm_jax.exits.classifier import Classifier
from calm_jax.exits.gate import Gate
from calm_jax.exits.logit_features import features_of
from calm_jax.exits.measures import (
  Measure,
  SoftmaxMargin,
  SoftmaxMaximum,
  StateSimilarity,
  get_measure,
)
from calm_jax.exits.oracle import OracleExit
from calm_jax.exits.patience import PatienceExit
from calm_jax.exits.quantile import QuantileExit
from calm_jax.exits.routed import RoutedExit, RoutedState
from calm_jax.exits.router import Router
from calm_jax.exits.rules import (
  ConfidenceExit,
  FixedExit,
  NeverExit,
  ScheduledExit,
)
from calm_jax.exits.tempered import Tempered
from calm_jax.exits.thresholds import (
  ConstantThreshold,
  DecayingThreshold,
  ReleaseDecayThreshold,
)
from calm_jax.exits.usual_settings import usual_settings
from calm_jax.exits.usual_thresholds import usual_thresholds

__all__ = [
  'BudgetState',
  'Classifier',
  'ConfidenceExit',
  'ConstantThreshold',
  'DecayingThreshold',
  'FixedExit',
  'Gate',
  'LayerBudget',
  'Measure',
  'NeverExit',
  'OracleExit',
  'PatienceExit',
  'PerPosition',
  'QuantileExit',
  'ReleaseDecayThreshold',
  'RoutedExit',
  'RoutedState',
  'Router',
  'ScheduledExit',
  'SoftmaxMargin',
  'SoftmaxMaximum',
  'StateSimilarity',
  'Tempered',
  'features_of',
  'get_measure',
  'usual_settings',
  'usual_thresholds',
]
