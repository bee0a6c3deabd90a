"""The table of exits of an encoder's classifier."""

import dataclasses

from calm_jax.benchmarks import measured_rows
from calm_jax.reporting import tables

# What the rule of a certified row begins with; what is promised follows.
CERTIFIED = 'certified: '
# The setting of a certificate that certifies nothing.
NOTHING = 'nothing certified'


@dataclasses.dataclass(frozen=True)
class EncoderExitRow:
  """One exit rule at one setting, on the inputs of a token file.

  Attributes:
    run: the run, in words.
    rule: the rule's name.
    setting: its setting, in words.
    accuracy: the share of inputs that are classified rightly.
    agreement: the share that are as the last layer's head says.
    mean_layers: encoder layers used, 1..L.
    milliseconds: of a batch, from ids to classes, by the fastest loop, for each
      of the batch sizes; NaN where it was not timed.
    loops: the names of these loops, '' where not timed.
  """

  run: str
  rule: str
  setting: str
  accuracy: float
  agreement: float
  mean_layers: float
  milliseconds: tuple[float, ...]
  loops: tuple[str, ...]


def times_of(row: EncoderExitRow, full: EncoderExitRow) -> list[str]:
  """Returns its times in words, with speed-ups over the full encoder."""
  return [
    f'{mine:.2f} ({theirs / mine:.2f}x)' if mine == mine else '-'
    for mine, theirs in zip(row.milliseconds, full.milliseconds, strict=True)
  ]


def table(measured: measured_rows.Measured) -> tables.Table:
  """Returns the table of a run; speed-ups are over its first row."""
  sizes = measured.flags['batch_sizes']
  full = measured.rows[0]
  return tables.Table(
    header=(
      'run',
      'exit rule',
      'setting',
      'accuracy %',
      'as the last layer %',
      'mean layers',
      *(f'ms at batch {size}' for size in sizes),
    ),
    rows=tuple(
      (
        row.run,
        row.rule,
        row.setting,
        f'{100 * row.accuracy:.1f}',
        f'{100 * row.agreement:.1f}',
        f'{row.mean_layers:.2f}',
        *times_of(row, full),
      )
      for row in measured.rows
    ),
    notes=(
      f'{measured.context.details["num_inputs"]:,} inputs of '
      f'{measured.context.details["num_classes"]} classes, '
      f'{measured.context.details["num_layers"]} encoder layers.',
      'ms: of a batch, ids to classes, the median of turns on the same inputs, '
      'by the fastest loop; the speed-up is over the full encoder with the '
      f'head of its last layer. {measured.machine}.',
    ),
  )
