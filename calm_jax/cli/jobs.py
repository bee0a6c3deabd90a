"""What the decoding jobs share: loading a run, decoding a split."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from calm_jax import (
  checkpoints,
  costs,
  data,
  decoding,
  evaluation,
  interfaces,
  model,
  quantisation,
  records,
  runs,
)
from calm_jax.cli import gin_runner
from calm_jax.processes import collectives, file_locks, speaking
from calm_jax.records import provenance


@contextlib.contextmanager
def open_output(directory: str, config_name: str) -> Iterator[None]:
  """Makes a job's folder and keeps it from others while the job writes to it.

  Two jobs on one folder would leave the results of one beside the tables of the
  other, and both would say that theirs were written. The configuration in force
  is the first thing in it.

  Args:
    directory: the folder.
    config_name: the name of the configuration there, a job's own.

  Raises:
    ValueError: if the same job is at work there, naming its process.
  """
  os.makedirs(directory, exist_ok=True)
  path = os.path.join(directory, config_name)
  with file_locks.held_by_job(path, 'OUTPUT_DIR'):
    gin_runner.write_operative_config(directory, config_name)
    yield


# The folder in MODEL_DIR where decoded rows are kept, for whichever job needs
# them next. It may be deleted at any time.
DECODES = 'decodes'


def describe_decoding(model_dir: str, layout: evaluation.BatchLayout) -> str:
  """Returns what decoding with a run's model holds on each device, as text.

  Reads what the run says of itself, and no parameters.

  Args:
    model_dir: a run directory.
    layout: how rows are decoded together.
  """
  path = checkpoints.find_checkpoint(model_dir)
  metadata = checkpoints.read_metadata(path)
  lengths = metadata['context']['feature_lengths']
  return costs.describe_decoding_memory(
    checkpoints.config_of(path, metadata),
    mesh=layout.mesh(),
    batch_size=layout.batch_size,
    input_length=lengths['inputs'],
    target_length=lengths['targets'],
  )


def dataset_decoder(
  run: runs.LoadedRun, layout: evaluation.BatchLayout, *, model_dir: str
) -> evaluation.DatasetDecoder:
  """Returns what decodes data sets with a run's model and keeps the rows.

  Tokens that the run never says are not said here either. What it lets outputs
  begin with is left out, and that is said.
  """
  if run.forced_prefix:
    speaking.say(
      f'outputs of this run begin with the tokens {list(run.forced_prefix)} '
      '(forced_prefix) when they are served; here they are decoded without, '
      'and no certificate covers those that begin so'
    )
  decoder, reference = model.as_layered_decoder(run.config), None
  if quantisation.as_weights(layout.weights) is not None:
    in_float = dataclasses.replace(layout, weights=None)
    reference = in_float.bind(decoder, run.params)
  return evaluation.DatasetDecoder(
    bound=layout.bind(decoder, runs.int8_params(run, layout.weights)),
    reference=reference,
    detokenize=run.tokenizer.decode,
    max_length=run.feature_lengths['targets'],
    eos_id=run.tokenizer.eos_id,
    suppressed_tokens=run.suppressed_tokens,
    about=run.context(),
    keep_in=os.path.join(model_dir, DECODES),
    share=collectives.Share.here(),
    progress=speaking.say,
  )


def classifier_of(
  loaded: runs.LoadedRun, model_dir: str, heads: str
) -> evaluation.DatasetClassifier:
  """Returns what classifies data sets with a run's encoder and heads."""
  return evaluation.DatasetClassifier(
    encoder=model.as_layered_encoder(loaded.config),
    params=loaded.params,
    heads=runs.load_encoder_heads(model_dir, name=heads, run=loaded),
    class_texts=runs.load_class_labels(model_dir, name=heads).texts,
    about=loaded.context(),
  )


def bind_to_loops(
  run: runs.LoadedRun,
  weights: Any = None,
  *,
  loops: Mapping[str, interfaces.DepthLoop] | None = None,
) -> dict[str, interfaces.BoundDecoder]:
  """Returns a run's decoder bound to each depth loop that timings try.

  Args:
    run: the run.
    weights: as `decoding.bind` takes it.
    loops: the depth loops; the two that all timings try if None.
  """
  decoder = model.as_layered_decoder(run.config)
  params = runs.int8_params(run, weights)
  return {
    name: decoding.bind(
      decoder,
      params,
      depth_loop=loop,
      weights=weights,
    )
    for name, loop in (loops or timed_loops()).items()
  }


def timed_loops(
  layout: evaluation.BatchLayout | None = None,
) -> dict[str, interfaces.DepthLoop]:
  """Returns the depth loops that timings try, that of a layout among them."""
  loops = [decoding.DEPTH_LOOPS[name] for name in ('while', 'unrolled')]
  if layout is not None and layout.depth_loop is not None:
    loops.append(layout.depth_loop)
  return {decoding.name_of_depth_loop(loop): loop for loop in loops}


def load_run(
  model_dir: str, task: Any, max_length: int | None = None
) -> runs.LoadedRun:
  """Loads a run and checks that a Task speaks its language.

  Args:
    model_dir: a run directory.
    task: the Task.
    max_length: the most tokens of an output; that of training if None.

  Raises:
    ValueError: if the Task has another vocabulary or prefix than the run.
  """
  run = runs.load_run(model_dir).with_output_length(max_length)
  vocabulary = data.as_task(task).output_features['inputs'].vocabulary
  found = data.tokenizer_of(vocabulary)
  if found.fingerprint != run.tokenizer.fingerprint:
    raise ValueError(
      f'the task reads {found.name}, which is not the vocabulary that this '
      f'model was trained with; give it {run.tokenizer.name}'
    )
  prefix = data.prefix_of(task)
  expected = run.prefixes.get(data.as_task(task).name, run.prefix)
  if prefix != expected:
    raise ValueError(
      f'the task has the prefix {prefix!r}, training had {expected!r}'
    )
  return dataclasses.replace(run, prefix=prefix)


def refuse_training_rows(
  model_dir: str, batches: Sequence[Mapping[str, Any]], prefix: str
) -> None:
  """Refuses inputs that the run or a part was trained or selected on."""
  path = os.path.join(model_dir, records.TRAINING_ROWS_NAME)
  if not os.path.exists(path):
    speaking.say(
      f'no {path}: cannot check that these rows did not choose the model'
    )
  for found in records.training_rows_files(model_dir):
    rows = records.read_training_rows(found)
    data.refuse_training_rows(batches, rows, prefix=prefix)


def as_begun(plan: data.DataPlan, directory: str) -> data.DataPlan:
  """Returns a plan that cuts inputs as a run in a directory did so far.

  A run that was begun when inputs that were cut lost their EOS goes on so, and
  it is said.
  """
  step = checkpoints.latest_step(directory)
  if step is None:
    return plan
  path = checkpoints.checkpoint_path(directory, step)
  begun = plan.as_begun(checkpoints.read_metadata(path).get('context'))
  if begun.inputs_cut != plan.inputs_cut:
    speaking.say(
      f'{directory} was begun when inputs of more than '
      f'{plan.lengths["inputs"]} tokens lost their end of sequence, and goes '
      'on so; begun anew it would train on them as they are served, with it'
    )
  return begun


def run_context(config: model.T5Config, **details: Any) -> records.RunContext:
  """Returns how a result of this job was obtained."""
  if jax.process_count() > 1:
    details['processes'] = jax.process_count()
  return provenance.run_context(
    device=jax.devices()[0].device_kind,
    dtype=config.dtype,
    libraries=provenance.LIBRARIES,
    details={'model': dataclasses.asdict(config), **details},
  )
