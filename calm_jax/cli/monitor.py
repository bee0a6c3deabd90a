r"""Says whether a certificate still holds, from rows that `generate` wrote.

  python -m calm_jax.cli.generate --gin_file=runs/generate.gin \
    --gin_file=policies/softmax_margin.gin --gin.MODEL_DIR=runs/e2e_nlg \
    --gin.INPUT_FILE=monday.jsonl --gin.OUTPUT_FILE=monday.rows.jsonl \
    --gin.AUDIT=0.05
  python -m calm_jax.cli.monitor --model_dir=runs/e2e_nlg \
    --rows=monday.rows.jsonl

With AUDIT, generate decodes a random fraction of the lines at full depth as
well and writes how far the early text is from that. Here these losses are bet
on: as long as what is to be expected of the next audit, whatever came before,
is what was certified, the probability that an alarm is ever raised is at most
--false_alarms, however often one looks; once it is not, the alarm comes after
some dozens to hundreds of audits. Jobs of generate that start then decode at
full depth with this certificate, until --reset. Lines that are sorted by topic
or difficulty are not alike all along: shuffle them.

Files are read in the order given, each row once: those that grew are read on,
and a last line that is not whole yet is left for the next time. What was seen
is kept beside the certificate, in monitor.json. Nothing is decoded; neither JAX
nor TensorFlow is needed.

Exit code: 0 without an alarm, 3 with one (of now or of before), 1 where
something cannot be read.
"""

import os
from collections.abc import Sequence

from absl import app, flags

from calm_jax import calibration, records
from calm_jax.calibration.loss_watch import GUARANTEES
from calm_jax.cli import app_runner
from calm_jax.processes.file_locks import FileLock

ALARM = 3

_MODEL_DIR = flags.DEFINE_string(
  'model_dir', None, 'The run directory, MODEL_DIR of the jobs.'
)
_CERTIFICATE = flags.DEFINE_string(
  'certificate',
  None,
  'The certificate; MODEL_DIR/calibration/certificate.json if not given.',
)
_ROWS = flags.DEFINE_multi_string(
  'rows', [], 'A file that generate wrote with AUDIT; may be repeated.'
)
_STATE = flags.DEFINE_string(
  'state',
  None,
  'What was seen so far; monitor.json beside the certificate if not given, the '
  'only one by which generate stops early exits.',
)
_FALSE_ALARMS = flags.DEFINE_float(
  'false_alarms',
  None,
  'How likely a false alarm may be, in (0, 1); as before, or 0.01, if not '
  'given.',
)
_GUARANTEE = flags.DEFINE_enum(
  'guarantee',
  None,
  GUARANTEES,
  'ever: the error rate is the probability of a false alarm, ever. on_average: '
  'one over the mean number of audits before one, which finds changes sooner '
  'after a long time. As before, or ever, if not given.',
)
_METRIC = flags.DEFINE_string(
  'metric', None, 'Which textual loss, where the certificate has several.'
)
_RESET = flags.DEFINE_bool(
  'reset', False, 'Take the alarm back, keep it on record, and begin anew.'
)


def run(
  certificate: str,
  *,
  rows: Sequence[str] = (),
  state: str | None = None,
  error_rate: float | None = None,
  guarantee: str | None = None,
  metric: str | None = None,
  reset: bool = False,
) -> bool:
  """Reads rows, says what they say, and returns whether there is an alarm.

  Args:
    certificate: path of the certificate that they were decoded under.
    rows: files that generate wrote, in the order in which they were served.
    state: what was seen so far; monitor.json beside the certificate if None.
    error_rate: see `calibration.LossWatch`; as before, or 0.01, if None.
    guarantee: the same; as before, or 'ever', if None.
    metric: which textual loss, where the certificate has several.
    reset: begin anew after an alarm, before rows are read.

  Raises:
    FileNotFoundError: if a file is not there.
    ValueError: if a file is not what it should be, or the state is of another
      certificate or of other numbers. What was read before is kept then.
  """
  if not os.path.exists(certificate):
    raise FileNotFoundError(
      f'there is no certificate {certificate}; calm_jax.cli.calibrate writes '
      'one'
    )
  found = calibration.Certificate.load(certificate)
  if state is None:
    folder = os.path.dirname(certificate)
    state = os.path.join(folder, records.MONITOR_NAME)
  lock = FileLock(state, '--state')
  try:
    monitor = calibration.RiskMonitor(
      found,
      state,
      error_rate=error_rate,
      guarantee=guarantee,
      metric=metric,
    )
    if reset:
      monitor.reset()
    for path in rows:
      _read(monitor, path)
  finally:
    lock.release()
  _say(monitor.describe())
  return monitor.alarm is not None


def _read(monitor: calibration.RiskMonitor, path: str) -> None:
  """Reads on in a file of rows, and says what is new in it."""
  new = records.read_new_rows(path, monitor.state.files)
  for number, audit in new.audits.items():
    where = f'{path} line {new.read.rows - new.rows + number + 1}'
    monitor.check(audit, where=where)
  monitor.observe(
    {number: audit.value for number, audit in new.audits.items()},
    served=new.rows,
    files=[new.read],
  )
  cut = '; its last line is not whole yet' if new.is_cut else ''
  _say(
    f'{path}: {new.rows:,} new rows, {len(new.audits):,} of them audited{cut}'
  )


def _say(line: str) -> None:
  print(line, flush=True)


def _certificate() -> str:
  """Returns the path of the certificate that flags name."""
  if (path := app_runner.path(_CERTIFICATE)) is not None:
    return path
  if (model_dir := app_runner.path(_MODEL_DIR)) is None:
    raise app.UsageError('give --model_dir=DIR, or --certificate=FILE')
  return os.path.join(model_dir, 'calibration', 'certificate.json')


def main(argv):
  """Runs the job that the flags describe; returns the exit code."""
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}; use --rows=FILE')
  certificate = _certificate()
  with app_runner.in_one_line('monitor'):
    alarm = run(
      certificate,
      rows=app_runner.path(_ROWS),
      state=app_runner.path(_STATE),
      error_rate=_FALSE_ALARMS.value,
      guarantee=_GUARANTEE.value,
      metric=_METRIC.value,
      reset=_RESET.value,
    )
  return ALARM if alarm else 0


if __name__ == '__main__':
  app_runner.run(main)
