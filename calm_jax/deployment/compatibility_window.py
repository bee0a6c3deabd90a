"""Until when a program can be read: six months from the build of its jax.

`jax.export` promises that a jax built up to six months after the one that wrote
a program reads it. A jax does not say when it was built, so the days of known
releases are listed; for others the day of writing is the latest it can be.
"""

import datetime
from collections.abc import Mapping

import jax

# When releases of jax came out; add those that programs are written with.
_RELEASED = {'0.10.2': datetime.date(2026, 6, 17)}
_MONTHS = 6


def end_of_window(jax_version: str, written: datetime.date) -> datetime.date:
  """Returns the last day whose jax is promised to read a program.

  For a jax that is not known, the day at the latest.

  Args:
    jax_version: that wrote it.
    written: when.

  >>> end_of_window('0.10.2', datetime.date(2026, 11, 29))
  datetime.date(2026, 12, 17)
  """
  built = _RELEASED.get(jax_version, written)
  month = built.month - 1 + _MONTHS
  year, month = built.year + month // 12, month % 12 + 1
  # The 31st of a month of thirty days is the next one's first.
  first = datetime.date(year, month, 1)
  return first + datetime.timedelta(days=built.day - 1)


def window_of(
  versions: Mapping[str, str], created: str
) -> tuple[str, datetime.date]:
  """Returns the jax that wrote a program, and the end of its window.

  Args:
    versions: of a manifest.
    created: of a manifest.
  """
  version = versions.get('jax', 'of an unknown version')
  written = datetime.datetime.fromisoformat(created).date()
  return version, end_of_window(version, written)


def past_window(
  versions: Mapping[str, str],
  created: str,
  *,
  today: datetime.date | None = None,
) -> str | None:
  """Says that a program is past its window; None if it is not.

  The jax that wrote it reads it whatever the day.

  Args:
    versions: of a manifest.
    created: of a manifest.
    today: the day.
  """
  today = datetime.date.today() if today is None else today
  version, end = window_of(versions, created)
  if version == jax.__version__ or today <= end:
    return None
  return (
    f'written by jax {version}, and jax promised to read it until {end}: a '
    'newer one may refuse it, or run it wrongly. Export the run again; the jax '
    'that wrote it reads it, and JAX_EXPORT_DESERIALIZE_EXPIRED_VERSIONS=1 '
    'tries it without the promise'
  )
