"""Rows of adaptive systems, kept at once and found again by the next run."""

import argparse
import dataclasses
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from calm_jax import records
from calm_jax.benchmarks import clock_flags, measured_rows
from calm_jax.benchmarks.measured_rows import Measured
from calm_jax.records import ArenaClock, SystemRow

# Flags by which rows differ that are called alike.
_FLAGS = ('tokens', 'num_inputs')


class KeptRows:
  """The rows of `adaptive_systems` in its output file."""

  def __init__(
    self,
    flags: argparse.Namespace,
    about: Mapping[str, Any],
    *,
    names: tuple[str, str],
    left_out: Sequence[str],
    order: Sequence[str],
    device: str,
    dtype: str,
  ):
    """Reads what is there.

    Args:
      flags: the command line; `output` is the file.
      about: what else rows depend on; JSON.
      names: of the data and of the model, as rows have them.
      left_out: which systems are not measured, in words.
      order: of systems; others come last.
      device: what computes.
      dtype: of what is computed.

    Raises:
      ValueError: if the file holds rows or clocks of something else, naming it.
    """
    self._flags, self._left_out, self._order = flags, list(left_out), order
    self._where = dict(device=device, dtype=dtype)
    self._about = records.to_jsonable(
      {
        **about,
        **{name: getattr(flags, name) for name in _FLAGS},
        **self._where,
      }
    )
    self._clock = clock_flags.clock_of(vars(flags))
    self._rows: dict[tuple[str, str, str], SystemRow] = {}
    if os.path.exists(flags.output):
      found = measured_rows.read(flags.output, SystemRow)
      self._check(found.context.details.get('about', {}))
      self._check_names(found, names)
      self._clock = clock_flags.joined(
        clock_flags.kept_clock(found), self._clock, path=flags.output
      )
      self._rows = {row.key: row for row in found.rows}

  def _check(self, found: Mapping[str, Any]) -> None:
    for name, value in self._about.items():
      if found.get(name) != value:
        raise ValueError(
          f'{self._flags.output} has rows of {name} {found.get(name)!r}, not '
          f'{value!r}; give another --output'
        )

  def _check_names(self, found: Measured, names: tuple[str, str]) -> None:
    for row in found.rows:
      for flag, old, new in zip(
        ('title', 'model'), (row.run, row.model), names, strict=True
      ):
        if old != new:
          raise ValueError(
            f'{self._flags.output} has rows of --{flag} {old!r}, not {new!r}; '
            'give the same, or another --output'
          )

  def has(self, key: tuple[str, str, str], policy: str) -> bool:
    """Whether there is a row of this policy."""
    return key in self._rows and self._rows[key].policy == policy

  def drop_promised(
    self, wanted: Collection[tuple[str, str, str]]
  ) -> list[tuple[str, str, str]]:
    """Forgets rows of certificates that are not wanted, and returns keys."""
    gone = [key for key in self._rows if key[2] and key not in wanted]
    for key in gone:
      del self._rows[key]
    if gone:
      self._write()
    return gone

  def __getitem__(self, key: tuple[str, str, str]) -> SystemRow:
    return self._rows[key]

  def put(self, row: SystemRow) -> None:
    """Keeps a row, with the clocks that one of the same policy had."""
    if self.has(row.key, row.policy) and not row.clocks:
      row = dataclasses.replace(row, clocks=self._rows[row.key].clocks)
    self._rows[row.key] = row
    self._write()

  def drop_bare(self, key: tuple[str, str, str]) -> None:
    """Forgets a row of the same setting that nothing is promised of."""
    system, setting, promised = key
    if promised:
      self._rows.pop((system, setting, ''), None)

  def add_clocks(
    self, clocks: Mapping[tuple[str, str, str], ArenaClock]
  ) -> None:
    """Keeps what was timed."""
    for key, clock in clocks.items():
      row = self._rows[key]
      timed = {one.batch_size: one for one in row.clocks}
      # Of the full model the first one stays; it is timed beside every system.
      timed.setdefault(clock.batch_size, clock)
      self._rows[key] = dataclasses.replace(
        row, clocks=tuple(timed[size] for size in sorted(timed))
      )
    self._write()

  def measured(self) -> Measured:
    """Returns all rows, with how they came about."""
    place = {system: number for number, system in enumerate(self._order)}
    return measured_rows.of_this_process(
      sorted(
        self._rows.values(),
        key=lambda row: (place.get(row.system, len(place)), -row.flops),
      ),
      self._flags,
      **self._where,
      about=self._about,
      left_out=self._left_out,
      clock=self._clock,
    )

  def _write(self) -> None:
    records.write_json(self._flags.output, self.measured())
