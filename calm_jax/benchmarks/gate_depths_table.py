"""How early gates let tokens go, from what `train_gates` measured."""

from collections.abc import Mapping

from calm_jax import records
from calm_jax.reporting import tables

_MARGIN = 'softmax margin'


def table(gates: Mapping[str, records.GateEvaluation]) -> tables.Table:
  """Returns a row per gate, the margin and the oracle of its tokens beside it.

  Args:
    gates: what to call a gate -> its evaluation; all at the same shares of
      tokens that may differ.
  """
  first = next(iter(gates.values()))
  allowed = tuple(one.allowed for one in first.depths if one.measure == 'gate')
  return tables.Table(
    header=(
      'gate',
      *(f'at {100 * share:g} %' for share in allowed),
      *(f'{_MARGIN} at {100 * share:g} %' for share in allowed),
      'first layer that agrees',
      'from which on all agree',
      'of layers',
    ),
    rows=tuple(
      (
        name,
        *_depths(one, 'gate'),
        *_depths(one, _MARGIN),
        f'{one.first_agreeing:.2f}',
        f'{one.settled:.2f}',
        str(one.num_layers),
      )
      for name, one in gates.items()
    ),
  )


def _depths(gate: records.GateEvaluation, measure: str) -> tuple[str, ...]:
  """Returns the mean exit layers by a measure, a share after the other."""
  return tuple(
    f'{one.mean_exit_layer:.2f}'
    for one in gate.depths
    if one.measure == measure
  )
