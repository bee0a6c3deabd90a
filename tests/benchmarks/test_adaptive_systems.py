"""Adaptive systems beside each other: settings, certificates, oracles."""

import dataclasses
import math
import pathlib

import jax
import numpy as np
import pytest
from cases import text_cases

from calm_jax import (
  decoding,
  exits,
  model,
  records,
  reporting,
  runs,
  small_twins,
  training,
)
from calm_jax.benchmarks import (
  adaptive_certificates,
  adaptive_entries,
  adaptive_oracles,
  adaptive_rows,
  adaptive_settings,
  adaptive_steps,
  adaptive_systems,
  adaptive_table,
  kept_rows,
  measured_rows,
  policy_costs,
)
from calm_jax.calibration import calibrate
from calm_jax.context_gates import ContextGates
from calm_jax.records import SystemRow
from calm_jax.source_scorer import SourceScorer

T = 6
ABOUT = adaptive_settings.Model(
  run_dir='nowhere',
  num_layers=4,
  vocab_size=264,
  source_length=16,
  max_length=T,
)


def certify(path, policy, setting, *, error_rate=0.05, **context):
  """Writes a certificate of a setting."""
  certificate = calibrate(
    np.zeros((300, 1)),
    [setting],
    tolerance=0.9,
    error_rate=error_rate,
    context={
      'policy': decoding.describe(policy, setting),
      'loss': 'textual',
      'metric': 'rouge_l',
      **context,
    },
  )
  certificate.save(path)
  return str(path)


def row_of(system, setting='', **changes):
  return SystemRow(
    **{
      'run': 'toy',
      'model': 'exits',
      'system': system,
      'setting': setting,
      'policy': 'a',
      'outcomes': (),
      'error_rate': math.nan,
      'distance': 0.0,
      'quality': 50.0,
      'metric': 'rouge_l',
      'mean_layers': 2.0,
      'flops': 1.0,
      'bytes': 1.0,
      **changes,
    }
  )


OUTCOME = records.PromiseOutcome(
  loss='textual',
  metric='rouge_l',
  tolerance=0.05,
  mean=0.03,
  standard_error=0.01,
)


def test_systems_of_untrained_runs_are_left_out_in_words():
  found, left_out = adaptive_entries.systems_of(ABOUT)
  assert list(found) == [
    'CALM, projected K/V',
    'CALM, exact K/V',
    'static depth',
    'SoFT depth',
    'kept layers (ULS)',
    'SkipDecode',
    'FFN skipping',
  ]
  assert [line.split(' is left')[0] for line in left_out] == [
    'router',
    'small twins',
    'part of the source',
    'pruned context',
    'source, exits and vocabulary',
  ]
  assert all('nowhere' in line for line in left_out)
  assert [one.words for one in found['SkipDecode']] == [
    '4 to 3 layers',
    '4 to 2 layers',
    '4 to 1 layers',
    '3 to 2 layers',
    '3 to 1 layers',
    '2 to 1 layers',
  ]
  assert [one.first_layers for one in found['SoFT depth']] == [3, 2, 1]
  for settings in found.values():
    assert len({one.words for one in settings}) == len(settings)
  few, _ = adaptive_entries.systems_of(ABOUT, ['static depth'], most=2)
  assert [one.words for one in few['static depth']] == ['3 layers', '1 layers']
  with pytest.raises(ValueError, match=r"no system 'ULS'; there are CALM"):
    adaptive_entries.systems_of(ABOUT, ['ULS'])
  shallow = dataclasses.replace(ABOUT, num_layers=1)
  found, left_out = adaptive_entries.systems_of(shallow, ['static depth'])
  assert not found and 'decoder of 1 layers has no setting' in left_out[0]


def test_trained_parts_join(monkeypatch):
  scorer = SourceScorer(np.ones(16, 'f4'), np.float32(0))
  gates = ContextGates(
    np.ones((4, 16, 1), 'f4'), np.ones((4, 16, 1), 'f4'), np.ones(4, 'f4')
  )
  monkeypatch.setattr(runs, 'load_source_scorer', lambda folder: scorer)
  monkeypatch.setattr(runs, 'load_context_gates', lambda folder: gates)
  found, _ = adaptive_entries.systems_of(
    ABOUT, ['part of the source', 'pruned context']
  )
  assert [one.words for one in found['part of the source']] == [
    '12 of 16 positions',
    '8 of 16 positions',
    '4 of 16 positions',
    '2 of 16 positions',
    '1 of 16 positions',
  ]
  assert [one.policy.layer_plan.slots for one in found['pruned context']] == [
    6,
    4,
    3,
    1,
  ]
  composed, _ = adaptive_entries.systems_of(
    ABOUT, ['source, exits and vocabulary']
  )
  policies = [one.policy for one in composed['source, exits and vocabulary']]
  assert {one.source_plan.keep for one in policies} == {8, 4}
  twins = small_twins.SmallTwins(None, None, None)
  monkeypatch.setattr(runs, 'load_twins', lambda folder: twins)
  found, _ = adaptive_entries.systems_of(ABOUT, ['small twins'])
  assert [one.policy.layer_plan.choices for one in found['small twins']] == [
    (1, 1, 2, 1),
    (1, 2, 2, 1),
    (1, 2, 2, 2),
    (2, 2, 2, 2),
  ]
  assert len({adaptive_entries.family_of(one) for one in policies}) == 1


def test_certificates_join_the_system_that_has_their_slots(tmp_path):
  systems, _ = adaptive_entries.systems_of(
    ABOUT, ['CALM, exact K/V', 'kept layers (ULS)', 'SkipDecode']
  )
  exact = systems['CALM, exact K/V'][0].policy
  kept = decoding.ComputePolicy(layer_plan=decoding.KeepLayers(2))
  state = decoding.ComputePolicy(
    exit_rule=exits.ConfidenceExit(
      exits.StateSimilarity(), exits.ConstantThreshold(0.9)
    )
  )
  paths = [
    certify(tmp_path / 'between.json', exact, 0.65),
    certify(tmp_path / 'kept.json', kept, {'layer_plan.num_layers': 2}),
    certify(tmp_path / 'other.json', state, 0.9),
  ]
  found = adaptive_certificates.entries_of(systems, 'nowhere', paths)
  certified = [one for one in found if one.certified.promises]
  assert [one.key for one in certified] == [
    ('CALM, exact K/V', 'threshold 0.65', 'textual 0.9'),
    ('kept layers (ULS)', '2 layers', 'textual 0.9'),
    ('ConfidenceExit, StateSimilarity', 'threshold 0.9', 'textual 0.9'),
  ]
  # The bare setting of what is certified is not measured twice.
  assert [
    one.setting.words for one in found if one.system == 'kept layers (ULS)'
  ] == ['3 layers', '1 layers', '2 layers']
  assert decoding.threshold_of(certified[0].setting.policy) == 0.65
  nothing = calibrate(np.ones((300, 1)), [0.5], tolerance=0.1, error_rate=0.05)
  nothing.save(tmp_path / 'nothing.json')
  with pytest.raises(ValueError, match='nothing.json certifies nothing'):
    adaptive_certificates.entries_of({}, 'x', [str(tmp_path / 'nothing.json')])


def test_the_clock_is_for_the_certified_and_the_cheapest_good_ones():
  full = row_of(records.FULL_SYSTEM)
  certified = row_of('a', '9', outcomes=(OUTCOME,), flops=0.9)
  good = row_of('a', '5', flops=0.5, quality=49.2)
  bad = row_of('a', '1', flops=0.1, quality=48.9)
  worse = row_of('b', '1', flops=0.1, quality=10.0)
  better = row_of('b', '3', flops=0.3, quality=20.0)
  rows = [certified, good, bad, worse, better]
  for drop, cheapest in ((1.0, good), (2.0, bad)):
    found = adaptive_steps.chosen(rows, full, drop=drop)
    assert found == [certified, cheapest, better]


RESULTS = pathlib.Path(measured_rows.__file__).parent / 'results'


def kept_in(path, *more, names=('toy', 'exits')):
  """Opens an output file as a command with these flags would."""
  flags = adaptive_systems._parse(
    ['--tokens=t', f'--output={path}', '--num_inputs=9', *more]
  )
  return kept_rows.KeptRows(
    flags,
    {},
    names=names,
    left_out=(),
    order=(),
    device='cpu',
    dtype='float32',
  )


def clock_at(size):
  return records.ArenaClock(size, 'unrolled', 2.0, 1.5)


def test_clocks_measured_otherwise_are_not_kept(tmp_path):
  path = tmp_path / 'rows.json'
  row = row_of('a', '1')
  no_clock = ('--batch_sizes=', '--depth_loops=unrolled,compacting')
  kept_in(path, *no_clock).put(row)
  timed = ('--batch_sizes=2,4', '--timed_inputs=2,8')
  # What was not timed may be timed in any way.
  kept = kept_in(path, *timed)
  kept.add_clocks({row.key: clock_at(2)})
  kept.add_clocks({row.key: clock_at(4)})
  # And is kept while nothing is timed, with how it was.
  kept_in(path, *no_clock).put(row)
  kept = kept_in(path, '--batch_sizes=2,8', '--timed_inputs=2,8')
  kept.add_clocks({row.key: clock_at(8)})
  assert [one.batch_size for one in kept[row.key].clocks] == [2, 4, 8]
  for more, message in (
    (['--depth_loops=compacting'], 'depth_loops unrolled, not compacting'),
    (['--num_repeats=5'], 'num_repeats 3, not 5'),
    (['--timed_inputs=2,9'], 'timed_inputs at batch size 4 8, not 9'),
  ):
    with pytest.raises(ValueError, match=f'{message}; .*another --output'):
      kept_in(path, *timed, *more)
  for names, message in (
    (('other', 'exits'), "--title 'toy', not 'other'"),
    (('toy', 'plans'), "--model 'exits', not 'plans'"),
  ):
    with pytest.raises(ValueError, match=f'{message}; .*another --output'):
      kept_in(path, *timed, names=names)


@pytest.mark.parametrize(
  ('name', 'model_name'), [('e2e_nlg', 'exits'), ('e2e_nlg_plans', 'plans')]
)
def test_published_rows_are_gone_on_with_by_their_command(
  name, model_name, tmp_path
):
  path = tmp_path / 'rows.json'
  path.write_bytes((RESULTS / f'adaptive_{name}_cpu.json').read_bytes())
  given = ['--num_inputs=100', '--tokens=runs/e2e_nlg/tokens/test.npz']
  timed = ['--batch_sizes=16', '--timed_inputs=32']
  names = 'e2e_nlg', model_name
  kept = kept_in(path, *given, *timed, names=names)
  assert len(kept.measured().rows) > 10
  with pytest.raises(ValueError, match='at batch size 16 32, not 48'):
    kept_in(path, *given, *timed, '--timed_inputs=48', names=names)


class FakeSystems:
  """Says what was decoded, and decodes nothing."""

  def __init__(self):
    self.decoded = []

  def row(self, entry):
    self.decoded.append(entry.key)
    outcomes = tuple(
      records.PromiseOutcome(
        **dataclasses.asdict(one), mean=0.0, standard_error=0.0
      )
      for one in entry.certified.promises
    )
    return row_of(
      entry.system,
      entry.setting.words,
      policy=adaptive_rows.digest_of(entry),
      outcomes=outcomes,
      error_rate=entry.certified.error_rate,
    )


def test_rows_of_replaced_certificates_go(tmp_path):
  systems, _ = adaptive_entries.systems_of(ABOUT, ['kept layers (ULS)'], most=1)
  plan = decoding.ComputePolicy(layer_plan=decoding.KeepLayers(2))
  said = []

  def measure(*paths):
    entries = adaptive_certificates.entries_of(systems, 'nowhere', paths)
    kept = kept_in(tmp_path / 'rows.json', '--batch_sizes=')
    kept.put(row_of(records.FULL_SYSTEM))
    fake = FakeSystems()
    adaptive_steps.measure(fake, entries, kept, {}, drop=1.0, say=said.append)
    rows = kept_in(tmp_path / 'rows.json', '--batch_sizes=').measured().rows
    return fake.decoded, {row.promised for row in rows if row.promised}

  def made(**context):
    setting = {'layer_plan.num_layers': 2}
    return certify(tmp_path / 'c.json', plan, setting, **context)

  bare, promised = measure()
  assert len(bare) == 1 and not promised
  first = measure(made())
  (key,) = first[0]
  assert key[2] == 'textual 0.9' and first[1] == {'textual 0.9'}
  assert measure(made()) == ([], {'textual 0.9'})
  # The same words at another rate and by another metric; another promise; none.
  assert measure(made(error_rate=0.1)) == ([key], {'textual 0.9'})
  assert measure(made(metric='bleu', error_rate=0.1)) == (
    [key],
    {'textual 0.9'},
  )
  decoded, promised = measure(made(loss='signed'))
  assert (len(decoded), promised) == (1, {'signed 0.9'})
  assert f'{", ".join(key)}: forgotten, as no' in ' '.join(said)
  assert measure()[1] == set()


def oracle_row(score, budget, **changes):
  numbers = dict.fromkeys(
    [
      field.name
      for field in dataclasses.fields(records.OracleRow)
      if field.type in (float, 'float')
    ],
    0.5,
  )
  return records.OracleRow(
    **{
      **numbers,
      'run': 'toy',
      'score': score,
      'decoding': 'greedy',
      'metric': 'rouge_l',
      'random': (0.1, 0.2, 0.3),
      'budget': budget,
      'mean_layers': budget,
      **changes,
    }
  )


def context(**flags):
  return records.RunContext(
    device='cpu', dtype='float32', details={'flags': flags}
  )


def test_oracles_join_at_what_their_layers_cost(tmp_path):
  path = tmp_path / 'oracles.json'
  rows = [
    oracle_row('quality', 2.0, oracle=0.6),
    oracle_row('consistency', 2.0, oracle=0.9),
    oracle_row('quality', 1.0, oracle=0.5),
    oracle_row('quality', 1.0, decoding='sampled', oracle=0.1),
  ]
  records.write_json(
    path, measured_rows.Measured(tuple(rows), context(num_inputs=7))
  )

  def read(number, metric, max_length=T, folder='run'):
    return list(
      adaptive_oracles.rows_of(
        str(path),
        ('toy', 'exits'),
        run_dir=f'{tmp_path}/{folder}/',
        tokens=f'{tmp_path}/test.npz',
        max_length=max_length,
        trained_length=T,
        num_inputs=number,
        metric=metric,
        cost_of_layers=lambda layers: layers / 4,
      )
    )

  one, two = read(7, 'rouge_l')
  assert (one.flops, two.flops) == (0.25, 0.5)
  assert (one.quality, two.quality) == (50.0, 60.0)
  assert math.isnan(one.distance) and two.distance == pytest.approx(0.1)
  for number, metric in ((8, 'rouge_l'), (7, 'bleu')):
    with pytest.raises(ValueError, match=f'not {number} by {metric}'):
      read(number, metric)
  flags = {
    'num_inputs': 7,
    'run_dir': f'{tmp_path}/run',
    'tokens': f'{tmp_path}/test.npz',
    'max_length': None,
  }
  for changes, asked, message in (
    ({}, {}, ''),
    ({'max_length': 5}, {'max_length': 5}, ''),
    ({}, {'max_length': 5}, '--max_length=None, not 5; run'),
    ({'max_length': 5}, {}, f'--max_length=5, not {T}; run'),
    ({}, {'folder': 'other'}, r'--run_dir=.*/run, not .*/other/; run'),
    ({'tokens': 'train.npz'}, {}, '--tokens=train.npz, not .*test.npz; run'),
  ):
    recorded = context(**{**flags, **changes})
    records.write_json(path, measured_rows.Measured(tuple(rows), recorded))
    if message:
      with pytest.raises(ValueError, match=message):
        read(7, 'rouge_l', **asked)
    else:
      assert len(read(7, 'rouge_l', **asked)) == 2


def test_table_and_picture():
  clock = records.ArenaClock(16, 'unrolled', 2.0, 1.5)
  rows = (
    row_of(records.FULL_SYSTEM, clocks=(clock,)),
    row_of('kept layers (ULS)', '2 layers', flops=0.6, quality=45.0),
    row_of(
      'kept layers (ULS)',
      '3 layers',
      flops=0.8,
      outcomes=(OUTCOME,),
      clocks=(clock,),
    ),
    row_of(records.ORACLE_SYSTEM, '2 layers', bytes=math.nan, flops=0.5),
  )
  other = tuple(
    dataclasses.replace(row, model='plans', quality=1.0) for row in rows
  )
  measured = [
    measured_rows.Measured(part, context(num_inputs=7, quality_drop=1.0))
    for part in (rows, other)
  ]
  shown = adaptive_table.table(*measured)
  assert 'batch: milliseconds' in shown.notes[-2]
  assert shown.header[-1] == 'batch 16'
  assert [cells[2:5] for cells in shown.rows[:3]] == [
    ('full model', '-', '-'),
    ('kept layers (ULS)', '3 layers', 'textual 0.05 (0.030)'),
    ('oracle over layers', '2 layers', '-'),
  ]
  assert [cells[-1] for cells in shown.rows[:3]] == [
    '2.00 (1.50x)',
    '2.00 (1.50x)',
    '-',
  ]
  assert 'at most 1 point of quality' in shown.notes[-1]
  assert len(adaptive_table.table(*measured, every=True).rows) == 8
  drawn = reporting.system_figure([*rows, *other])
  labels = [text.get_text() for text in drawn.legends[0].get_texts()]
  assert labels == [
    'full model',
    'kept layers (ULS)',
    'oracle over layers',
    'certified',
  ]
  assert [axes.get_title() for axes in drawn.axes] == [
    'toy, exits',
    'toy, plans',
  ]
  assert drawn.axes[0].get_ylim()[0] >= 25.0
  # A system looks the same on all axes.
  colours = [
    [line.get_color() for line in axes.get_lines()] for axes in drawn.axes
  ]
  assert colours[0] == colours[1]


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A run of random weights with tokens and a certificate."""
  folder = tmp_path_factory.mktemp('adaptive')
  config = text_cases.CONFIG
  text_cases.save_run(
    folder / 'run', params=model.init_params(config, jax.random.key(3))
  )
  rng = np.random.default_rng(0)
  training.write_npz(
    str(folder / 'test.npz'),
    [
      {
        'inputs': [*rng.integers(3, 264, size), 1],
        'targets': [*rng.integers(3, 264, 3), 1],
      }
      for size in rng.integers(2, 7, 5)
    ],
  )
  plan = decoding.KeepLayers(1)
  certify(
    folder / 'kept.json',
    decoding.ComputePolicy(layer_plan=plan),
    {'layer_plan.num_layers': 1},
  )
  return folder


def run(place, *more):
  adaptive_systems.main(
    [
      f'--run_dir={place / "run"}',
      f'--tokens={place / "test.npz"}',
      '--title=toy',
      '--num_inputs=4',
      '--metric=rouge_l',
      f'--max_length={T}',
      '--num_repeats=1',
      f'--output={place / "rows.json"}',
      *more,
    ]
  )
  return measured_rows.read(place / 'rows.json', SystemRow)


@pytest.mark.slow
def test_what_is_kept_is_not_done_twice(place, capsys):
  systems = '--systems=static depth;SoFT depth;kept layers (ULS)'
  measured = run(place, systems, '--batch_sizes=', '--timed_inputs=')
  full, static, truncated, kept = measured.rows
  assert (full.flops, full.bytes, full.mean_layers) == (1.0, 1.0, 2.0)
  # All say what the first layer alone says.
  for row in (static, truncated, kept):
    assert row.mean_layers == 1.0 and row.flops < 1 and row.bytes < 1
    assert row.quality == static.quality and not row.clocks
  # Nothing is made of the second layer.
  assert static.flops == pytest.approx(truncated.flops)
  assert kept.flops == pytest.approx(truncated.flops)
  assert 'decoding' in capsys.readouterr().err
  more = (
    systems,
    f'--certificates={place / "kept.json"}',
    '--batch_sizes=1,2',
    '--timed_inputs=1,2',
  )
  measured = run(place, *more)
  err = capsys.readouterr().err
  assert '1 of 3: static depth, 1 layers (kept)' in err
  assert '3 of 3: kept layers (ULS), 1 layers: decoding' in err
  *_, kept = measured.rows
  assert kept.outcomes[0].mean == kept.distance
  for row in measured.rows:
    assert [clock.batch_size for clock in row.clocks] == [1, 2]
  assert [clock.speed_up for clock in measured.rows[0].clocks] == [1.0, 1.0]
  again = run(place, *more)
  assert (
    records.to_jsonable(again)['rows']
    == (records.to_jsonable(measured)['rows'])
  )
  printed, err = capsys.readouterr()
  assert 'timing' not in err.split('2 of 3')[-1]
  assert '| toy | - | kept layers (ULS) | 1 layers | textual 0.9 (' in printed
  picture = place / 'adaptive.png'
  adaptive_systems.main(
    [f'--show={place / "rows.json"}', f'--picture={picture}']
  )
  assert picture.read_bytes().startswith(b'\x89PNG')
  with pytest.raises(SystemExit, match=r'has rows of num_inputs 4, not 3'):
    run(place, '--num_inputs=3', '--batch_sizes=')


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ([], 'give --run_dir, --tokens and --output'),
    (['--num_inputs=0'], 'num_inputs'),
    (['--batch_sizes=1,2', '--timed_inputs=8'], r'batch_sizes are \[1, 2\]'),
    (['--batch_sizes=4', '--timed_inputs=3'], 'inputs timed'),
    (['--batch_sizes=a'], "batch_sizes 'a' must be whole numbers, separated"),
    (['--batch_sizes=1.5'], "batch_sizes '1.5' must be whole"),
    (['--timed_inputs=many'], "timed_inputs 'many' must be whole"),
    (['--max_length=0'], 'max_length 0 must be a whole number at least 1'),
    (['--depth_loops=compacting'], 'nothing to compact at batch size 1; leave'),
    (['--quality_drop=nan'], 'quality_drop is nan'),
    (['--depth_loops=rolled'], 'rolled'),
    (['--systems=ULS', '--run_dir=nowhere'], 'nowhere'),
    (['--show=none.json'], 'none.json'),
  ],
)
def test_bad_flags_end_in_one_line(arguments, message):
  given = ['--run_dir=x', '--tokens=y', '--output=z'] if arguments else []
  with pytest.raises(SystemExit, match=message):
    adaptive_systems.main([*given, *arguments])


@pytest.mark.slow
def test_rooms_are_costed():
  """What a plan leaves of source and past is what is read."""
  config = text_cases.CONFIG
  params = model.init_params(config, jax.random.key(0))
  bound = decoding.bind(model.as_layered_decoder(config), params)
  result = jax.device_get(
    decoding.generate(bound, np.full((2, 8), 5), eos_id=-1, max_length=4)
  )
  scorer = SourceScorer(np.ones(16, 'f4'), np.float32(0))
  gates = ContextGates(
    np.ones((2, 16, 1), 'f4'), np.ones((2, 16, 1), 'f4'), np.ones(2, 'f4')
  )

  def cost(**slots):
    policy = decoding.ComputePolicy(**slots)
    return policy_costs.per_token(config, result, policy, source_length=8)

  full = cost()
  source = cost(source_plan=decoding.PrunedSource(scorer, 2))
  past = cost(layer_plan=decoding.PrunedContext(gates, 1))
  # Keys and values of a layer are 2 * 16 numbers of 4 bytes a position.
  of_position = 2 * 2 * 16 * 4
  assert full.bytes - source.bytes == 6 * of_position
  assert full.bytes - past.bytes == 3 * of_position
  assert full.flops - source.flops == 6 * of_position / 2
