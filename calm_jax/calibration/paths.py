"""Paths through grids of two parameters, for procedures that want an order.

Fixed sequence testing needs its settings in one line from conservative to
aggressive, fixed before any loss is seen. Two parameters make a grid; a path
through it that never turns back is such a line.
"""

from collections.abc import Sequence
from typing import Any, cast

from calm_jax.calibration import inputs


def staircase_path(**parameters: Sequence[Any]) -> list[dict[str, Any]]:
  """Returns settings along a staircase through the grid of two parameters.

  It starts with the first value of both and ends with the last value of both;
  every step moves one of them on by one value, the one that has come less far
  in its list, so that the path stays near the diagonal. So each setting is at
  least as aggressive as the one before it, and A + B - 1 of the A x B settings
  are tested.

  Args:
    **parameters: two lists by name, each from conservative to aggressive. Where
      both could move, the first does.

  Returns:
    Dicts for `calibrate`.

  Raises:
    ValueError: if there are not two lists, one is empty or has a value twice,
      or thresholds do not decrease strictly.

  >>> path = staircase_path(threshold=[0.9, 0.6, 0.3], vocabulary=[800, 90, 20])
  >>> for setting in path:
  ...   print(setting)
  {'threshold': 0.9, 'vocabulary': 800}
  {'threshold': 0.6, 'vocabulary': 800}
  {'threshold': 0.6, 'vocabulary': 90}
  {'threshold': 0.3, 'vocabulary': 90}
  {'threshold': 0.3, 'vocabulary': 20}
  """
  if len(parameters) != 2:
    raise ValueError(
      f'a path goes through a grid of two parameters, not {len(parameters)} '
      f'({", ".join(parameters)})'
    )
  lists = {name: list(values) for name, values in parameters.items()}
  for name, values in lists.items():
    repeated = [v for place, v in enumerate(values) if v in values[:place]]
    if not values or repeated:
      raise ValueError(
        f'{name} must be a list of different values, from conservative to '
        f'aggressive, not {values}'
      )
  # The moves of each parameter, by the share of its list they complete.
  moves = [
    (place / (len(values) - 1), name)
    for name, values in lists.items()
    for place in range(1, len(values))
  ]
  place = dict.fromkeys(lists, 0)
  path = [{name: values[0] for name, values in lists.items()}]
  for _, name in sorted(moves, key=lambda move: move[0]):
    place[name] += 1
    path.append({key: values[place[key]] for key, values in lists.items()})
  # Dicts go in, so dicts come out.
  return cast(list[dict[str, Any]], inputs.check_settings(path))
