"""What the decoding jobs share: loading a run, decoding a split."""

import dataclasses
import os
from collections.abc import Callable, Iterable
from typing import Any

import jax

from calm_jax import (
  checkpoints,
  data,
  decoding,
  evaluation,
  interfaces,
  model,
  records,
  runs,
  sharding,
)
from calm_jax.cli import gin_runner, memory_plans
from calm_jax.processes import collectives, speaking
from calm_jax.records import provenance

LIBRARIES = ('jax', 'jaxlib', 'flax', 'numpy', 'calm_jax')


def open_output(directory: str, config_name: str) -> None:
  """Makes a job's folder and writes the configuration in force into it."""
  os.makedirs(directory, exist_ok=True)
  gin_runner.write_operative_config(directory, config_name)


def local_mesh(model_parallel: int = 1) -> jax.sharding.Mesh | None:
  """Returns a mesh of this process's devices to decode on; None for one.

  Processes decode their shares of the data by themselves: no host waits for
  another.

  Args:
    model_parallel: devices that share every row, and the parameters.
  """
  devices = jax.local_devices()
  if len(devices) == 1 and model_parallel == 1:
    return None
  return sharding.make_mesh(model=model_parallel, devices=devices)


# The folder in MODEL_DIR where decoded rows are kept, for whichever job needs
# them next. It may be deleted at any time.
DECODES = 'decodes'


def certificate_path(model_dir: str) -> str:
  """Returns where `calibrate` writes a run's certificate by default."""
  return os.path.join(model_dir, 'calibration', 'certificate.json')


def describe_decoding(
  model_dir: str, *, batch_size: int, model_parallel: int
) -> str:
  """Returns what decoding with a run's model holds on each device, as text.

  Reads what the run says of itself, and no parameters.

  Args:
    model_dir: a run directory.
    batch_size: rows that a process decodes together.
    model_parallel: devices of a process that share every row.
  """
  path = checkpoints.find_checkpoint(model_dir)
  metadata = checkpoints.read_metadata(path)
  lengths = metadata['context']['feature_lengths']
  return memory_plans.describe_decoding_memory(
    checkpoints.config_of(path, metadata),
    mesh=local_mesh(model_parallel),
    batch_size=batch_size,
    input_length=lengths['inputs'],
    target_length=lengths['targets'],
  )


def make_decode(
  run: runs.LoadedRun,
  keep_in: str | None = None,
  *,
  model_parallel: int = 1,
) -> Callable[..., evaluation.DecodedDataset]:
  """Returns a function that decodes batches with a run's model.

  Args:
    run: the run.
    keep_in: a folder; decoded rows are kept there and looked up, so that an
      interrupted job goes on where it was. None decodes everything anew.
    model_parallel: devices of this process that share every row.

  Returns:
    `decode(batches, *, policy, policy_for_batch, earlier)`, where `earlier` is
    a decode of the same batches at higher thresholds of the same policy: its
    rows are taken over where they cannot differ.
  """
  mesh, share = local_mesh(model_parallel), collectives.Share.here()
  bound = decoding.bind(
    model.as_layered_decoder(run.config), run.params, mesh=mesh
  )
  about = {
    'parameters': checkpoints.parameter_fingerprint(run.params),
    'tokenizer': run.tokenizer.fingerprint,
    'max_length': run.feature_lengths['targets'],
    'dtype': run.config.dtype,
    'backend': jax.default_backend(),
    'depth_loop': type(bound.depth_loop).__name__,
    'versions': versions(),
    # Rows that lie otherwise may round otherwise.
    **({} if mesh is None else {'mesh': dict(mesh.shape)}),
  }

  def decode(batches: Iterable, *, policy=None, earlier=None, **other):
    store = None
    if policy is not None:
      setting = {'policy': decoding.describe(policy), **_threshold(policy)}
      store = evaluation.DecodeStore(keep_in, {**about, **setting})
    if earlier is not None:
      evaluation.take_over(store, earlier, policy, share=share)
    return evaluation.decode_dataset(
      bound,
      batches,
      detokenize=run.tokenizer.decode,
      max_length=run.feature_lengths['targets'],
      eos_id=run.tokenizer.eos_id,
      policy=policy,
      share=share,
      store=store,
      progress=speaking.say,
      **other,
    )

  return decode


def bind_to_loops(
  run: runs.LoadedRun,
) -> dict[str, interfaces.BoundDecoder]:
  """Returns a run's decoder bound to each depth loop that timings try."""
  decoder = model.as_layered_decoder(run.config)
  return {
    name: decoding.bind(
      decoder, run.params, depth_loop=decoding.DEPTH_LOOPS[name]
    )
    for name in ('while', 'unrolled')
  }


def _threshold(policy: decoding.ComputePolicy) -> dict[str, float]:
  """Returns the threshold's value, which `describe` leaves out, if any."""
  threshold = getattr(policy.exit_rule, 'threshold', None)
  if threshold is None:
    return {}
  return {'threshold': float(getattr(threshold, 'value', threshold))}


def load_run(model_dir: str, task: Any) -> runs.LoadedRun:
  """Loads a run and checks that a Task speaks its language.

  Raises:
    ValueError: if the Task has another vocabulary or prefix than the run.
  """
  run = runs.load_run(model_dir)
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


def versions() -> dict[str, str]:
  """Returns the versions of what computes."""
  return provenance.versions(*LIBRARIES)


def run_context(config: model.T5Config, **details: Any) -> records.RunContext:
  """Returns how a result of this job was obtained."""
  if jax.process_count() > 1:
    details['processes'] = jax.process_count()
  return provenance.run_context(
    device=jax.devices()[0].device_kind,
    dtype=config.dtype,
    libraries=LIBRARIES,
    details={'model': dataclasses.asdict(config), **details},
  )
