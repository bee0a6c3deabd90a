"""The arena of classifiers: what is certified of encoder exits, and timed."""

from calm_jax.benchmarks import measured_rows
from calm_jax.benchmarks.encoder_exits_table import times_of
from calm_jax.records import CERTIFIED, NOTHING, EncoderExitRow
from calm_jax.reporting import tables


def table(*measured: measured_rows.Measured) -> tables.Table:
  """Returns full encoders and what was certified of them, run by run.

  Args:
    *measured: what `encoder_exits` measured, the same batch sizes each.

  Raises:
    ValueError: if batch sizes differ.
  """
  sizes = measured[0].flags['batch_sizes']
  for one in measured:
    if one.flags['batch_sizes'] != sizes:
      raise ValueError(
        f'batch sizes are {sizes} and {one.flags["batch_sizes"]}; measure '
        'them with the same --batch_sizes'
      )
  return tables.Table(
    header=(
      'model',
      'classified by',
      'promised',
      'kept here',
      'disagreement %',
      'accuracy %',
      'encoder layers',
      *(f'ms at batch {size}' for size in sizes),
    ),
    rows=tuple(
      _line(row, one.rows[0])
      for one in measured
      for row in one.rows
      if row is one.rows[0] or row.certified
    ),
    notes=(
      'promised: the mean loss is at most this, but for a probability of the '
      'certificate; textual: the class is another one than the last layer '
      'says, signed: accuracy lost. Kept here: whether it is so on these '
      'inputs.',
      f'ms: of a batch, from ids to classes; {measured[0].machine}.',
    ),
  )


def _line(row: EncoderExitRow, full: EncoderExitRow) -> tuple[str, ...]:
  certified = row.certified
  # What certifies nothing promises nothing, whatever it was asked for.
  promises = certified and row.setting != NOTHING
  promised = row.rule.removeprefix(CERTIFIED) if promises else ''
  return (
    row.run,
    row.said if certified else row.rule,
    promised or '-',
    ('yes' if _kept(row, full, promised) else 'NO') if promises else '-',
    f'{100 * (1 - row.agreement):.1f}',
    f'{100 * row.accuracy:.1f}',
    f'{row.mean_layers:.2f}',
    *times_of(row, full),
  )


def _kept(row: EncoderExitRow, full: EncoderExitRow, promised: str) -> bool:
  """Whether every promise, 'textual 0.02' or several by commas, is kept."""
  found = {
    'textual': 1 - row.agreement,
    'signed': full.accuracy - row.accuracy,
  }
  pairs = (one.split(' ') for one in promised.split(', '))
  return all(found[loss] <= float(tolerance) for loss, tolerance in pairs)
