"""The rows of a measurement by certificates, and their table."""

import dataclasses
import math

from calm_jax import records
from calm_jax.benchmarks.measured_rows import Measured
from calm_jax.benchmarks.shares import Shares
from calm_jax.reporting import tables


@dataclasses.dataclass(frozen=True)
class CertifiedRow:
  """One way of decoding at one batch size.

  Attributes:
    name: measure, readout and fill; or a peer.
    threshold: the certified one; NaN where there is none.
    batch_size: B.
    depth_loop: the fastest one, '-' for peers.
    mean_exit_layer: layers per token.
    milliseconds_per_step: wall clock of a step of the token loop with its share
      of what is done once per batch.
    speed_up: over our fastest full decode.
    ceiling: the most that memory traffic allows; NaN for peers.
    of_bound: the time without its start over what its memory traffic alone
      takes at the bandwidth measured in the same run; NaN for peers.
    shares: where the time goes; None for peers.
    same_tokens: share of tokens that the full model decodes too.
    loss: what the certificate bounds: 'textual', 'risk' or 'signed'; '' where
      there is no certificate.
    tolerance: what the expected loss is at most; NaN without a certificate.
    error_rate: how likely the certificate may be wrong; NaN without one.
    promises: where it bounds several losses together; loss and tolerance are
      those of the first.
  """

  name: str
  threshold: float
  batch_size: int
  depth_loop: str
  mean_exit_layer: float
  milliseconds_per_step: float
  speed_up: float
  ceiling: float
  of_bound: float
  shares: Shares | None
  same_tokens: float
  loss: str = ''
  tolerance: float = math.nan
  error_rate: float = math.nan
  promises: tuple[records.PromisedLoss, ...] = ()


def name_with_tolerance(row: CertifiedRow) -> str:
  """Returns the row's name, with what its certificate tolerates, if any."""
  if math.isnan(row.tolerance):
    return row.name
  if not row.promises:
    return f'{row.name}, tolerance {row.tolerance:g}'
  bounds = [f'{one.loss} {one.tolerance:g}' for one in row.promises]
  return f'{row.name}, tolerances {" and ".join(bounds)}'


def table(*measured: Measured) -> tables.Table:
  """Returns the table of one or several runs."""
  return tables.Table(
    header=(
      'decoding',
      'threshold',
      'batch',
      'depth loop',
      'mean layers',
      'ms per step',
      'speed-up',
      'ceiling',
      'of the bound',
      'layers, head, checks, fill %',
      'same tokens %',
    ),
    rows=tuple(_cells(row) for one in measured for row in one.rows),
    notes=(
      'ms per step: wall clock of a step of the token loop with its share of '
      f'what is done once per batch, on {measured[0].machine}; '
      + ', '.join(dict.fromkeys(map(_inputs, measured)))
      + f', median of {measured[0].flags["num_repeats"]} turns.',
      f'{tables.SPEED_UP_NOTE}; ceiling: what memory traffic allows.',
      'of the bound: the time without its start over what its memory traffic '
      'alone takes at the bandwidth measured in the same run.',
      'layers, head, checks, fill: where the time goes, by what leaving a part '
      'out at the same depths saves; as differences of measurements they may '
      'fall below 0.',
      "same tokens: the full model's tokens that are decoded, too.",
    ),
  )


def _inputs(measured: Measured) -> str:
  flags = measured.flags
  sizes = flags['batch_sizes'].replace(',', ' and ')
  return f'{flags["num_inputs"]} inputs at batch {sizes}'


def _cells(row: CertifiedRow) -> tuple[str, ...]:
  shares = '-'
  if row.shares is not None:
    parts = ('layers', 'head', 'checks', 'fill')
    shares = ' '.join(
      str(round(100 * getattr(row.shares, part))) for part in parts
    )
  return (
    row.name,
    _number(row.threshold, 'g'),
    str(row.batch_size),
    row.depth_loop,
    f'{row.mean_exit_layer:.2f}',
    f'{row.milliseconds_per_step:.2f}',
    f'{row.speed_up:.2f}x',
    _number(row.ceiling, '.2f', 'x'),
    _number(row.of_bound, '.2f'),
    shares,
    f'{100 * row.same_tokens:.1f}',
  )


def _number(value: float, form: str, unit: str = '') -> str:
  return '-' if math.isnan(value) else f'{value:{form}}{unit}'
