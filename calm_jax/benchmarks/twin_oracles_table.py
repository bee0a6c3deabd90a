"""The table of oracles over patterns of feed-forwards."""

import math

from calm_jax.benchmarks import measured_rows
from calm_jax.reporting import tables


def table(measured: measured_rows.Measured) -> tables.Table:
  """Returns the table of a run, losses in nats per token."""
  details = measured.context.details
  routed = not any(math.isnan(row.router) for row in measured.rows)
  return tables.Table(
    header=(
      'run',
      'blocks',
      'best single',
      'pattern',
      'blind mix',
      *(['router'] if routed else []),
      'oracle',
      'gain',
      'on permuted labels',
      'dealt out',
    ),
    rows=tuple(
      (
        row.run,
        f'{row.budget:g}',
        f'{-row.single:.3f}',
        ''.join(map(str, row.pattern)),
        f'{-row.mix:.3f}',
        *([f'{-row.router:.3f}'] if routed else []),
        f'{-row.oracle:.3f}',
        f'{row.gain:.3f}',
        f'{row.permuted_gain:.3f}',
        f'{row.luck:.3f}',
      )
      for row in measured.rows
    ),
    notes=(
      'blocks: the budget of a token, on the mean, in feed-forward blocks of '
      f'the model; a twin of {details["twin_units"]} hidden units is '
      f'{details["twin_units"] / details["own_units"]:.3f} of one. Losses are '
      f'in nats per token, over {measured.flags["num_tokens"]} tokens and '
      f"{details['num_patterns']} patterns; the model's own is "
      f'{-measured.rows[0].full:.3f}.',
      'pattern: for each layer 0 no feed-forward, 1 its own, 2 its twin. Best '
      'single: the one that is best for all tokens together; blind mix: '
      'likewise the best two; oracle: the best for each token by its label.'
      + ' Router: a trained one, which sees no label.'
      * routed,
      'gain: of the oracle over the mix; on permuted labels: the same where '
      'each token has the label of another, and no pattern can know it; dealt '
      'out: the same after what patterns are to single tokens was dealt out to '
      'others. Both are gains by luck.',
    ),
  )
