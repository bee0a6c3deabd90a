"""Trains a gate of a trained model, from gin files: when may a token stop?

  python -m calm_jax.cli.train_gates \
    --gin_file=runs/train_gates.gin --gin_file=tasks/e2e_nlg.gin \
    --gin.DATA_DIR=../shared/data --gin.MODEL_DIR=runs/e2e_nlg

The model in MODEL_DIR (its best checkpoint if there is one) stays as it is; the
gate goes to MODEL_DIR/gate, with its log, its configuration and what it does on
the validation split. Restarting the same command goes on from the last
checkpoint. Decode with policies/gate.gin, or with policies/gate_quantile.gin if
it is trained for 'quantile'.

A model whose early layers do not speak for themselves is read through the
adapters of `calm_jax.cli.train_exits`, and its gate learns when what a layer
says through them is the last one's. With --gin.EXIT_ADAPTERS=exit_adapters the
rows are what the model itself said there, so that the same file of inputs does
(tasks/input_lines.gin). Decode with policies/adapted_gate.gin.
"""

from typing import Any

from calm_jax import data as datasets
from calm_jax import records, reporting, runs, training
from calm_jax.cli import gin_runner
from calm_jax.cli.part_rows import TaskRows
from calm_jax.cli.part_training import TrainedForRun, measure_part, train_part


def run(
  *,
  model_dir: str,
  task: Any,
  optimizer: training.Optimizer,
  plan: training.Plan,
  data: datasets.DataPlan,
  target: Any = 'consistency',
  states: str = 'exact',
  shape: training.GateShape | None = None,
  adapters: str | None = None,
  name: str = 'gate',
  seed: int = 0,
) -> records.GateEvaluation | None:
  """Trains on the split 'train' and measures on 'validation'.

  Args:
    model_dir: a run directory of `calm_jax.cli.train`.
    task: the Task.
    optimizer: from `training.adamw` or `training.adafactor`.
    plan: how many steps, and when to log and save.
    data: how the Task's examples become batches; their lengths are those that
      the model was trained with.
    target: an object such as `training.CostAware()`, or one by name.
    states: 'exact' or 'own_exits'.
    shape: hidden units, inputs, whether exits share the gate.
    adapters: the folder in `model_dir` of the exit adapters that layers are
      read through; None for as they are. With them `task` is the one that they
      were trained on; rows are the model's outputs there, and of `data` the
      batch size and the buckets count.
    name: of the folder in `model_dir` that the gate goes to.
    seed: of the first weights and of the data order.

  Returns:
    What it does; None for a Task without validation inputs.
  """
  target = training.get_gate_target(target)
  training.get_gate_states(states)
  directory = training.gate_directory(model_dir, name)
  outputs_in, read_through = None, None
  if adapters is not None:
    outputs_in = training.exit_adapter_directory(model_dir, adapters)
    read_through = runs.load_exit_adapters(model_dir, name=adapters)

  def measure(trained: TrainedForRun) -> records.GateEvaluation:
    config = trained.run.config
    found = training.evaluate_gate(
      config,
      trained.run.params,
      training.gate_of(trained.result.params),
      trained.validation,
      adapters=read_through,
    )
    return records.GateEvaluation(
      num_tokens=found.num_tokens,
      num_layers=config.num_decoder_layers,
      target=repr(target),
      layers=found.layers,
      depths=found.depths,
      first_agreeing=found.first_agreeing,
      settled=found.settled,
      **trained.about(exit_adapters=adapters),
    )

  trained = train_part(
    lambda run: training.gate_stage(
      run.config,
      run.params,
      optimizer,
      target=target,
      states=states,
      shape=shape,
      adapters=read_through,
      seed=seed,
    ),
    TaskRows(data, outputs_in),
    job='train_gates',
    model_dir=model_dir,
    directory=directory,
    task=task,
    plan=plan,
    seed=seed,
  )
  return measure_part(trained, measure, render=reporting.render_gate_text)


if __name__ == '__main__':
  gin_runner.main('train_gates', one_process=True)
