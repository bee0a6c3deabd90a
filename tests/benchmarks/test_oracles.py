"""The oracle benchmark: rows of given scores, and one run from end to end."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from cases import text_cases

from calm_jax import decoding, exits, model, records, reporting, runs, training
from calm_jax.benchmarks import (
  kept_scores,
  measured_rows,
  oracle_rows,
  oracles,
  oracles_table,
  route_scores,
  routes,
  text_inputs,
  whole_outputs,
)
from calm_jax.records import OracleRow

L, N, K = 3, 40, 4


def given_scores(num_samples=K):
  """Scores that rise with the layers, and noise."""
  every = routes.all_families(L, depths=range(1, L + 1), count=2)
  rng = np.random.default_rng(0)
  means = np.array([0.2 * len(route) + 0.05 * sum(route) for route in every])

  def drawn(*shape):
    return means + rng.normal(0, 0.15, (*shape, N, len(every)))

  return route_scores.Scores(
    routes=every,
    greedy={name: drawn() for name in route_scores.SCORES},
    sampled={name: drawn(num_samples) for name in route_scores.SCORES},
  )


def rows_of(scores, budgets=(1, 2, 3)):
  return oracle_rows.rows_of(
    scores,
    list(budgets),
    run='toy',
    metric='rouge_l',
    random_routes=[
      one for n in (1, 2) for one in routes.random_routes(n, L, count=2)
    ],
    num_splits=2,
    seed=0,
  )


@pytest.fixture(scope='module')
def rows():
  return rows_of(given_scores())


def test_a_row_for_each_budget_score_and_kind_of_outputs(rows):
  assert [(row.score, row.decoding, row.budget) for row in rows] == [
    (score, kind, budget)
    for score in ('quality', 'consistency')
    for kind in ('greedy', 'sampled')
    for budget in (1.0, 2.0, 3.0)
  ]
  scores = given_scores()
  means = scores.greedy['quality'].mean(axis=0)
  place = scores.routes.index
  _, two, three = rows[:3]
  assert two.early_exit == pytest.approx(means[place((0, 1))])
  assert two.uniform == pytest.approx(means[place((0, 2))])
  assert two.full == three.early_exit == three.uniform
  drawn = [means[place(one)] for one in routes.random_routes(2, L, count=2)]
  assert two.random == pytest.approx(np.quantile(drawn, (0.05, 0.5, 0.95)))
  assert all(map(math.isnan, three.random))


def test_who_may_choose_has_more(rows):
  for row in rows:
    assert row.mean_layers <= row.budget
    assert (row.decoding == 'greedy') == math.isnan(row.held_out)
    if row.budget == L:
      assert row.full == row.early_exit == row.uniform
    else:
      assert row.oracle > row.mix + 0.02 and row.luck > 0.02
    if row.decoding == 'greedy':
      assert row.mix >= row.single >= max(row.early_exit, row.uniform)
      assert 2 < row.matches_full < 3
    else:
      # Nothing but noise tells the routes of one input from another's.
      assert row.held_out < row.oracle
      assert row.held_out < row.mix + 0.02
      assert row.matches_full == 3.0 or math.isnan(row.matches_full)


def test_without_samples_and_with_some_budgets():
  scores = given_scores()
  scores = dataclasses.replace(
    scores, sampled={name: np.zeros(0) for name in scores.sampled}
  )
  found = rows_of(scores, [2])
  assert [(row.decoding, row.budget) for row in found] == [('greedy', 2.0)] * 2


def test_table_and_picture(rows):
  flags = {'num_inputs': N, 'num_samples': K, 'temperature': 0.7}
  context = records.RunContext(
    device='cpu', dtype='float32', details={'flags': flags}
  )
  other = [
    dataclasses.replace(row, run='other', matches_full=math.nan)
    for row in rows
    if row.decoding == 'greedy'
  ]
  measured = [
    measured_rows.Measured(tuple(of_run), context) for of_run in (rows, other)
  ]
  shown = oracles_table.table(*measured)
  assert len(shown.rows) == len(rows) + len(other)
  assert shown.rows[0][:3] == ('toy', 'quality, greedy', '1')
  assert [cells[9] == '-' for cells in shown.rows[:6]] == [True] * 3 + [
    False
  ] * 3
  assert shown.rows[2][5] == '-' and ' to ' in shown.rows[1][5]
  assert '4 outputs of each' in shown.notes[2]
  assert 'the oracle reaches it with 2.' in shown.notes[4]
  assert 'no budget here reaches' in shown.notes[-1]
  drawn = reporting.oracle_figure(rows)
  assert len(drawn.axes) == 4
  assert [len(axes.lines) for axes in drawn.axes[:2]] == [7, 8]


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ([], 'give --run_dir and --tokens, or --show'),
    (['--num_samples=1'], r'num_samples is 1, .* 2 or more'),
    (['--num_inputs=0'], 'num_inputs 0'),
    (['--random_routes=-1'], 'random_routes -1'),
    (['--temperature=0'], r'temperature is 0\.0'),
    (['--temperature=nan'], 'temperature is nan'),
    (['--show=none.json'], 'none.json'),
    (['--max_length=0'], 'max_length 0'),
    (['--num_splits=1'], 'nowhere'),
  ],
)
def test_bad_flags_end_in_one_line(arguments, message):
  where = ['--run_dir=nowhere', '--tokens=none.npz']
  with pytest.raises(SystemExit, match=message):
    oracles.main(arguments and [*where, *arguments])


def test_bad_budgets_are_named():
  assert oracles._budgets('2,1,2', 3) == [1, 2]
  assert oracles._budgets(None, 3) == [1, 2, 3]
  for text, message in (('4', 'budget 4'), ('0', 'budget 0'), ('a', "'a'")):
    with pytest.raises(ValueError, match=message):
      oracles._budgets(text, 3)


def test_scores_are_kept_by_all_that_they_depend_on(tmp_path):
  kept = kept_scores.KeptScores(tmp_path, {'seed': 0})
  assert (0, 2) not in kept
  kept[0, 2] = {'texts': np.array(['a', 'б']), 'quality': np.arange(2.0)}
  again = kept_scores.KeptScores(tmp_path, {'seed': 0})
  assert (0, 2) in again and (0,) not in again
  assert again[0, 2]['texts'].tolist() == ['a', 'б']
  assert (0, 2) not in kept_scores.KeptScores(tmp_path, {'seed': 1})
  (path,) = tmp_path.glob('*/layers_0_2.npz')
  path.write_bytes(b'half a file')
  with pytest.raises(ValueError, match=r'_0_2\.npz does not .* delete it'):
    again[0, 2]


@pytest.mark.slow
def test_a_run_from_end_to_end(tmp_path, monkeypatch, capsys):
  config = text_cases.CONFIG
  params = model.init_params(config, jax.random.key(3))
  run = text_cases.save_run(tmp_path / 'run', params=params)
  rng = np.random.default_rng(0)
  training.write_npz(
    str(tmp_path / 'test.npz'),
    [
      {
        'inputs': [*rng.integers(3, 264, size), 1],
        'targets': [*rng.integers(3, 264, 3), 1],
      }
      for size in rng.integers(2, 7, 18)
    ],
  )
  output, picture = str(tmp_path / 'rows.json'), tmp_path / 'oracles.png'
  arguments = [
    f'--run_dir={run}',
    '--title=toy',
    f'--tokens={tmp_path / "test.npz"}',
    '--num_inputs=17',
    '--max_length=6',
    '--num_samples=2',
    '--metric=chrf',
    '--num_splits=2',
  ]
  oracles.main([*arguments, f'--output={output}', f'--picture={picture}'])
  printed = capsys.readouterr()
  assert '3 of 3: layers 0, 1 (decoding)' not in printed.err
  assert '| toy | consistency, greedy | 1 |' in printed.out
  assert picture.read_bytes().startswith(b'\x89PNG')
  measured = measured_rows.read(output, OracleRow)
  assert measured.flags['num_inputs'] == 17
  assert measured.context.details['num_routes'] == 3
  by = {(row.score, row.decoding, row.budget): row for row in measured.rows}
  assert len(by) == len(measured.rows) == 8
  same = by['consistency', 'greedy', 2.0]
  assert same.full == same.early_exit == same.single == same.oracle == 1.0
  assert by['consistency', 'greedy', 1.0].early_exit < 1.0
  assert by['consistency', 'sampled', 2.0].full < 1.0

  # Early exit as the policy does it, and both models' texts as they were kept.
  loaded = runs.load_run(run)
  inputs = text_inputs.read_inputs(
    str(tmp_path / 'test.npz'), loaded, number=17, max_length=6, metric='chrf'
  )
  bound = decoding.bind(model.as_layered_decoder(config), loaded.params)
  (folder,) = (tmp_path / 'run' / 'oracles').iterdir()
  assert sorted(path.name for path in folder.glob('*.npz')) == [
    'layers_0.npz',
    'layers_0_1.npz',
    'layers_1.npz',
  ]
  for number, name in ((1, 'layers_0.npz'), (2, 'layers_0_1.npz')):
    rule = exits.FixedExit(number)
    result = whole_outputs.decode_all(
      bound, inputs.sources, decoding.as_policy(rule), inputs.max_length
    )
    texts = [
      loaded.tokenizer.decode([token for token in row if token > 1])
      for row in result.tokens.tolist()
    ]
    with np.load(folder / name) as kept:
      assert kept['texts'].tolist() == texts
      assert kept['sampled_quality'].shape == (2, 17)

  # Every source, sample and route has draws of its own.
  sampling = route_scores.Sampling(2, 0.7, seed=0)
  drawn = [
    whole_outputs.decode_all(
      bound,
      inputs.sources,
      decoding.ComputePolicy(),
      6,
      sampler=sampling.sampler,
      num_samples=2,
      rng=sampling.key(route),
    ).tokens
    for route in ((0,), (0, 1))
  ]
  assert drawn[0].shape == (17, 2, 6)
  assert (drawn[0] != drawn[1]).any(axis=-1).all()
  assert (drawn[0][:, 0] != drawn[0][:, 1]).any(axis=-1).all()

  # What was kept is found again, and of one file that is missing decoded anew.
  (folder / 'layers_1.npz').unlink()
  calls = []
  whole = whole_outputs.decode_all

  def counted(*positional, **keywords):
    calls.append(1)
    return whole(*positional, **keywords)

  monkeypatch.setattr(whole_outputs, 'decode_all', counted)
  oracles.main([*arguments, f'--output={output}'])
  again = capsys.readouterr()
  assert len(calls) == 2 and again.out == printed.out
  assert again.err.count('(kept)') == 2
  assert measured_rows.read(output, OracleRow).rows == measured.rows
  # Another seed is other outputs, in a folder of their own.
  oracles.main([*arguments, '--seed=1'])
  assert len(list((tmp_path / 'run' / 'oracles').iterdir())) == 2
  oracles.main([f'--show={output}', f'--picture={picture}'])
  assert capsys.readouterr().out.endswith(printed.out)
  with pytest.raises(SystemExit, match=r'budget 3 .* in 1\.\.2'):
    oracles.main([*arguments, '--budgets=1,3'])
