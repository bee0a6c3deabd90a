"""The tables of a gate."""

from calm_jax import records, reporting


def evaluation():
  depths = [
    records.MeasureDepth(name, share, 0.5, layers, share)
    for name, layers in (('gate', 2.5), ('softmax margin', 2.25))
    for share in (0.01, 0.05)
  ]
  return records.GateEvaluation(
    task='demo',
    split='validation',
    num_tokens=1234,
    num_layers=3,
    target='Consistency()',
    steps=400,
    layers=(
      records.ClassifierLayer(1, 0.5, 0.75, 0.25, 0.375, 0.6, 0.5),
      records.ClassifierLayer(2, 0.8, float('nan'), 0.0, 0.0, 0.9, 0.4),
    ),
    depths=tuple(depths),
    first_agreeing=1.5,
    settled=1.75,
    context=records.RunContext(device='cpu', dtype='float32'),
  )


def test_measures_stand_beside_each_other_and_the_oracle():
  table = reporting.gate_table(evaluation())
  assert table.header == ('mean exit layer by', 'at 1 %', 'at 5 %', 'no error')
  assert table.rows[0] == ('gate', '2.50', '2.50', '')
  assert table.rows[1] == ('softmax margin', '2.25', '2.25', '')
  assert [row[-1] for row in table.rows[2:]] == ['1.50', '1.75']


def test_the_text_says_on_which_tokens_thresholds_were_chosen():
  text = reporting.render_gate_text(evaluation())
  assert text.startswith('gate for Consistency(), 400 steps, demo validation')
  assert 'chosen on these very tokens' in text
  assert 'layer 1' in text and '0.750' in text
