"""Lines of measures: from loss tables of a run to a picture and a table."""

import dataclasses

import numpy as np
import pytest
from cases import policy_cases as cases
from cases import validation_cases

from calm_jax import costs, decoding, exits, records
from calm_jax.benchmarks import (
  measure_costs,
  measure_lines,
  measured_rows,
  measures_picture,
)
from calm_jax.interfaces import Work

L, D, V, T, S = cases.L, cases.CONFIG.embed_dim, cases.V, 8, 6
NAN = float('nan')
MARGIN = exits.ConfidenceExit(exits.SoftmaxMargin(), 0.5)
GATE = exits.Gate(
  np.zeros((1, 4)), np.zeros(1), np.ones((1, 4)), np.ones((1, D, 4))
)
EXACT = decoding.ComputePolicy(exit_rule=MARGIN, cache_fill=decoding.CatchUp())
GATED = decoding.ComputePolicy(exit_rule=exits.ConfidenceExit(GATE, 0.5))


def loss_table(policy=EXACT, **changes):
  fields = dict(
    mean_exit_layers=np.linspace(3.5, 1.5, 5),
    mean_layers_run=np.linspace(3.75, 2.0, 5),
  )
  table = validation_cases.loss_table(**{**fields, **changes})
  table.fingerprint.update(
    policy=decoding.describe(policy),
    num_layers=L,
    max_length=T,
    input_length=S,
    parameters='these',
    examples='those',
  )
  return table


def write(folder, name, table):
  records.write_loss_table(folder / name / 'loss_table.npz', table)


@pytest.fixture
def run(tmp_path, monkeypatch):
  """A run with three calibrations, one of them not far yet."""
  write(tmp_path, 'margin', loss_table())
  losses = validation_cases.losses(largest=0.2)
  write(tmp_path, 'gate', loss_table(GATED, losses=losses))
  begun = validation_cases.losses()
  begun[:, 1:] = NAN
  write(tmp_path, 'begun', loss_table(GATED, losses=begun))
  monkeypatch.setattr(
    measure_lines.checkpoints, 'find_checkpoint', lambda path: path
  )
  monkeypatch.setattr(
    measure_lines.checkpoints,
    'read_metadata',
    lambda path: {'model_config': dataclasses.asdict(cases.CONFIG)},
  )
  return tmp_path


def call(run, *more, tables='margin,gate'):
  measures_picture.main([f'--run_dir={run}', f'--tables={tables}', *more])


def test_lines_table_and_picture(run, capsys):
  pytest.importorskip('matplotlib')
  output, picture = run / 'rows.json', run / 'picture.png'
  call(
    run,
    *('--title=toy', '--names=a,b,c', '--tolerances=0.1,0.3', '--costs'),
    f'--output={output}',
    tables='margin,gate,begun',
  )
  printed = capsys.readouterr().out
  margin, gate, begun, full = measured_rows.read(
    output, records.MeasureLine
  ).rows
  table = records.read_loss_table(run / 'margin' / 'loss_table.npz')
  assert margin.losses == pytest.approx(tuple(table.losses.mean(axis=0)))
  assert margin.exit_layers == tuple(table.mean_exit_layers)
  assert [one.tolerance for one in margin.certified] == [0.1, 0.3]
  for one in (*margin.certified, *gate.certified):
    line = margin if one in margin.certified else gate
    assert line.losses[one.place] < one.tolerance
  place = margin.certified[0].place
  cell = f'{margin.settings[place]}: {margin.exit_layers[place]:.2f}'
  assert f'| toy | a | {cell}, {margin.costs[place]:.2f} |' in printed
  # Its first threshold is certified; whether the next one is, nobody knows.
  assert (begun.settings, begun.certified) == ((0.9,), ())
  assert '| toy | c | - | - |' in printed
  assert (full.exit_layers, full.losses) == ((L,), (0.0,))
  measures_picture.main([f'--show={output}', f'--picture={picture}'])
  assert picture.stat().st_size > 1000
  assert capsys.readouterr().out == printed


def test_names_are_those_of_the_measures(run):
  lines = measure_lines.of_run(run, ['margin', 'gate'], title='toy')
  assert [line.name for line in lines] == [
    'softmax margin',
    'gate',
    'full model',
  ]
  assert lines[0].costs == ()


def test_the_oracle_is_that_of_an_evaluation(run):
  evaluation = records.GateEvaluation(
    task='t',
    split='validation',
    num_tokens=10,
    num_layers=L,
    target='Consistency()',
    steps=1,
    layers=(),
    depths=(),
    first_agreeing=1.25,
    settled=1.5,
    context=records.RunContext('cpu', 'float32'),
  )
  records.write_json(run / 'evaluation.json', evaluation)
  made = dict(title='toy', oracle='evaluation.json')
  oracle = measure_lines.of_run(run, ['margin'], **made)[-1]
  assert (oracle.kind, oracle.exit_layers) == ('oracle', (1.25,))
  records.write_json(
    run / 'evaluation.json', dataclasses.replace(evaluation, num_layers=9)
  )
  with pytest.raises(ValueError, match='of 9 layers'):
    measure_lines.of_run(run, ['margin'], **made)


@pytest.mark.parametrize(
  'change, message',
  [
    ({'tables': 'nowhere'}, 'there is no loss table at'),
    ({'tables': 'margin,margin'}, 'softmax margin, softmax margin; give 2'),
    ({'more': '--names=one'}, 'give 2 different names'),
    ({'tables': ''}, 'give --run_dir and --tables'),
    ({'more': '--tolerances=2'}, 'tolerance'),
    ({'more': '--tolerances=much'}, 'much'),
    ({'more': '--error_rate=0'}, 'error_rate'),
    ({'more': '--oracle=none.json'}, 'none.json'),
    ({'metric': 'bleu'}, 'not of one scale'),
    ({'parameters': 'others'}, 'different models'),
    ({'examples': 'others'}, 'different inputs'),
    ({'loss': 'risk'}, 'one by one'),
    ({'num_layers': None}, 'does not say its num_layers'),
    ({'empty': True}, 'no losses yet'),
  ],
)
def test_bad_input_ends_in_one_line(run, change, message):
  table = loss_table(GATED, loss=change.pop('loss', 'textual'))
  more = [change.pop('more')] if 'more' in change else []
  tables = change.pop('tables', 'margin,gate')
  if change.pop('empty', False):
    table.losses[:] = NAN
  table.fingerprint.update(change)
  write(run, 'gate', table)
  with pytest.raises(SystemExit, match=message) as error:
    call(run, *more, tables=tables)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  'policy, what',
  [
    (
      dataclasses.replace(EXACT, cache_fill=decoding.DeferredExitState()),
      'layers and projections',
    ),
    (
      dataclasses.replace(EXACT, source_plan=cases.SOURCE_PRUNED),
      'layers and projections a policy of .*PrunedSource',
    ),
    (dataclasses.replace(EXACT, readout=decoding.FirstTokens(9)), 'logits'),
    (decoding.ComputePolicy(exit_rule=exits.PatienceExit(2)), 'checks'),
    (
      decoding.ComputePolicy(exit_rule=dataclasses.replace(MARGIN, interval=2)),
      'checks',
    ),
  ],
)
def test_costs_that_means_do_not_tell_are_refused(run, policy, what):
  table = loss_table(EXACT)
  table.fingerprint['policy'] = decoding.describe(policy)
  write(run, 'gate', table)
  with pytest.raises(SystemExit, match=f'how many {what}.*arena'):
    call(run, '--costs', '--names=a,b')
  call(run, '--names=a,b')


def test_layers_run_must_be_known(run):
  write(run, 'gate', loss_table(mean_layers_run=None))
  with pytest.raises(SystemExit, match='how many layers were run'):
    call(run, '--costs', '--names=a,b')


def test_prices_are_those_of_the_ledger():
  """Against a ledger of two tokens, 2 and 4 layers deep, that catches up 2."""
  prices = measure_costs.Prices.of(cases.CONFIG, max_length=T, source_length=S)
  row = np.zeros((1, T), int)
  used = row.copy()
  used[0, :2] = (2, 4)
  caught = row.copy()
  caught[0, 1] = 2
  ledger = Work.none((1, T)).plus(
    attention=used,
    feed_forward=used,
    caught_up=caught,
    projections=used + caught,
    checks=used,
    outputs=used * V,
  )
  cost = costs.decode_cost(cases.CONFIG, ledger, source_length=S)
  once = cost.flops['encoder'] + cost.flops['cross_fill']
  table = loss_table(
    losses=np.zeros((40, 5)),
    mean_exit_layers=np.full(5, 3.0),
    mean_layers_run=np.full(5, 4.0),
  )
  found = measure_costs.costs_of(table, prices, L)
  layer = prices.layer + prices.fill
  np.testing.assert_allclose(found * layer * 2, cost.total_flops - once)
  # A gate's own products come instead of all but one of the checks'.
  table.fingerprint['policy'] = decoding.describe(
    dataclasses.replace(
      EXACT, exit_rule=exits.ConfidenceExit(GATE, threshold=0.5)
    )
  )
  gated = measure_costs.costs_of(table, prices, L)
  own = 2 * (D * 4 + 4)
  np.testing.assert_allclose(
    (found - gated) * layer, (3 - 1) * prices.head - 3 * own
  )
  assert measure_costs.full_cost(prices, L) == pytest.approx(
    L + prices.head / layer
  )


@pytest.mark.slow
@pytest.mark.parametrize(
  'name', ['softmax_margin', 'margin_nucleus_exact', 'gate', 'gate_exact']
)
def test_means_tell_what_a_decode_cost(name):
  result, case = cases.decode(name), cases.case(name)
  work, decoded = result.work, result.exit_layers > 0
  cost = costs.decode_cost(cases.CONFIG, work, source_length=cases.S)
  per_token = (
    cost.total_flops - cost.flops['encoder'] - cost.flops['cross_fill']
  ) / decoded.sum()
  run = (work.attention + work.caught_up).sum() / decoded.sum()
  used = result.exit_layers[decoded].mean()
  table = loss_table(
    mean_exit_layers=np.full(5, used), mean_layers_run=np.full(5, run)
  )
  policy = case.policy(np.arange(cases.B), case.threshold)
  table.fingerprint['policy'] = described = decoding.describe(policy)
  prices = measure_costs.Prices.of(
    cases.CONFIG, max_length=cases.T, source_length=cases.S
  )
  found = measure_costs.costs_of(table, prices, L)[0]
  own = 0.0
  if described['exit_rule']['measure']['type'] == 'Gate':
    # Of state and state before, and what comes out; not in the ledger.
    own = 2 * used * (2 * D + 1) * 8
  expected = (per_token + own) / (prices.layer + prices.fill)
  assert found == pytest.approx(expected)


def test_the_committed_rows_are_read():
  """Those that the READMEs' pictures are drawn from."""
  results = measured_rows.__file__.replace('measured_rows.py', 'results')
  for name in ('deep', 'e2e_nlg', 'tatoeba_en_fr'):
    path = f'{results}/measures_{name}.json'
    measured = measured_rows.read(path, records.MeasureLine)
    assert {row.run for row in measured.rows} == {name}
    assert [row.kind for row in measured.rows[-2:]] == ['full model', 'oracle']
