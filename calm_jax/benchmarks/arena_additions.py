"""Rows of the arena that are measured later than the others of their file."""

import dataclasses
import os

from calm_jax.benchmarks.measured_rows import Measured

# What both have to have decoded.
_SAME_FLAGS = ('tokens', 'num_inputs', 'max_length', 'metric')


def check_same_inputs(
  before: Measured, flags: dict[str, object], title: str, *, path: str
) -> None:
  """Checks that new rows would be of the model and inputs of the old ones.

  Args:
    before: what was measured.
    flags: the new command line.
    title: what it calls the model.
    path: the file of `before`, for the message.

  Raises:
    ValueError: if not, naming what differs.
  """
  old = {name: before.flags.get(name) for name in _SAME_FLAGS}
  new = {name: flags[name] for name in _SAME_FLAGS}
  # A title is only what a table calls it.
  if before.flags.get('run_dir') is not None:
    for one, found in ((old, before.flags), (new, flags)):
      one['run_dir'] = os.path.realpath(str(found['run_dir']))
  old['title'] = before.rows[0].run if before.rows else None
  new['title'] = title
  differing = [
    f'--{name} was {old[name]} and is {new[name]}'
    for name in old
    if old[name] != new[name]
  ]
  if differing:
    raise ValueError(
      f'{path} was measured otherwise: {", ".join(differing)}; give the same, '
      'or --output instead of --add_to'
    )


def added(before: Measured, new: Measured, *, path: str) -> Measured:
  """Returns what was measured with the rows that were measured later.

  A row of a name that is there takes its place, but for the full model, which
  was measured again only for the speed-ups of the others. The command of the
  new rows is kept in `details['added']`.

  Raises:
    ValueError: if they were measured on another machine.
  """
  if before.machine != new.machine:
    raise ValueError(
      f'{path} was measured on {before.machine}, and this is {new.machine}; '
      'give --output instead of --add_to'
    )
  full, *later = new.rows
  rows = {row.name: row for row in before.rows}
  rows.update((row.name, row) for row in later if row.name != full.name)
  context = before.context
  note = {
    'command': new.context.command,
    'created': new.context.created,
    'versions': new.context.versions,
    'rows': [row.name for row in later],
  }
  details = {
    **context.details,
    'added': [*context.details.get('added', ()), note],
  }
  return Measured(
    tuple(rows.values()), dataclasses.replace(context, details=details)
  )
