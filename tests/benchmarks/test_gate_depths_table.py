"""The table of gates has a row for each, with the oracle of its tokens."""

from calm_jax import records
from calm_jax.benchmarks import gate_depths_table


def evaluation(depth):
  def measured(measure, layers):
    return [
      records.MeasureDepth(measure, share, 0.5, layer, share)
      for share, layer in zip((0.01, 0.05), layers, strict=True)
    ]

  return records.GateEvaluation(
    task='t',
    split='validation',
    num_tokens=10,
    num_layers=4,
    target='Consistency()',
    steps=1,
    layers=(),
    depths=(
      *measured('gate', (depth, depth - 1)),
      *measured('softmax margin', (2.5, 2.0)),
    ),
    first_agreeing=1.25,
    settled=1.5,
    context=records.RunContext('cpu', 'float32'),
  )


def test_a_row_for_each_gate():
  table = gate_depths_table.table({'a': evaluation(3.0), 'b': evaluation(3.5)})
  assert table.header[1:3] == ('at 1 %', 'at 5 %')
  assert table.rows == (
    ('a', '3.00', '2.00', '2.50', '2.00', '1.25', '1.50', '4'),
    ('b', '3.50', '2.50', '2.50', '2.00', '1.25', '1.50', '4'),
  )
