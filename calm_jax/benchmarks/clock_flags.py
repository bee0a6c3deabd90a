"""The flags that a clock depends on: read, checked, compared with kept ones."""

import argparse
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from calm_jax import decoding
from calm_jax.benchmarks.measured_rows import Measured


def timed_sizes(
  flags: argparse.Namespace, *, spare: bool = True
) -> dict[int, int]:
  """Returns batch size -> inputs timed at it.

  Args:
    flags: with `batch_sizes` and `timed_inputs`, texts with commas.
    spare: whether there may be more of the second.

  Raises:
    ValueError: for what are no numbers, or not as many of one as of the other.
  """
  sizes, counts = (
    whole_numbers(name, getattr(flags, name))
    for name in ('batch_sizes', 'timed_inputs')
  )
  if len(sizes) > len(counts) or (len(sizes) < len(counts) and not spare):
    raise ValueError(
      f'batch_sizes are {sizes} and timed_inputs {counts}; give as many'
    )
  return dict(zip(sizes, counts, strict=False))


def whole_numbers(name: str, text: str) -> list[int]:
  """Returns the numbers of a flag, or names what is none in a ValueError."""
  try:
    return [int(number) for number in text.split(',') if number.strip()]
  except ValueError:
    raise ValueError(
      f'{name} {text!r} must be whole numbers, separated by commas'
    ) from None


def check_loops(loops: Sequence[str], sizes: Collection[int]) -> None:
  """Checks that every batch size has a depth loop to be timed by.

  Raises:
    ValueError: if all rows are to be compacted where there is one.
  """
  if 1 in sizes and set(loops) <= decoding.FOR_BATCHES:
    raise ValueError(
      f'--depth_loops={",".join(loops)} has nothing to compact at batch size '
      '1; leave 1 out of --batch_sizes, or give unrolled as well'
    )


def clock_of(flags: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what clocks of a command depend on, {} where it times nothing."""
  sizes = timed_sizes(argparse.Namespace(**flags))
  if not sizes:
    return {}
  return {
    'depth_loops': sorted(set(flags['depth_loops'].split(','))),
    'num_repeats': flags['num_repeats'],
    'timed_inputs': {str(size): number for size, number in sizes.items()},
  }


def kept_clock(found: Measured) -> dict[str, Any]:
  """Returns what the clocks of kept rows depend on, {} where there are none.

  Files from before this was written have the flags of their last command.
  """
  sizes = {str(one.batch_size) for row in found.rows for one in row.clocks}
  details = found.context.details
  clock = details['clock'] if 'clock' in details else clock_of(found.flags)
  if not sizes or not clock:
    return {}
  timed = clock['timed_inputs']
  return {
    **clock,
    'timed_inputs': {size: timed[size] for size in timed if size in sizes},
  }


def joined(
  before: Mapping[str, Any], now: Mapping[str, Any], *, path: str
) -> dict[str, Any]:
  """Returns what old and new clocks of a file depend on together.

  Args:
    before: of clocks that are kept, as `clock_of`.
    now: of this command.
    path: the file, for the message.

  Raises:
    ValueError: if they cannot stand beside each other, naming what differs.
  """
  if not before or not now:
    return dict(before or now)
  for name in ('depth_loops', 'num_repeats'):
    _check_same(name, before[name], now[name], path)
  old, new = before['timed_inputs'], now['timed_inputs']
  for size in old.keys() & new.keys():
    name = f'timed_inputs at batch size {size}'
    _check_same(name, old[size], new[size], path)
  return {**now, 'timed_inputs': {**old, **new}}


def _check_same(name: str, old: Any, new: Any, path: str) -> None:
  if old != new:
    old, new = (
      ','.join(one) if isinstance(one, list) else one for one in (old, new)
    )
    raise ValueError(
      f'{path} has clocks of {name} {old}, not {new}; give the same, or '
      'another --output'
    )
