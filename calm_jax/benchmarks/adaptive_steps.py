"""The steps of comparing adaptive systems: every row, then clocks of a few."""

from collections.abc import Mapping, Sequence

from calm_jax.benchmarks.adaptive_certificates import Entry
from calm_jax.benchmarks.adaptive_rows import Say, Systems, digest_of
from calm_jax.benchmarks.kept_rows import KeptRows
from calm_jax.records import FULL_SYSTEM, SystemRow


def chosen(
  rows: Sequence[SystemRow], full: SystemRow, *, drop: float
) -> list[SystemRow]:
  """Returns the rows that the clock is worth: few of each system.

  Of every system those that are certified, and of the others the one of the
  least arithmetic whose quality is at most `drop` points below the full
  model's; where there is none, the one of the best quality.

  Args:
    rows: those of settings.
    full: the full model's.
    drop: in points of 100.
  """
  found = []
  for system in dict.fromkeys(row.system for row in rows):
    own = [row for row in rows if row.system == system]
    certified = [row for row in own if row.outcomes]
    bare = [row for row in own if not row.outcomes]
    good = [row for row in bare if row.quality >= full.quality - drop]
    if good:
      bare = [min(good, key=lambda row: row.flops)]
    elif bare:
      bare = [max(bare, key=lambda row: row.quality)]
    found += [*certified, *bare]
  return found


def measure(
  systems: Systems,
  entries: Sequence[Entry],
  kept: KeptRows,
  batch_sizes: Mapping[int, int],
  *,
  drop: float,
  say: Say,
) -> None:
  """Measures what is not kept already: rows, then clocks of a few.

  Kept rows of certificates that are in no entry are forgotten.

  Args:
    systems: what decodes.
    entries: the settings.
    kept: gets every row and clock at once; has the full model's row.
    batch_sizes: B -> how many inputs the clock measures at it.
    drop: as for `chosen`.
    say: gets a line now and then.
  """
  for key in kept.drop_promised({entry.key for entry in entries}):
    say(f'{", ".join(key)}: forgotten, as no certificate given says so')
  for number, entry in enumerate(entries, 1):
    what = f'{number} of {len(entries)}: {entry.system}, {entry.setting.words}'
    kept.drop_bare(entry.key)
    if _is_kept(kept, entry):
      say(f'{what} (kept)')
      continue
    say(f'{what}: decoding')
    kept.put(systems.row(entry))
  rows = [kept[entry.key] for entry in entries]
  timed = {
    row.key for row in chosen(rows, kept[FULL_SYSTEM, '', ''], drop=drop)
  }
  for size, number in batch_sizes.items():
    for system in dict.fromkeys(entry.system for entry in entries):
      own = [
        entry
        for entry in entries
        if entry.system == system
        and entry.key in timed
        and size not in {one.batch_size for one in kept[entry.key].clocks}
      ]
      if own:
        say(f'timing {system} at batch {size}')
        kept.add_clocks(systems.clocks(own, size, number))


def _is_kept(kept: KeptRows, entry: Entry) -> bool:
  """Whether a row of the same policy and promises is there."""
  if not kept.has(entry.key, digest_of(entry)):
    return False
  row, certified = kept[entry.key], entry.certified
  old, new = (
    [(one.loss, one.metric, one.tolerance) for one in losses]
    for losses in (row.outcomes, certified.promises)
  )
  # Without a promise both rates are NaN.
  return old == new and (not new or row.error_rate == certified.error_rate)
