"""The table of token controllers."""

import math

from calm_jax.benchmarks import measured_rows
from calm_jax.reporting import tables


def table(measured: measured_rows.Measured) -> tables.Table:
  """Returns the table of a run, losses in nats per label."""
  flags, details = measured.flags, measured.context.details
  return tables.Table(
    header=(
      'run',
      'layers',
      'first',
      'evenly',
      'random',
      'picked',
      'fixed control',
      'controller',
      'its layers',
      'gain of the state',
    ),
    rows=tuple(
      (
        row.run,
        f'{row.budget:g}',
        f'{row.early_exit:.3f}',
        f'{row.uniform:.3f}',
        '{:.3f} ({:.3f}-{:.3f})'.format(*(row.random[at] for at in (1, 0, 2))),
        f'{row.picked:.3f}',
        _spread(row.fixed, row.fixed_spread),
        _spread(row.controller, row.controller_spread),
        f'{row.controller_layers:.2f}',
        f'{row.gain:+.4f} ± {row.gain_error:.4f}',
      )
      for row in measured.rows
    ),
    notes=(
      f'losses are nats per label, of {details["num_tokens"]} labels in '
      f'{flags["num_inputs"]} rows that nothing was trained or chosen on; with '
      f"all layers the model's is {measured.rows[0].full:.3f}. Layers: of a "
      'token, on the mean.',
      f'first, evenly, random ({flags["random_routes"]} of them: their median, '
      'and 5 to 95 %): the same layers for all tokens. Picked: the best of '
      f'these on {flags["num_seen"]} training rows. Controller: layers chosen '
      'for each token by its state, at the price of the budget on these rows; '
      'fixed control: trained likewise, without the state, so that it comes to '
      f'one route. Both: mean ± standard deviation of {flags["num_seeds"]} '
      f'seeds, {flags["steps"]} steps each.',
      'gain of the state: of the controller over the fixed control, ± its '
      'standard error over rows.',
    ),
  )


def _spread(mean: float, spread: float) -> str:
  return f'{mean:.3f}' + ('' if math.isnan(spread) else f' ± {spread:.3f}')
