"""Teacher-forced evaluation as a callable for the training loop.

Metrics that need decoding come into the loop the same way, as functions of
parameters and step; training itself knows nothing of decoding.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from calm_jax.array_types import Params
from calm_jax.model import T5Config
from calm_jax.training import step as step_lib

# `(params, step) -> {metric name: value}`.
Evaluator = Callable[[Params, int], dict[str, float]]


def evaluate_all(
  evaluators: Mapping[str, Evaluator], params: Params, step: int
) -> dict[str, float]:
  """Returns the metrics of all evaluators.

  Raises:
    ValueError: if two of them return the same name.
  """
  values: dict[str, float] = {}
  for name, evaluator in evaluators.items():
    new = evaluator(params, step)
    if repeated := values.keys() & new.keys():
      raise ValueError(
        f'evaluator {name!r} returns {sorted(repeated)}, which another one '
        'returns too; give them different names'
      )
    values.update(new)
  return values


def teacher_forced_evaluator(
  config: T5Config,
  batches_fn: Callable[[], Iterable[Mapping[str, Any]]],
  *,
  prefix: str = 'validation',
) -> Evaluator:
  """Returns an evaluator that measures loss and accuracy of every exit.

  Its metrics are `<prefix>_loss` and `<prefix>_accuracy` of the last layer and
  `<prefix>_loss_exit_<i>`, `<prefix>_accuracy_exit_<i>` for i = 1..L, all per
  target token over the whole set.

  Args:
    config: the model's configuration.
    batches_fn: returns an iterable of the same batches each time it is called.
    prefix: of the metrics' names.

  Raises:
    ValueError: when evaluating, if the batches hold no target token.
  """

  def evaluate(params: Params, step: int) -> dict[str, float]:
    del step
    eval_step = step_lib.make_eval_step(config)
    metrics = jax.device_get(
      [
        eval_step(params, step_lib.check_batch(batch, config))
        for batch in batches_fn()
      ]
    )
    tokens = np.array([m.num_tokens for m in metrics], np.float64)
    if not tokens.sum() > 0:
      raise ValueError(
        f'the {prefix} batches hold no target token ({len(metrics)} batches): '
        'is the split empty, or batches_fn an iterator that is used up?'
      )
    weights = tokens / tokens.sum()
    losses = weights @ np.array([m.losses for m in metrics])
    accuracies = weights @ np.array([m.accuracies for m in metrics])
    values = {
      f'{prefix}_loss': losses[-1],
      f'{prefix}_accuracy': accuracies[-1],
    }
    for exit_layer in range(1, config.num_decoder_layers + 1):
      values[f'{prefix}_loss_exit_{exit_layer}'] = losses[exit_layer - 1]
      values[f'{prefix}_accuracy_exit_{exit_layer}'] = accuracies[
        exit_layer - 1
      ]
    return {name: float(value) for name, value in values.items()}

  return evaluate
