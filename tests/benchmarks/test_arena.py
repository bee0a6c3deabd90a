"""The arena: everybody decodes the same, and what was promised is checked."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from cases import text_cases, tuning_cases

from calm_jax import decoding, exits, model, records, reporting, runs, training
from calm_jax.benchmarks import arena, arena_entries, arena_table, measured_rows
from calm_jax.calibration import calibrate
from calm_jax.records import ArenaRow
from calm_jax.reporting import arena_figures

MARGIN = exits.ConfidenceExit(
  exits.SoftmaxMargin(), exits.ConstantThreshold(1.0)
)
EXACT = decoding.ComputePolicy(exit_rule=MARGIN, cache_fill=decoding.CatchUp())
DRAFTS = dataclasses.replace(
  decoding.with_setting(EXACT, 0.1), verification=decoding.VerifyEvery(3)
)


OUTCOME = records.PromiseOutcome(
  loss='textual',
  metric='rouge_l',
  tolerance=0.1,
  mean=0.01,
  standard_error=0.0,
)


def certify(path, policy, *, tolerance, threshold=0.0, **context):
  """Writes a certificate of a threshold for a policy."""
  certificate = calibrate(
    np.zeros((300, 1)),
    [threshold],
    tolerance=tolerance,
    error_rate=0.05,
    context={
      'policy': decoding.describe(policy, threshold),
      'loss': 'textual',
      'metric': 'rouge_l',
      **context,
    },
  )
  certificate.save(path)
  return str(path)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A run of random weights with tokens, certificates and a tuning."""
  folder = tmp_path_factory.mktemp('arena')
  config = text_cases.CONFIG
  run = text_cases.save_run(
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
      for size in rng.integers(2, 7, 9)
    ],
  )
  certify(folder / 'loose.json', EXACT, tolerance=0.9, loss='signed')
  certify(folder / 'strict.json', EXACT, tolerance=0.02)
  slow, fast = (
    tuning_cases.candidate(
      'drafts',
      setting,
      milliseconds,
      (),
      lossless=True,
    )
    for setting, milliseconds in ((0.5, 9.0), (0.1, 8.0))
  )
  fast = dataclasses.replace(fast, described=decoding.describe(DRAFTS, {}))
  chosen = dataclasses.replace(
    tuning_cases.candidate('exact', 0.0, 4.0, (0.1,), certified=True),
    described=decoding.describe(decoding.with_setting(EXACT, 0.0), {}),
  )
  tuned = folder / 'run' / 'tuned'
  tuned.mkdir()
  certify(tuned / 'certificate.json', EXACT, tolerance=0.9, loss='signed')
  records.write_json(
    tuned / records.TUNED_NAME,
    tuning_cases.tuning(
      candidates=(slow, fast, chosen),
      front=(2,),
      sequence=(2,),
      paper=None,
      chosen=2,
      certificate='certificate.json',
    ),
  )
  return folder, str(run)


def test_entries_are_made_from_certificates_and_tunings(folder):
  place, run = folder
  certified = arena_entries.of_certificates(
    run, [str(place / 'loose.json'), str(place / 'strict.json')]
  )
  assert [one.name for one in certified] == [
    'SoftmaxMargin, exact K/V at 0, signed 0.9',
    'SoftmaxMargin, exact K/V at 0, textual 0.02',
  ]
  assert all(
    one.policy == decoding.with_setting(EXACT, 0.0) for one in certified
  )
  drafts, chosen = arena_entries.of_tuning(run, 'tuned')
  assert (drafts.policy, drafts.lossless, drafts.promises) == (DRAFTS, True, ())
  assert chosen.name == 'tuned at batch 8: exact, threshold 0, signed 0.9'
  assert [one.tolerance for one in chosen.promises] == [0.9]
  assert arena_entries.each_once([chosen, drafts, chosen]) == [chosen, drafts]
  other = dataclasses.replace(chosen, policy=EXACT)
  with pytest.raises(ValueError, match=r"different entries are called 'tuned"):
    arena_entries.each_once([chosen, drafts, other])
  with pytest.raises(FileNotFoundError, match=r'tune writes it'):
    arena_entries.of_tuning(run, 'elsewhere')
  loaded = runs.load_run(run)
  for entry in (*certified, chosen, drafts):
    arena_entries.check_holds(entry, loaded, max_length=6)
  path = certify(
    place / 'other.json', EXACT, tolerance=0.1, parameters='of another run'
  )
  (other,) = arena_entries.of_certificates(run, [path])
  with pytest.raises(ValueError, match=r'certificate of SoftmaxMargin.*param'):
    arena_entries.check_holds(other, loaded, max_length=6)


def test_policies_without_a_threshold_are_named(tmp_path):
  every = decoding.ComputePolicy()
  path = tmp_path / 'certificate.json'
  certificate = calibrate(
    np.zeros((300, 1)),
    [{}],
    tolerance=0.1,
    error_rate=0.05,
    context={'policy': decoding.describe(every, {}), 'loss': 'textual'},
  )
  certificate.save(path)
  (one,) = arena_entries.of_certificates('nowhere', [str(path)])
  assert one.name == 'NeverExit, textual 0.1'


def test_plans_are_named_by_what_they_leave_out(tmp_path):
  """With the fields that were certified, and no deferred twin."""
  plans = {
    'KeepLayers at num_layers 5': (
      decoding.KeepLayers(5),
      {'layer_plan.num_layers': 5},
    ),
    'SkipDecode at max_layers 8, min_layers 4': (
      decoding.SkipDecode(8, 4, length=6),
      {'layer_plan.max_layers': 8, 'layer_plan.min_layers': 4},
    ),
    'SkipSaturatedFeedForward at 0.9': (
      decoding.SkipSaturatedFeedForward(0.9),
      0.9,
    ),
  }
  for name, (plan, setting) in plans.items():
    path = certify(
      tmp_path / 'certificate.json',
      decoding.ComputePolicy(layer_plan=plan),
      tolerance=0.1,
      threshold=setting,
    )
    (one,) = arena_entries.of_certificates('nowhere', [path])
    assert one.name == f'{name}, textual 0.1'
    assert one.policy.layer_plan == plan
    row = ArenaRow(
      run='a',
      name=one.name,
      kind='certified',
      outcomes=(OUTCOME,),
      error_rate=0.05,
      distance=0.01,
      quality=1.0,
      metric='rouge_l',
      mean_layers=1.0,
      cost=1.0,
      clocks=(),
    )
    assert arena_figures._family(row) == name.split(' at ')[0]
  tuned = dataclasses.replace(
    row, name='tuned at batch 16: kept layers, layer_plan.num_layers 5'
  )
  assert arena_figures._family(tuned).startswith('tuned at batch 16: kept')


def test_lossless_is_looked_at():
  row = ArenaRow(
    run='a',
    name='drafts',
    kind='lossless',
    outcomes=(),
    error_rate=math.nan,
    distance=0.001,
    quality=1.0,
    metric='rouge_l',
    mean_layers=1.0,
    cost=1.0,
    clocks=(),
  )
  assert row.kept is False
  assert dataclasses.replace(row, distance=0.0).kept is True


@pytest.mark.slow
def test_everybody_decodes_the_same_inputs(folder, monkeypatch, capsys):
  place, run = folder

  def installed_peers(params, config, folder, *, max_length):
    del params, config, folder
    return {'peer': lambda inputs: np.full((len(inputs), max_length), 3)}

  monkeypatch.setattr(arena.peers, 'installed_peers', installed_peers)
  output, picture = str(place / 'rows.json'), place / 'arena.png'
  arena.main(
    [
      f'--run_dir={run}',
      '--title=toy',
      f'--tokens={place / "test.npz"}',
      f'--certificates={place / "loose.json"},{place / "strict.json"}',
      '--tuned=tuned',
      '--num_inputs=7',
      '--batch_sizes=1,3',
      '--timed_inputs=2,6',
      '--max_length=6',
      '--num_repeats=1',
      '--depth_loops=unrolled',
      '--metric=rouge_l',
      '--peers',
      f'--output={output}',
    ]
  )
  printed = capsys.readouterr().out
  measured = measured_rows.read(output, ArenaRow)
  full, loose, strict, drafts, tuned, peer = measured.rows
  assert [row.kind for row in measured.rows] == [
    'full',
    'certified',
    'certified',
    'lossless',
    'certified',
    'other program',
  ]
  assert full.distance == drafts.distance == 0
  assert full.quality == drafts.quality
  assert full.cost == 1.0 and full.mean_layers == 2
  # Everything leaves after the first layer; exact K/V catch nothing up then.
  for row in (loose, strict, tuned):
    assert row.mean_layers == 1 and row.cost < 1
    assert row.distance > 0.02
  assert strict.distance == strict.outcomes[0].mean
  assert loose.outcomes[0].mean == pytest.approx(
    (full.quality - loose.quality) / 100
  )
  # Drafts and the checks of them are more arithmetic, not less.
  assert drafts.cost > 1
  assert (loose.kept, strict.kept, drafts.kept) == (True, False, True)
  assert full.kept is None and peer.kept is None
  assert peer.distance > 0 and math.isnan(peer.cost)
  for row in measured.rows:
    assert [clock.batch_size for clock in row.clocks] == [1, 3]
    for clock in row.clocks:
      assert clock.milliseconds_per_token > 0
  assert [clock.speed_up for clock in full.clocks] == [1.0, 1.0]
  assert '| toy | SoftmaxMargin, exact K/V at 0 | signed 0.9 | yes' in (printed)
  arena.main([f'--show={output}', f'--picture={picture}'])
  assert capsys.readouterr().out == printed
  assert picture.read_bytes().startswith(b'\x89PNG')


def test_one_table_and_picture_of_several_runs():
  def row(run, batch, **changes):
    clock = records.ArenaClock(batch, 'unrolled', 2.0, 1.5)
    return ArenaRow(
      **{
        'run': run,
        'name': 'SoftmaxMargin, exact K/V at 0.6, textual 0.05',
        'kind': 'certified',
        'outcomes': (),
        'error_rate': 0.1,
        'distance': 0.04,
        'quality': 50.0,
        'metric': 'rouge_l',
        'mean_layers': 3.0,
        'cost': 0.4,
        'clocks': (clock,),
        **changes,
      }
    )

  context = records.RunContext(
    device='cpu', dtype='float32', details={'flags': {'num_inputs': 7}}
  )
  measured = [
    measured_rows.Measured((row('a', 1),), context),
    measured_rows.Measured((row('b', 16),), context),
  ]
  shown = arena_table.table(*measured)
  assert shown.header[-2:] == (
    'ms per token at batch 1',
    'ms per token at batch 16',
  )
  assert [cells[-2:] for cells in shown.rows] == [
    ('2.00 (1.50x)', '-'),
    ('-', '2.00 (1.50x)'),
  ]
  assert 'probability 0.9 over' in shown.notes[0]
  assert 'a on 7 by rouge_l, b on 7 by rouge_l' in shown.notes[1]
  drawn = reporting.arena_figure(
    [one for part in measured for one in part.rows]
  )
  assert len(drawn.axes) == 4
  outcome = records.PromiseOutcome(
    loss='textual',
    metric='rouge_l',
    tolerance=0.05,
    mean=math.nan,
    standard_error=math.nan,
  )
  assert arena_figures._family(row('a', 1, outcomes=(outcome,))) == (
    'SoftmaxMargin, exact K/V'
  )


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ([], 'give --run_dir and --tokens'),
    (
      ['--run_dir=x', '--tokens=y', '--batch_sizes=1'],
      r'batch_sizes are \[1\] and timed_inputs',
    ),
    (['--run_dir=nowhere', '--tokens=none.npz'], 'nowhere'),
    (['--show=none.json'], 'none.json'),
  ],
)
def test_bad_flags_end_in_one_line(arguments, message):
  with pytest.raises(SystemExit, match=message):
    arena.main(arguments)
