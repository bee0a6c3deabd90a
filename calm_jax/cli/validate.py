"""Counts how often the guarantee is broken, on stored loss tables.

  python -m calm_jax.cli.validate --tolerance=0.1,0.25 \
    --table=runs/e2e_nlg/calibration/loss_table.npz

Takes each table for the whole population (its column means are the true risks
then), draws rows with replacement, calibrates on each draw and counts how often
the population risk of the chosen setting is above the tolerance: that share
must not be above --error_rate. Once more with every tolerance set to 0.98 x the
risk of a setting, where it is hardest. Beside it the 80/20 splits of the CALM
paper, whose exceedance is that of a noisy estimate and may be larger.

The tables must be full: calibrate with --gin.FULL_GRID=True. Several tables of
one loss, such as one per confidence measure, make one comparison. Nothing is
decoded; neither JAX nor TensorFlow is needed. Writes validation.json,
validation.md and pictures beside the first table.

A table of a calibration with several promises (--gin.PROMISES) holds several
losses; --promises=textual=0.05,signed=0.02 counts the draws that break any of
them, without splits and pictures.

  python -m calm_jax.cli.validate --tuned=runs/e2e_nlg/tuned

counts instead how often a tuning (calm_jax.cli.tune) breaks what it promised:
on each draw of the rows that screened, all of it is done anew, screening,
ordering, testing and choosing by the times that were measured. Writes
validation.json and validation.md there.
"""

import os
from collections.abc import Sequence

from absl import app, flags

from calm_jax import calibration, records, reporting
from calm_jax.cli import app_runner

_TABLE = flags.DEFINE_multi_string(
  'table',
  None,
  'A full loss table, MODEL_DIR/calibration/loss_table.npz; may be repeated.',
)
_TUNED = flags.DEFINE_string(
  'tuned', None, 'A folder of calm_jax.cli.tune, instead of tables.'
)
_NAME = flags.DEFINE_list(
  'name', None, 'Comma-separated names of the tables, else their measures.'
)
_TOLERANCE = flags.DEFINE_list(
  'tolerance', ['0.1'], 'Comma-separated tolerances, in units of the losses.'
)
_PROMISES = flags.DEFINE_multi_string(
  'promises',
  None,
  'Losses of the tables and their tolerances that are promised together, '
  'textual=0.05,signed=0.02 (textual:rouge_l=0.05 where a loss is there by '
  'several metrics), instead of --tolerance; may be repeated. Any that is '
  'broken is a violation.',
)
_ERROR_RATE = flags.DEFINE_float(
  'error_rate', 0.05, 'How often a certificate may be wrong, in (0, 1).'
)
_P_VALUE = flags.DEFINE_list(
  'p_value',
  None,
  'Comma-separated p-values: betting (the default), hoeffding_bentkus (that of '
  'the paper), exact_binomial (losses of 0 and 1), hoeffding, bentkus. Curves '
  'are drawn of the first.',
)
_PROCEDURE = flags.DEFINE_string(
  'procedure',
  'fixed_sequence',
  'fixed_sequence, fixed_sequence(num_starts=3), bonferroni or holm.',
)
_DRAWS = flags.DEFINE_integer(
  'draws', 1000, 'Calibrations per tolerance; 1000 or more to be reported.', 1
)
_DRAW_SIZE = flags.DEFINE_integer(
  'draw_size', None, 'Rows of a draw; as many as the table has if not given.', 1
)
_SPLITS = flags.DEFINE_integer('splits', 50, 'Random 80/20 splits.', 1)
_CURVE_POINTS = flags.DEFINE_integer(
  'curve_points', 25, 'Tolerances of the curves; 0 for no curves.', 0
)
_CURVE_DRAWS = flags.DEFINE_integer(
  'curve_draws', 200, 'Calibrations per tolerance of the curves.', 1
)
_SEED = flags.DEFINE_integer('seed', 0, 'Of draws and splits.', 0)
_OUTPUT_DIR = flags.DEFINE_string(
  'output_dir', None, "Where to write; the first table's folder if not given."
)


def run(
  tables: Sequence[str],
  plan: calibration.ValidationPlan,
  *,
  names: Sequence[str] | None = None,
  output_dir: str | None = None,
) -> records.Validation:
  """Counts violations on loss tables, and writes what it found.

  Args:
    tables: paths of full loss tables of one loss.
    plan: how they are counted.
    names: what to call the tables; their confidence measures if None.
    output_dir: the folder of the first table if None.

  Raises:
    FileNotFoundError: if a table is not there.
    ValueError: for tables that are not full, too small, out of range or of
      different losses, or for numbers and names that are none.
  """
  loaded = calibration.load_loss_tables(tables, names=names, say=_say)
  validation = calibration.validate(loaded, plan, say=_say)
  _write(output_dir or os.path.dirname(loaded[0].path) or '.', validation)
  return validation


def run_tuned(
  folder: str,
  *,
  num_draws: int,
  draw_size: int | None = None,
  seed: int = 0,
  output_dir: str | None = None,
) -> records.TunedValidation:
  """Counts how often a tuning breaks its promises, and writes what it found.

  Args:
    folder: what calm_jax.cli.tune wrote.
    num_draws: tunings per count.
    draw_size: rows of a draw, both halves; as many as that tuning had if None.
    seed: of the draws.
    output_dir: the folder itself if None.

  Raises:
    FileNotFoundError: if there is no tuning.
    ValueError: if it is none, or of too few rows.
  """
  found = calibration.validate_tuning(
    folder, num_draws=num_draws, draw_size=draw_size, seed=seed, say=_say
  )
  output_dir = output_dir or folder
  text = reporting.render_tuned_validation(found)
  records.write_json(os.path.join(output_dir, 'validation.json'), found)
  records.write_text(os.path.join(output_dir, 'validation.md'), text + '\n')
  _say(f'\n{text}\nwritten to {output_dir}: validation.json, validation.md')
  return found


def _write(folder: str, validation: records.Validation) -> None:
  """Writes the counts, their tables and pictures, and prints the tables."""

  def place(name):
    return os.path.join(folder, name)

  records.write_json(place('validation.json'), validation)
  records.write_text(
    place('validation.md'), reporting.render_validation_markdown(validation)
  )
  figures = {}
  if not reporting.is_joint(validation):
    figures['violations.png'] = reporting.violation_figure
  if validation.tables[0].curve is not None:
    figures['risk_by_tolerance.png'] = reporting.risk_figure
    figures['layers_by_tolerance.png'] = reporting.depth_figure
  if reporting.is_timed(validation):
    figures['speed_by_tolerance.png'] = reporting.speed_figure
  for name, draw in figures.items():
    reporting.save_figure(draw(validation), place(name))
  names = ', '.join(['validation.json', 'validation.md', *figures])
  _say(
    f'\n{reporting.render_validation_text(validation)}\nwritten to {folder}: '
    f'{names}'
  )


def _numbers(texts: Sequence[str]) -> list[float]:
  """Returns the tolerances that a flag lists."""
  try:
    return [float(text) for text in texts]
  except ValueError as error:
    raise ValueError(
      f'--tolerance={",".join(texts)} is no list of numbers ({error}); write '
      'for example --tolerance=0.1,0.25'
    ) from None


def _promises(texts: Sequence[str]) -> list[list[tuple]]:
  """Returns the sets of promises that flags list.

  >>> _promises(['textual=0.05,signed:chrf=0.02'])
  [[('textual', 0.05), ('signed', 0.02, 'chrf')]]
  """
  return [[_promise(one, text) for one in text.split(',')] for text in texts]


def _promise(text: str, whole: str) -> tuple:
  name, _, number = text.strip().rpartition('=')
  # The metric may be a function of one's own, module:name.
  loss, _, metric = name.partition(':')
  try:
    if not loss:
      raise ValueError(f'{text!r} names no loss')
    return (loss, float(number), *([metric] if metric else []))
  except ValueError as error:
    raise ValueError(
      f'--promises={whole} is no list of losses with their tolerances '
      f'({error}); write for example --promises=textual=0.05,signed=0.02'
    ) from None


def _tolerances() -> dict[str, list]:
  """Returns the tolerances or the promises of the flags.

  Raises:
    ValueError: for both.
  """
  if not _PROMISES.value:
    return {'tolerances': _numbers(_TOLERANCE.value)}
  if _TOLERANCE.present:
    raise ValueError(
      '--promises and --tolerance are both given; promises have tolerances of '
      'their own'
    )
  return {'promises': _promises(_PROMISES.value)}


def _say(line: str) -> None:
  print(line, flush=True)


def main(argv):
  """Runs the job that the flags describe."""
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}; use --table=FILE')
  with app_runner.in_one_line('validate'):
    if bool(_TABLE.value) == bool(_TUNED.value):
      raise ValueError('give --table=FILE, or --tuned=FOLDER for a tuning')
    if _TUNED.value:
      run_tuned(
        app_runner.path(_TUNED),
        num_draws=_DRAWS.value,
        draw_size=_DRAW_SIZE.value,
        seed=_SEED.value,
        output_dir=app_runner.path(_OUTPUT_DIR),
      )
      return
    run(
      app_runner.path(_TABLE),
      calibration.ValidationPlan(
        **_tolerances(),
        error_rate=_ERROR_RATE.value,
        p_values=_P_VALUE.value,
        procedure=_PROCEDURE.value,
        num_draws=_DRAWS.value,
        draw_size=_DRAW_SIZE.value,
        num_splits=_SPLITS.value,
        curve_points=_CURVE_POINTS.value,
        curve_draws=_CURVE_DRAWS.value,
        seed=_SEED.value,
      ),
      names=_NAME.value,
      output_dir=app_runner.path(_OUTPUT_DIR),
    )


if __name__ == '__main__':
  app_runner.run(main)
