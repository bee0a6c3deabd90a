"""The speed table: all rows, or of every way the fastest loop."""

from calm_jax import records, reporting


def row(name, depth_loop, milliseconds, **fields):
  given = dict(
    shape='tiny',
    batch_size=1,
    cache_fill='eager',
    mean_exit_layer=2.0,
    start_milliseconds=3.0,
    parts=4.0,
    bound=2.0,
    speed_up=1.0,
    ceiling=1.5,
    compile_seconds=0.5,
  )
  return records.SpeedRow(
    name=name,
    depth_loop=depth_loop,
    milliseconds_per_step=milliseconds,
    **(given | fields),
  )


def report(*rows, **fields):
  given = dict(
    bandwidth=20.0, source_length=64, target_length=16, num_repeats=3
  )
  return records.SpeedReport(
    rows=rows, context=records.RunContext('cpu', 'float32'), **(given | fields)
  )


def test_the_fastest_loop_of_each_way_is_kept():
  measured = report(
    row('full depth', 'while', 5.0),
    row('all after layer 1', 'while', 2.0),
    row('full depth', 'unrolled', 4.0),
    row('all after layer 1', 'unrolled', 3.0),
    row('all after layer 1', 'unrolled', 1.0, cache_fill='deferred'),
    row('full depth', 'while', 9.0, batch_size=2),
  )
  kept = [
    (one.name, one.depth_loop, one.milliseconds_per_step)
    for one in reporting.fastest_rows(measured).rows
  ]
  assert kept == [
    ('full depth', 'unrolled', 4.0),
    ('all after layer 1', 'while', 2.0),
    ('all after layer 1', 'unrolled', 1.0),
    ('full depth', 'while', 9.0),
  ]


def test_several_runs_stand_in_one_table_and_are_told_apart():
  table = reporting.speed_table(
    report(row('full depth', 'while', 5.0)),
    report(
      row('full depth', 'while', 9.0, batch_size=2),
      target_length=8,
      bandwidth=15.0,
    ),
  )
  assert [cells[1] for cells in table.rows] == ['1', '2']
  assert table.rows[0][5:8] == ('5.00', '2.50', '1.25')
  steps, bound = table.notes[:2]
  assert 'over the 16 or 8 steps' in steps and 'of 64 tokens' in steps
  assert '3 ms (tiny, batch 1), 3 ms (tiny, batch 2)' in steps
  assert '20.0 or 15.0 GB/s' in bound
