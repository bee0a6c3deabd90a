"""How fast each setting of a grid decodes, beside its loss table."""

import dataclasses
import os
from typing import Any

from calm_jax.records.evaluations import RunContext, TimingRow
from calm_jax.records.json_files import FORMAT_VERSION, read_record

SETTING_SPEEDS_NAME = 'setting_speeds.json'
# What a speed depends on besides the setting.
_SHARED = ('parameters', 'policy', 'max_length', 'dtype', 'backend')


@dataclasses.dataclass(frozen=True)
class SettingSpeeds:
  """Wall clock of every setting of a grid, all measured in one run.

  Attributes:
    settings: J settings.
    full: the full model without any checks, which speed-ups are held against.
    timings: J rows, one per setting.
    fingerprint: what the losses of the table depend on besides the setting.
    context: how all this was obtained.
    format_version: of this schema.
  """

  settings: tuple[Any, ...]
  full: TimingRow
  timings: tuple[TimingRow, ...]
  fingerprint: dict[str, Any]
  context: RunContext
  format_version: int = FORMAT_VERSION

  @property
  def speed_ups(self) -> tuple[float, ...]:
    """How many times faster than the full model each setting is."""
    return tuple(row.speed_up for row in self.timings)


def find_setting_speeds(
  table_path: str | os.PathLike, settings, fingerprint: dict[str, Any]
) -> SettingSpeeds | None:
  """Returns the speeds that lie beside a loss table, None if there are none.

  Args:
    table_path: the loss table's path.
    settings: its settings.
    fingerprint: its fingerprint.

  Raises:
    ValueError: if they are of another model, policy, grid or machine kind.
  """
  path = os.path.join(os.path.dirname(table_path), SETTING_SPEEDS_NAME)
  if not os.path.exists(path):
    return None
  speeds = read_record(path, SettingSpeeds)
  differing = [
    name
    for name in _SHARED
    if speeds.fingerprint.get(name) != fingerprint.get(name)
  ]
  if tuple(speeds.settings) != tuple(settings):
    differing.append('settings')
  if differing:
    raise ValueError(
      f'{path} was measured with other {", ".join(differing)} than '
      f'{os.fspath(table_path)} was made with; calibrate with '
      '--gin.TIMED_INPUTS=8 again, or delete it'
    )
  return speeds
