"""What a run trains: a stage, of which `stages` has one file each."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from calm_jax.array_types import Params, PyTree
from calm_jax.model import T5Config
from calm_jax.training.optimizer import Optimizer
from calm_jax.training.state import StepMetrics, TrainState

Batch = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
  """What a run trains; all else is the run's.

  Attributes:
    config: the model, saved with checkpoints; a restart must give the same.
    optimizer: the one that `step` uses; its schedule goes to the log.
    init: from `params` to the state at step 0.
    step: jitted `(state, batch, constants) -> (state, metrics)`; donates the
      state.
    check_batch: from a batch as it comes to the arrays that `step` reads.
      Raises ValueError for a bad one.
    params: what `init` starts from; None for fresh parameters.
    constants: a parameter tree that `step` reads and nobody changes, such as a
      frozen model; None if it reads none.
    context: JSON values that say what is trained; saved with checkpoints, and
      the same on a restart.
    title: a few words for the first line that is printed, '6 exits'.
    inside: whether what is trained is part of another run's model and its
      directory lies in that run's: rows seen are then seen by that run.
  """

  config: T5Config
  optimizer: Optimizer
  init: Callable[[Params | None], TrainState]
  step: Callable[[TrainState, Batch, PyTree], tuple[TrainState, StepMetrics]]
  check_batch: Callable[[Batch], Batch]
  params: Params | None = None
  constants: PyTree = None
  context: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  title: str = ''
  inside: bool = False
