"""The arena of classifiers: certified rows, and whether they keep it."""

import dataclasses

import pytest

from calm_jax.benchmarks import arena_classes_table, measured_rows
from calm_jax.records import NOTHING, EncoderExitRow, RunContext

FULL = EncoderExitRow(
  run='bank',
  rule='full encoder',
  setting='-',
  accuracy=0.8,
  agreement=1.0,
  mean_layers=8.0,
  milliseconds=(10.0, 200.0),
  loops=('UnrolledLayers', 'CompactedLayers'),
)
OTHER = dataclasses.replace(FULL, rule='margin', setting='0.5')
KEPT = dataclasses.replace(
  FULL,
  rule='certified: textual 0.05, signed 0.02',
  setting='tuned: margin, threshold 0.9',
  accuracy=0.79,
  agreement=0.96,
  mean_layers=4.0,
  milliseconds=(5.0, 100.0),
)
BROKEN = dataclasses.replace(KEPT, accuracy=0.77)


def measured(*rows, sizes=(1, 32)):
  return measured_rows.Measured(
    rows,
    RunContext(
      device='toy',
      dtype='float32',
      details={'flags': {'batch_sizes': list(sizes)}},
    ),
  )


def test_certified_rows_beside_the_full_encoder():
  table = arena_classes_table.table(measured(FULL, OTHER, KEPT, BROKEN))
  assert [row[1] for row in table.rows] == [
    'full encoder',
    KEPT.setting,
    BROKEN.setting,
  ]
  assert [row[3] for row in table.rows] == ['-', 'yes', 'NO']
  assert table.rows[1][4:] == (
    '4.0',
    '79.0',
    '4.00',
    '5.00 (2.00x)',
    '100.00 (2.00x)',
  )
  nothing = dataclasses.replace(FULL, rule=KEPT.rule, setting=NOTHING)
  table = arena_classes_table.table(measured(FULL, nothing))
  assert table.rows[1][1:4] == (NOTHING, '-', '-')
  with pytest.raises(ValueError, match='same --batch_sizes'):
    arena_classes_table.table(measured(FULL), measured(FULL, sizes=(1,)))
