"""The rows of a measurement by certificates, and their table."""

import dataclasses
import math
from collections.abc import Sequence

from calm_jax.benchmarks import ablations


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
  shares: ablations.Shares | None
  same_tokens: float


def to_markdown(rows: Sequence[CertifiedRow]) -> str:
  """Returns the table."""
  lines = [
    '| decoding | threshold | batch | depth loop | mean layers | ms per step | '
    'speed-up | ceiling | of it | of the bound | layers, head, checks, fill % '
    '| same tokens % |',
    '|---|--:|--:|---|--:|--:|--:|--:|--:|--:|---|--:|',
  ]
  for row in rows:
    shares = '-'
    if row.shares is not None:
      parts = ('layers', 'head', 'checks', 'fill')
      shares = ' '.join(
        f'{100 * getattr(row.shares, part):.0f}' for part in parts
      )
    cells = (
      row.name,
      _number(row.threshold, 'g'),
      str(row.batch_size),
      row.depth_loop,
      f'{row.mean_exit_layer:.2f}',
      f'{row.milliseconds_per_step:.2f}',
      f'{row.speed_up:.2f}x',
      _number(row.ceiling, '.2f', 'x'),
      _number(row.speed_up / row.ceiling, '.2f'),
      _number(row.of_bound, '.2f'),
      shares,
      f'{100 * row.same_tokens:.1f}',
    )
    lines.append(f'| {" | ".join(cells)} |')
  return '\n'.join(lines)


def _number(value: float, form: str, unit: str = '') -> str:
  return '-' if math.isnan(value) else f'{value:{form}}{unit}'
