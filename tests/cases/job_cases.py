"""Jobs run in this process, as their mains would, on a task of three words."""

import gin
from fakes.counting_task import bindings_of

from calm_jax.cli import gin_runner


def call(job, files, *, dry_run=False, **bindings):
  """Assembles a job from gin files and bindings, and runs it."""
  gin_runner.parse(
    files, [f'{name} = {value!r}' for name, value in bindings.items()]
  )
  run = gin.get_configurable(f'calm_jax.cli.{job}.run')
  return run(**({'dry_run': True} if dry_run else {}))


def train(files):
  """Trains a model of three layers that has learnt something, in seconds."""
  result = call(
    'train',
    ['runs/train.gin', 'policies/softmax_margin.gin', files['task']],
    **bindings_of(files),
    TRAIN_STEPS=120,
    BATCH_SIZE=32,
    LEARNING_RATE=5e-3,
    DECODE_EVERY=100,
    **{
      'decoding_evaluator.DecodingPlan.max_examples': 8,
      'training.Plan.eval_every': 50,
      'training.warmup_cosine.warmup_steps': 10,
      'data.DataPlan.length_buckets': ((12, 12),),
    },
  )
  assert result.step == 120


def calibrate(files):
  """Calibrates a trained model on two thresholds, and times them."""
  calibrate_again(files, None, TOLERANCE=0.3, TIMED_INPUTS=1)


def calibrate_again(
  trained, folder, policy='policies/softmax_margin.gin', **bindings
):
  """Calibrates into another folder, unless that is None."""
  if folder is not None:
    bindings['OUTPUT_DIR'] = str(folder)
  return call(
    'calibrate',
    ['runs/calibrate.gin', policy, trained['task']],
    **bindings_of(trained),
    **{
      'evaluation.CalibrationPlan.settings': (0.8, 0.4),
      'evaluation.BatchLayout.batch_size': 26,
    },
    **bindings,
  )
