"""Tunings as tables, pictures and a page."""

import pytest
from cases import tuning_cases

from calm_jax import records, reporting

pytest.importorskip('matplotlib')
pytest.importorskip('jinja2')


def test_the_table_says_what_became_of_candidates():
  table = reporting.tuning_table(tuning_cases.tuning())
  outcomes = {row[0]: row[-1] for row in table.rows}
  assert outcomes == {
    'full model': '',
    '<margin>, threshold 0.8': "CALM's own",
    'drafts': 'lossless',
    '<margin>, threshold 0.4': 'certified, chosen',
    '<margin>, threshold 0.2': 'failed',
    '<margin>, threshold 0': '',
  }
  assert [row[1] for row in table.rows] == [
    '10.00',
    '9.00',
    '8.00',
    '6.00',
    '4.00',
    '3.90',
  ]
  alone = tuning_cases.tuning(front=(1,), paper=None, chosen=None)
  short = reporting.tuning_table(alone)
  assert [row[0] for row in short.rows] == [
    'full model',
    'drafts',
    '<margin>, threshold 0.4',
  ]
  assert short.rows[0][-1] == 'chosen'
  assert len(reporting.tuning_table(alone, every=True).rows) == 6


def test_the_text_says_each_thing_once():
  text = reporting.render_tuning_text(tuning_cases.tuning())
  assert text.count('Promised: textual loss by rouge_l at most 0.1 and') == 1
  assert '2 were tested, 1 certified' in text
  assert 'Time did not last for 1 more candidates' in text


def test_the_page_is_whole_and_escapes_names():
  page = reporting.render_tuning_page(tuning_cases.tuning())
  assert '<b>It is fast.</b>' in page and '<svg' in page
  assert '&lt;margin&gt;, threshold 0.4' in page and '<margin>' not in page
  assert page.count('<h2>') == 3 and 'http' not in page.split('</svg>')[1]


@pytest.mark.parametrize(
  'changes',
  [
    {},
    {'promises': tuning_cases.PROMISES[:1], 'chosen': None, 'paper': None},
    # Nothing but drafts.
    {
      'candidates': tuning_cases.tuning().candidates[-1:],
      'front': (),
      'sequence': (),
      'paper': None,
      'chosen': 0,
    },
  ],
)
def test_every_promise_has_axes(changes):
  tuning = tuning_cases.tuning(**changes)
  figure = reporting.tuning_figure(tuning)
  assert len(figure.axes) == len(tuning.promises)
  for axes, promise in zip(figure.axes, tuning.promises, strict=True):
    assert promise.loss in axes.get_ylabel()
    labels = axes.get_legend_handles_labels()[1]
    assert labels.count('chosen') == 1
    low, high = axes.get_ylim()
    assert low < 0 < promise.tolerance < high


def test_choices_are_a_row_each():
  shown = reporting.choices_table(
    [
      ('one', tuning_cases.tuning()),
      ('other', tuning_cases.tuning(chosen=4)),
      ('none', tuning_cases.tuning(chosen=None)),
    ]
  )
  assert [cells[:5] for cells in shown.rows] == [
    ('one', '8', '<margin>, threshold 0.4', '1.67', '0.0500 0.0100'),
    ('other', '8', 'drafts', '1.25', '-'),
    ('none', '8', 'full model', '1.00', '-'),
  ]
  assert {cells[5:] for cells in shown.rows} == {('1 of 2', '1.25')}


def test_counts_of_tunings_are_a_table():
  count = records.ViolationCount(
    tolerance=0.1,
    p_value='betting',
    near_setting={'policy': 'margin', 'setting': 0.4},
    num_draws=200,
    draw_size=100,
    num_violations=3,
    rate_low=0.001,
    rate_high=0.04,
    num_certified=150,
    chosen=(150,),
    mean_risk=0.05,
    mean_exit_layer=3.0,
    promises=tuning_cases.PROMISES,
  )
  text = reporting.render_tuned_validation(
    records.TunedValidation(
      error_rate=0.05,
      p_value='betting',
      num_rows=60,
      candidates=('margin, threshold 0.4',),
      counts=(count,),
      context=records.RunContext(device='cpu', dtype='float64'),
    )
  )
  assert 'textual 0.1 and signed 0.05' in text
  assert 'just below margin, threshold 0.4' in text
  assert '| 75.0 | 1.50 | 0.10 to 4.00 |' in text
