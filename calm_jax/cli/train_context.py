"""Trains gates of the decoder's own past for a trained model, from gin files.

  python -m calm_jax.cli.train_context \
    --gin_file=runs/train_context.gin --gin_file=tasks/e2e_nlg.gin \
    --gin.DATA_DIR=../shared/data --gin.MODEL_DIR=runs/e2e_nlg

The model in MODEL_DIR (its best checkpoint if there is one) stays as it is: it
says something to each input, and the gates learn which tokens of its own output
later ones can drop, layer by layer, while it says nearly the same. No
references are read, so a file of inputs is enough (tasks/input_lines.gin). The
gates go to MODEL_DIR/context_gates, with the model's outputs, their log, their
configuration and what pruning by them costs on the validation split, beside a
window of the last tokens. Restarting the same command goes on from the last
checkpoint and decodes nothing twice. Decode and certify with
policies/pruned_context.gin.
"""

from typing import Any

from calm_jax import evaluation, records, training
from calm_jax.cli import gin_runner
from calm_jax.cli.outputs_training import InputPlan, OwnRows
from calm_jax.cli.part_training import TrainedForRun, measure_part, train_part


def run(
  *,
  model_dir: str,
  task: Any,
  optimizer: training.Optimizer,
  plan: training.Plan,
  inputs: InputPlan | None = None,
  layout: evaluation.BatchLayout | None = None,
  price: training.ContextPrice | None = None,
  size: int = 16,
  name: str = 'context_gates',
  seed: int = 0,
) -> records.ContextGateEvaluation | None:
  """Trains on inputs of the split 'train' and measures on 'validation'.

  Args:
    model_dir: a run directory of `calm_jax.cli.train`, or of `convert`.
    task: the Task; its targets are not read.
    optimizer: from `training.adamw` or `training.adafactor`.
    plan: how many steps, and when to log and save.
    inputs: which inputs; the defaults if None.
    layout: how they are decoded together; the defaults if None.
    price: what keeping past positions costs; the default if None.
    size: R, numbers of a query and of a key.
    name: of the folder in `model_dir` that the gates go to.
    seed: of the inputs drawn, of their order and of the first keys.

  Returns:
    What pruning by them costs; None for a Task without validation inputs.
  """
  paid = training.ContextPrice() if price is None else price
  trained = train_part(
    lambda run: training.context_gate_stage(
      run.config, run.params, optimizer, price=paid, size=size, seed=seed
    ),
    OwnRows(inputs, layout),
    job='train_context',
    model_dir=model_dir,
    directory=training.context_gate_directory(model_dir, name),
    task=task,
    plan=plan,
    seed=seed,
  )
  return measure_part(trained, lambda trained: _measure(trained, paid.price))


def _measure(
  trained: TrainedForRun, price: float
) -> records.ContextGateEvaluation:
  """Returns what pruning by the gates costs."""
  gates = training.context_gates_of(trained.result.params)
  found = training.evaluate_context_gates(
    trained.run.config, trained.run.params, gates, trained.validation
  )
  return records.ContextGateEvaluation(
    num_tokens=found.num_tokens,
    longest=found.longest,
    price=price,
    size=gates.size,
    shifts=found.shifts,
    **trained.about(),
  )


if __name__ == '__main__':
  gin_runner.main('train_context', one_process=True)
