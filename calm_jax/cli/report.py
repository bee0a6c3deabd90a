"""Makes one HTML page of what a run directory holds.

  python -m calm_jax.cli.report --run_dir=runs/e2e_nlg

Reads the evaluation (MODEL_DIR/evaluation/result.json) and, if it was counted
how often the guarantee is broken, the validation
(MODEL_DIR/calibration/validation.json), and writes MODEL_DIR/report.html: the
certificate in words, curves, the table, wall clock, and outputs whose tokens
are coloured by their exit layer, worst first. The page needs nothing but
itself: no network, no other file. Nothing is computed; neither JAX nor
TensorFlow is needed.

  python -m calm_jax.cli.report --run_dir=runs/e2e_nlg \
    --picture=early_exit.png --samples=7,9

also draws some of these outputs, counted from 1, for places that take pictures
only; all of them if not said which.
"""

import os
from collections.abc import Sequence

from absl import app, flags

from calm_jax import records, reporting
from calm_jax.cli import app_runner

_RUN_DIR = flags.DEFINE_string(
  'run_dir', None, 'The run directory, MODEL_DIR of the jobs.', required=True
)
_EVALUATION = flags.DEFINE_string(
  'evaluation', None, 'RUN_DIR/evaluation/result.json if not given.'
)
_VALIDATION = flags.DEFINE_string(
  'validation',
  None,
  'RUN_DIR/calibration/validation.json, if it is there, when not given.',
)
_OUTPUT = flags.DEFINE_string(
  'output', None, 'The page; RUN_DIR/report.html if not given.'
)
_PICTURE = flags.DEFINE_string(
  'picture', None, 'A picture of outputs to write as well: .png, .svg or .pdf.'
)
_SAMPLES = flags.DEFINE_list(
  'samples', None, 'The outputs in --picture, as the page orders them, from 1.'
)


def run(
  run_dir: str,
  *,
  evaluation: str | None = None,
  validation: str | None = None,
  output: str | None = None,
  picture: str | None = None,
  samples: Sequence[int] | None = None,
) -> str:
  """Writes the page of a run and returns its path.

  Args:
    run_dir: the run directory.
    evaluation: result.json of calm_jax.cli.evaluate; that of the run if None.
    validation: validation.json of calm_jax.cli.validate; that of the run, if
      there is one, if None.
    output: RUN_DIR/report.html if None.
    picture: where to draw outputs token by token, nowhere if None.
    samples: which of the evaluation's samples to draw, in 1..their number; all
      if None.

  Raises:
    FileNotFoundError: if a file is missing, naming the job that writes it.
    ValueError: if a file is not what that job writes, or has no such sample.
  """
  result = _read(
    evaluation or os.path.join(run_dir, 'evaluation', 'result.json'),
    records.EvaluationResult,
    'evaluation',
    f'calm_jax.cli.evaluate with --gin.MODEL_DIR={run_dir}',
  )
  path = validation or os.path.join(run_dir, 'calibration', 'validation.json')
  counted = None
  if validation or os.path.exists(path):
    counted = _read(
      path, records.Validation, 'validation', 'calm_jax.cli.validate'
    )
  output = output or os.path.join(run_dir, 'report.html')
  if picture:
    _draw(picture, result, samples)
  reporting.write_page(output, result, counted)
  print(f'report: {output}', flush=True)
  if counted is None:
    print(
      f'(without violation rates: there is no {path}; calm_jax.cli.validate '
      'counts them from a full loss table)',
      flush=True,
    )
  return output


def _draw(
  path: str, result: records.EvaluationResult, samples: Sequence[int] | None
) -> None:
  """Draws outputs of an evaluation, token by token."""
  count = len(result.samples)
  numbers = range(1, count + 1) if samples is None else samples
  for number in numbers:
    if not 1 <= number <= count:
      raise ValueError(
        f'there is no sample {number}: the evaluation has 1 to {count}'
      )
  figure = reporting.token_figure(
    [result.samples[number - 1] for number in numbers],
    num_layers=result.num_layers,
  )
  reporting.save_figure(figure, path, dpi=120)
  print(f'picture: {path}', flush=True)


def _read(path: str, kind: type, name: str, job: str):
  """Reads a record, or says which job writes it."""
  if not os.path.exists(path):
    raise FileNotFoundError(f'there is no {name} at {path}; {job} writes it')
  try:
    return records.read_record(path, kind)
  except ValueError as error:
    raise ValueError(f'{error} {job} writes such a file.') from None


def main(argv):
  """Runs the job that the flags describe."""
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}; use --run_dir=DIR')
  with app_runner.in_one_line('report'):
    run(
      app_runner.path(_RUN_DIR),
      evaluation=app_runner.path(_EVALUATION),
      validation=app_runner.path(_VALIDATION),
      output=app_runner.path(_OUTPUT),
      picture=app_runner.path(_PICTURE),
      samples=_SAMPLES.value and [int(number) for number in _SAMPLES.value],
    )


if __name__ == '__main__':
  app_runner.run(main)
