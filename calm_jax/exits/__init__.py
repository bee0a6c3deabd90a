"""When may a token stop? Exit rules, the measures they read, their thresholds.

Everything here reads a `LayerView` and nothing more: no model, no loop. A new
criterion is a new object, either a confidence measure for `ConfidenceExit` or
an exit rule of its own.
"""

from calm_jax.exits.budget import BudgetState, LayerBudget, PerPosition
from calm_jax.exits.classifier import Classifier
from calm_jax.exits.measures import (
  Measure,
  SoftmaxMargin,
  SoftmaxMaximum,
  StateSimilarity,
  get_measure,
)
from calm_jax.exits.oracle import OracleExit
from calm_jax.exits.rules import (
  ConfidenceExit,
  FixedExit,
  NeverExit,
  ScheduledExit,
)
from calm_jax.exits.thresholds import (
  ConstantThreshold,
  DecayingThreshold,
  ReleaseDecayThreshold,
)

__all__ = [
  'BudgetState',
  'Classifier',
  'ConfidenceExit',
  'ConstantThreshold',
  'DecayingThreshold',
  'FixedExit',
  'LayerBudget',
  'Measure',
  'NeverExit',
  'OracleExit',
  'PerPosition',
  'ReleaseDecayThreshold',
  'ScheduledExit',
  'SoftmaxMargin',
  'SoftmaxMaximum',
  'StateSimilarity',
  'get_measure',
]
