"""The arena: everybody decodes the same, and what was promised is checked."""

import dataclasses
import math
import types

import jax
import numpy as np
import pytest
from cases import text_cases, tuning_cases

from calm_jax import decoding, exits, model, records, reporting, runs, training
from calm_jax.benchmarks import (
  arena,
  arena_additions,
  arena_entries,
  arena_peers,
  arena_table,
  measured_rows,
  t5x_calm,
)
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


def row_of(**changes):
  """Returns a row of the arena."""
  return ArenaRow(
    **{
      'run': 'a',
      'name': 'drafts',
      'kind': 'lossless',
      'outcomes': (),
      'error_rate': math.nan,
      'distance': 0.001,
      'quality': 1.0,
      'metric': 'rouge_l',
      'mean_layers': 1.0,
      'cost': 1.0,
      'clocks': (),
      **changes,
    }
  )


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
    row = row_of(name=one.name, kind='certified', outcomes=(OUTCOME,))
    assert arena_figures._family(row) == name.split(' at ')[0]
  tuned = dataclasses.replace(
    row, name='tuned at batch 16: kept layers, layer_plan.num_layers 5'
  )
  assert arena_figures._family(tuned).startswith('tuned at batch 16: kept')


def test_margins_that_nobody_certified_enter_beside_t5x():
  paper, released = arena_entries.of_margins([0.25])
  assert (paper.name, released.name) == (
    'SoftmaxMargin at 0.25',
    'SoftmaxMargin, K/V from layer 1 at 0.25',
  )
  assert isinstance(paper.policy.cache_fill, decoding.ProjectExitState)
  assert isinstance(released.policy.cache_fill, decoding.ProjectFirstExitState)
  for entry in (paper, released):
    assert entry.policy.exit_rule.threshold == exits.ConstantThreshold(0.25)
    assert entry.promises == () and math.isnan(entry.error_rate)


def batch_of_two():
  """Returns what a fake T5X's CALM decodes, two layers where two rows are."""

  def decode(inputs):
    tokens = np.array([[3, 4, 1, 0]] * len(inputs))
    layers = np.where(tokens != 0, len(inputs), 9)
    return t5x_calm.Said(tokens, layers, np.zeros(tokens.shape))

  return t5x_calm.T5XCalm(decode, 'ours')


def test_rows_that_leave_together_are_decoded_one_by_one():
  decode = batch_of_two()
  sources = [np.array([5, 1]), np.array([6, 7, 1])]
  outputs = arena_peers.decode_all(decode, sources)
  assert outputs.tokens.shape == (2, 4)
  # Padding has no layers.
  assert outputs.mean_layers == 1
  batch = np.array([[5, 1, 0], [6, 7, 1]])
  assert arena_peers.layers_in_batches(decode, [batch]) == 2
  assert decode(batch).shape == (2, 4)
  ours = types.SimpleNamespace(tokens=np.array([[3, 4, 1, 0], [3, 1, 0, 0]]))
  assert arena_peers.agreement(decode, outputs, {'ours': ours}) == ('ours', 0.5)
  name, share = arena_peers.agreement(decode, outputs, {})
  assert name == '' and math.isnan(share)
  # Other programs say tokens and nothing else, in batches that are filled.
  plain = arena_peers.decode_all(lambda rows: rows[:, :2], sources)
  np.testing.assert_array_equal(plain.tokens, [[5, 1], [6, 7]])
  assert math.isnan(plain.mean_layers)
  assert math.isnan(arena_peers.layers_in_batches(lambda rows: rows, [batch]))


def test_what_t5x_lacks_is_named(monkeypatch):
  monkeypatch.setattr(t5x_calm, 'NEEDED', ('json', 'no_such_package'))
  with pytest.raises(ImportError, match=r'Python path: no_such_package \(calm'):
    t5x_calm.of_model(
      {}, text_cases.CONFIG, max_length=3, thresholds={}, full=''
    )


def measured_of(*rows, **flags):
  """Returns rows as if they had been measured with these flags."""
  flags = {
    'tokens': 'test.npz',
    'num_inputs': 7,
    'max_length': None,
    'metric': None,
    **flags,
  }
  context = records.RunContext(
    device='cpu', dtype='float32', command='arena', details={'flags': flags}
  )
  return measured_rows.Measured(rows, context)


def test_rows_are_added_to_those_of_a_file(tmp_path):
  before = measured_of(row_of(name='full model'), row_of(name='drafts'))
  new = measured_of(
    row_of(name='full model', quality=2.0),
    row_of(name='drafts', quality=3.0),
    row_of(name="T5X's CALM", kind='other program'),
  )
  for _ in range(2):
    before = arena_additions.added(before, new, path='a.json')
  assert [(row.name, row.quality) for row in before.rows] == [
    ('full model', 1.0),
    ('drafts', 3.0),
    ("T5X's CALM", 1.0),
  ]
  notes = before.context.details['added']
  assert [note['rows'] for note in notes] == [['drafts', "T5X's CALM"]] * 2
  records.write_json(tmp_path / 'a.json', before)
  again = measured_rows.read(tmp_path / 'a.json', ArenaRow)
  assert again.context == before.context
  assert [row.name for row in again.rows] == [row.name for row in before.rows]
  context = dataclasses.replace(new.context, device='another')
  with pytest.raises(ValueError, match=r'measured on cpu .* another'):
    arena_additions.added(
      before, dataclasses.replace(new, context=context), path='a.json'
    )


def test_rows_of_other_inputs_are_not_added():
  before = measured_of(row_of())
  flags = dict(before.flags)
  arena_additions.check_same_inputs(before, flags, 'a', path='a.json')
  with pytest.raises(
    ValueError, match=r'a.json .*--num_inputs was 7 and is 8, --title was a and'
  ):
    arena_additions.check_same_inputs(
      before, {**flags, 'num_inputs': 8}, 'b', path='a.json'
    )


def test_rows_of_another_run_are_not_added(tmp_path):
  before = measured_of(row_of(), run_dir=str(tmp_path / 'one'))
  same = {**before.flags, 'run_dir': f'{tmp_path}/two/../one/'}
  arena_additions.check_same_inputs(before, same, 'a', path='a.json')
  other = {**same, 'run_dir': str(tmp_path / 'two')}
  with pytest.raises(ValueError, match=r'--run_dir was .*/one and is .*/two'):
    arena_additions.check_same_inputs(before, other, 'a', path='a.json')


def test_lossless_is_looked_at():
  row = row_of()
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


@pytest.mark.slow
def test_t5x_is_added_later(folder, monkeypatch, capsys):
  place, run = folder
  made = []

  def of_model(params, config, *, max_length, thresholds, full):
    del params, config
    made.append((thresholds, full))

    def decode(inputs):
      tokens = np.full((len(inputs), max_length), 3)
      return t5x_calm.Said(tokens, tokens - 1, tokens)

    return {"T5X's CALM": t5x_calm.T5XCalm(decode, full)}

  flags = [
    f'--run_dir={run}',
    f'--tokens={place / "test.npz"}',
    '--num_inputs=3',
    '--batch_sizes=1',
    '--timed_inputs=1',
    '--max_length=6',
    '--num_repeats=1',
    '--depth_loops=unrolled',
    '--metric=rouge_l',
  ]
  path = str(place / 'later.json')
  monkeypatch.setattr(t5x_calm, 'NEEDED', ('no_such_package',))
  arena.main([*flags, '--t5x_calm=0.5', f'--output={path}'])
  assert "arena: T5X's CALM is left out: not on" in capsys.readouterr().err
  names = [row.name for row in measured_rows.read(path, ArenaRow).rows]
  released = 'SoftmaxMargin, K/V from layer 1 at 0.5'
  assert names == ['full model', 'SoftmaxMargin at 0.5', released]
  monkeypatch.setattr(arena.t5x_calm, 'of_model', of_model)
  arena.main([*flags, '--t5x_calm=0.5', f'--add_to={path}'])
  assert made == [({0.5: released}, 'full model')]
  *ours, theirs = measured_rows.read(path, ArenaRow).rows
  assert [row.name for row in ours] == names
  assert [row.kind for row in ours] == ['full', 'uncertified', 'uncertified']
  assert (theirs.name, theirs.mean_layers) == ("T5X's CALM", 2)
  assert (theirs.same_as, theirs.same_outputs) == ('full model', 0)
  with pytest.raises(SystemExit, match=r'--num_inputs was 3 and is 2'):
    arena.main([*flags, '--num_inputs=2', f'--add_to={path}'])


def test_the_table_says_how_t5x_leaves():
  clocks = tuple(
    records.ArenaClock(size, '-', 9.0, 0.5, layers)
    for size, layers in ((1, 2.5), (16, 7.25))
  )
  t5x = row_of(
    name="T5X's CALM at 0.6",
    kind='other program',
    clocks=clocks,
    same_as='ours',
    same_outputs=0.995,
  )
  shown = arena_table.table(measured_of(t5x))
  assert shown.rows[0][-2:] == ('9.00 (0.50x)', '9.00 (0.50x, 7.25 layers)')
  assert shown.notes[-1].endswith("for T5X's CALM at 0.6 on a 99.5 % (ours).")
  # Full depth is full depth in every batch.
  whole = dataclasses.replace(t5x, mean_layers=7.25)
  assert arena_table.table(measured_of(whole)).rows[0][-1] == '9.00 (0.50x)'
  assert len(arena_table.table(measured_of(row_of())).notes) == 4


def test_one_table_and_picture_of_several_runs():
  def row(run, batch, **changes):
    clock = records.ArenaClock(batch, 'unrolled', 2.0, 1.5)
    return row_of(
      **{
        'run': run,
        'name': 'SoftmaxMargin, exact K/V at 0.6, textual 0.05',
        'kind': 'certified',
        'error_rate': 0.1,
        'distance': 0.04,
        'quality': 50.0,
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
  # Places of batch sizes that a run was not timed at stay empty.
  assert [axes.axison for axes in drawn.axes] == [True, False, False, True]
  labels = [
    (axes.get_xlabel() != '', axes.get_ylabel()[:1]) for axes in drawn.axes
  ]
  assert labels == [(True, 'a'), (False, ''), (False, ''), (True, 'b')]
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
    (
      [
        '--run_dir=x',
        '--tokens=y',
        '--batch_sizes=1,4',
        '--timed_inputs=2,8',
        '--depth_loops=compacting',
      ],
      'nothing to compact at batch size 1; leave 1 out',
    ),
    (['--run_dir=x', '--tokens=y', '--batch_sizes=a'], "batch_sizes 'a' must"),
    (
      ['--run_dir=x', '--tokens=y', '--batch_sizes=', '--timed_inputs='],
      "batch_sizes '' has none",
    ),
    (['--run_dir=x', '--tokens=y', '--max_length=0'], 'max_length 0 must'),
    (['--run_dir=nowhere', '--tokens=none.npz'], 'nowhere'),
    (['--show=none.json'], 'none.json'),
    (['--show=a.json', '--add_to=a.json'], 'give --add_to without --output'),
    (['--run_dir=x', '--tokens=y', '--add_to=none.json'], 'none.json'),
    (['--run_dir=x', '--tokens=y', '--t5x_calm=0.6,1'], "the threshold '1'"),
    (['--run_dir=x', '--tokens=y', '--t5x_calm=high'], "threshold 'high'"),
  ],
)
def test_bad_flags_end_in_one_line(arguments, message):
  with pytest.raises(SystemExit, match=message):
    arena.main(arguments)
