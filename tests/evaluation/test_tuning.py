"""A tuning of several policies: screened, tested, chosen, interrupted."""

import dataclasses
import itertools
import types

import numpy as np
import pytest
from fakes import toy_decoder
from fakes.told_clock import time_decode_like

from calm_jax import calibration, decoding, evaluation, exits, records
from calm_jax.evaluation import candidates as candidates_module
from calm_jax.evaluation import timing, tuning_clock, tuning_rows

MAX_LENGTH = 4
MARGIN = exits.ConfidenceExit(exits.SoftmaxMargin(), 1.0)
STATIC = exits.ConfidenceExit(
  exits.SoftmaxMaximum(), exits.ConstantThreshold(1.0)
)
LOSSLESS = decoding.ComputePolicy(
  exit_rule=MARGIN,
  cache_fill=decoding.CatchUp(),
  verification=decoding.VerifyEvery(2),
)
MARGINS = evaluation.Candidates(
  name='margin', policy=MARGIN, settings=(0.95, 0.9, 0.7)
)
MAXIMA = evaluation.Candidates(
  name='maximum', policy=STATIC, settings=(0.95, 0.9)
)
DRAFTS = evaluation.Candidates(name='drafts', policy=LOSSLESS, settings=())
SPACE = (MARGINS, MAXIMA, DRAFTS)
# Milliseconds of a step; the full model takes 10.
TIMES = {
  'margin, threshold 0.95': 7.5,
  'margin, threshold 0.9': 6.0,
  'margin, threshold 0.7': 4.0,
  'maximum, threshold 0.95': 7.0,
  'maximum, threshold 0.9': 5.0,
  'drafts': 8.0,
}

RUN_CONTEXT = records.RunContext(device='toy', dtype='float32')


def same_words(prediction, references):
  """Share of words at their places in the best reference."""
  words = prediction.split()
  return max(
    float(np.mean([a == b for a, b in zip(words, text.split(), strict=True)]))
    for text in references
  )


def make_batches(number=120, batch_size=20):
  rows = np.arange(number)
  tokens = np.stack([1 + rows % 9, 1 + rows // 9 % 9, 1 + rows // 81], axis=1)
  return [
    {
      'encoder_input_tokens': tokens[start : start + batch_size].astype('i4'),
      'num_valid': min(batch_size, number - start),
    }
    for start in range(0, number, batch_size)
  ]


@pytest.fixture(autouse=True)
def times(monkeypatch):
  """A clock that says what a test wants; how often it was asked."""
  told = {**TIMES, 'asked': 0}
  told_clock = time_decode_like(told)
  monkeypatch.setattr(tuning_clock, 'time_decode', told_clock)
  return told


def tune(space=SPACE, *, batches=None, folder=None, said=None, **changes):
  decode = evaluation.DatasetDecoder(
    bound=toy_decoder.toy_bound(),
    detokenize=lambda ids: ' '.join(map(str, ids)),
    max_length=MAX_LENGTH,
    eos_id=-1,
    keep_in=None if folder is None else str(folder / 'decodes'),
  )
  plan = evaluation.TuningPlan(
    **{
      'loss': evaluation.textual_loss(same_words),
      'tolerance': 0.65,
      'batch_size': 2,
      **changes,
    }
  )
  return evaluation.run_tuning(
    decode,
    make_batches() if batches is None else batches,
    space,
    plan,
    run_context=RUN_CONTEXT,
    context={'task': 'toys'},
    screened_path=None if folder is None else folder / 'screened.json',
    uses_in=None if folder is None else folder / 'uses',
    progress=None if said is None else said.append,
  )


def test_the_fastest_of_the_certified_is_chosen(tmp_path):
  said = []
  found = tune(folder=tmp_path, said=said)
  tuning, certificate = found.tuning, found.certificate
  chosen = tuning.choice
  assert chosen.certified and certificate.certified
  certified = [tuning.candidates[place] for place in tuning.certified]
  assert chosen.milliseconds == min(one.milliseconds for one in certified)
  assert chosen.milliseconds < 8, 'drafts take 8 and need no test'
  # An ordinary certificate of one setting of one policy, by rows that test.
  assert certificate.setting == chosen.setting
  assert certificate.num_examples == len(tuning.test_ids) == 60
  assert not {*tuning.test_ids} & {*tuning.screening_ids}
  assert certificate.context['examples'] == records.digest_of_rows(
    tuning.test_ids
  )
  seen = records.read_seen_rows(certificate.context)
  assert (seen.given, seen.used) == (60, 60)
  assert 'Made on' in certificate.describe()
  assert certificate.risks[0] == pytest.approx(chosen.test_means[0])
  assert certificate.p_values[0] == chosen.test_p_value <= 0.05
  assert certificate.context['tuning']['policy'] == chosen.policy
  assert 'Chosen by a tuning of 6 candidates' in certificate.describe()
  assert 'with probability at least 0.95' in tuning.sentence
  assert 'times as fast as the full model at batch size 2' in tuning.sentence
  # The same that a calibration of this one setting on these rows says.
  table = found.tested
  (column,) = [
    place
    for place, setting in enumerate(table.settings)
    if setting == {'policy': chosen.policy, 'setting': chosen.setting}
  ]
  alone = calibration.calibrate(
    table.losses[:, [column]], [chosen.setting], tolerance=0.65
  )
  assert alone.p_values == certificate.p_values
  assert decoding.describe(found.policy, {}) == chosen.described
  assert any('60 inputs screen, 60 others test' in line for line in said)
  records.write_json(tmp_path / 'tuned.json', tuning)
  read = records.read_record(tmp_path / 'tuned.json', records.Tuning)
  assert records.to_jsonable(read) == records.to_jsonable(tuning)


def test_what_was_screened_is_what_tables_say(tmp_path):
  tuning = tune(folder=tmp_path).tuning
  table = records.read_loss_table(tmp_path / records.SCREENING_TABLE)
  lossy = [one for one in tuning.candidates if not one.lossless]
  assert table.settings == tuple(
    {'policy': one.policy, 'setting': one.setting} for one in lossy
  )
  expected = calibration.screen(
    [table.losses],
    [one.milliseconds for one in lossy],
    [calibration.Bound(loss='textual', tolerance=0.65)],
    time_to_beat=8.0 / 1.05,
  )
  by_place = {place: lossy[place].label for place in range(len(lossy))}
  assert [tuning.candidates[c].label for c in tuning.sequence] == [
    by_place[place] for place in expected.sequence
  ]
  for one, mean in zip(lossy, table.losses.mean(axis=0), strict=True):
    assert one.screening_means == (mean,)
  # CALM's own choice is of the first policy that may lose something.
  assert tuning.compared == 'margin'
  assert tuning.candidates[tuning.paper].policy == 'margin'


def test_an_interrupted_tuning_goes_on_with_the_same_tests(
  tmp_path, monkeypatch, times
):
  generate, calls = decoding.generate, []

  def counted(*arguments, **keywords):
    calls.append(1)
    return generate(*arguments, **keywords)

  monkeypatch.setattr(decoding, 'generate', counted)
  whole = tune(folder=tmp_path / 'whole')
  total, calls[:] = len(calls), []
  column = tuning_rows.HalfOfRows.column

  def killed(half, candidate, losses):
    if half.number and len(whole.tuning.sequence) and times['asked'] == 2:
      seen.append(candidate.label)
      if len(seen) == 2:
        raise KeyboardInterrupt
    return column(half, candidate, losses)

  seen = []
  monkeypatch.setattr(tuning_rows.HalfOfRows, 'column', killed)
  with pytest.raises(KeyboardInterrupt):
    tune(folder=tmp_path / 'parts')
  monkeypatch.setattr(tuning_rows.HalfOfRows, 'column', column)
  # Another clock would give another order: it is not asked again.
  times.update({'margin, threshold 0.95': 1.0, 'maximum, threshold 0.9': 9.5})
  found = tune(folder=tmp_path / 'parts')
  assert times['asked'] == 2
  # As they are written: from Python 3.13 on, NaN is not equal to itself here.
  assert records.to_jsonable(found.tuning) == records.to_jsonable(whole.tuning)
  whole_table, table = (
    records.read_loss_table(tmp_path / part / records.SCREENING_TABLE)
    for part in ('whole', 'parts')
  )
  np.testing.assert_array_equal(whole_table.losses, table.losses)
  assert found.certificate.p_values == whole.certificate.p_values
  assert len(calls) == total, 'as many decodes in two goes as in one'
  # One use of the rows, however often it was begun.
  assert len(list((tmp_path / 'parts' / 'uses').glob('*.json'))) == 1
  assert 'No other use' in found.certificate.describe()
  again = tune(folder=tmp_path / 'parts')
  assert len(calls) == total
  assert again.certificate == found.certificate
  # Other rows: screened anew, and the certificate tells of the first use.
  other = tune(folder=tmp_path / 'parts', seed=1)
  assert times['asked'] == 3
  assert '1 other calibration' in other.certificate.describe()


def test_what_is_not_certified_is_not_chosen(times):
  """Lossless drafts need no test, and compete; else it is the full model."""
  found = tune(tolerance=1e-3)
  assert found.tuning.choice.policy == 'drafts'
  assert found.certificate is None and found.policy.verifies
  assert "its outputs are the full model's" in found.tuning.sentence
  nothing = tune((MARGINS, MAXIMA), tolerance=1e-3)
  assert nothing.tuning.choice is None
  assert not nothing.certificate.certified
  assert nothing.policy == decoding.ComputePolicy()
  assert nothing.tuning.sentence.startswith('Decode with the full model')
  # Neither are drafts that are slower than the full model.
  times['drafts'] = 11.0
  assert tune((DRAFTS,)).tuning.choice is None
  # And who is slower than what is lossless is not tested.
  times['drafts'] = 0.5
  fast = tune()
  assert fast.tuning.sequence == () and fast.tested.settings == ()
  assert fast.tuning.choice.policy == 'drafts'


def test_rows_are_used_even_if_nothing_is_tested(times, tmp_path):
  """Their losses were shown: who calibrates on them then is told."""
  times['drafts'] = 0.5
  assert tune(folder=tmp_path).tuning.sequence == ()
  (use,) = (tmp_path / 'uses').glob('*.json')
  noted = records.read_record(use, records.RowUse)
  lossy = [one for one in tune().tuning.candidates if not one.lossless]
  assert len(noted.settings) == len(lossy)


def test_what_the_clock_was_asked_is_part_of_what_is_gone_on_with(
  times, tmp_path
):
  tune(folder=tmp_path)
  asked = times['asked']
  tune(folder=tmp_path)
  assert times['asked'] == asked
  for changes in (
    {'repeats': 5},
    {'timed_batches': 1},
    {'compared': 'maximum'},
    {'depth_loops': ('unrolled', 'shrinking')},
  ):
    tune(folder=tmp_path, **changes)
    asked += 1
    assert times['asked'] == asked, changes


def test_each_has_the_time_of_its_fastest_depth_loop(monkeypatch):
  # The clock itself, which sees every policy in both.
  seen = []

  def seconds(calls, num_repeats):
    slow = {'unrolled': 2.0, 'shrinking': 1.0}
    seen.extend(key[0] for key in calls if key[0] != 'start')
    return {
      key: [0.0 if key[0] == 'start' else slow[key[0][1]]] * num_repeats
      for key in calls
    }

  monkeypatch.setattr(tuning_clock, 'time_decode', timing.time_decode)
  monkeypatch.setattr(timing.stopwatch, 'interleaved_seconds', seconds)
  space = (dataclasses.replace(MARGINS, settings=(0.9,)),)
  tuning = tune(space, depth_loops=('unrolled', 'shrinking')).tuning
  policies = ['full model', *(one.label for one in tuning.candidates)]
  loops = 'unrolled', 'shrinking'
  assert set(seen) == set(itertools.product(policies, loops))
  assert {one.depth_loop for one in tuning.candidates} == {'shrinking'}
  assert tuning.full_depth_loop == tuning.depth_loop == 'shrinking'
  assert "in the depth loop 'shrinking'" in tuning.sentence


def test_a_loop_for_another_layout_needs_a_bind_of_its_own():
  # The toy decoder is bound to the loop of the backend.
  own = decoding.default_depth_loop()
  others = [
    name
    for name, loop in decoding.DEPTH_LOOPS.items()
    if loop.traced_layers != own.traced_layers
  ]
  with pytest.raises(ValueError, match='give bind, which binds to each'):
    tune(depth_loops=others[:1])


def test_the_baselines_name_is_taken():
  whole = evaluation.Candidates(
    name='full model', policy=decoding.ComputePolicy(), settings=()
  )
  with pytest.raises(ValueError, match=r"called 'full model'.*another name"):
    tune((whole,))


def test_what_gains_next_to_nothing_is_not_tested():
  """It would only end the tests of others, for a gain that clocks invent."""
  fastest = min(one.milliseconds for one in tune().tuning.candidates)
  just = 8.0 / fastest
  tested = tune(least_gain=0.999 * just).tuning
  assert [tested.candidates[c].milliseconds for c in tested.sequence] == [
    fastest
  ]
  assert tune(least_gain=1.001 * just).tuning.sequence == ()
  with pytest.raises(ValueError, match=r'least_gain is 0\.9; give 1 for'):
    evaluation.TuningPlan(least_gain=0.9)


@pytest.mark.parametrize(
  ('given', 'number'),
  [
    ({}, 8),
    ({'batch_size': 3}, 3),
    ({'batch_size': 16}, 2),
    ({'timed_batches': 1}, 1),
  ],
)
def test_enough_rows_are_timed(given, number):
  assert evaluation.TuningPlan(**given).num_timed == number


def test_several_promises_are_kept_together():
  batches = make_batches()
  for batch in batches:
    batch['references'] = [['1 2 3 4']] * batch['num_valid']
  losses = (
    evaluation.textual_loss(same_words),
    evaluation.signed_loss(same_words),
  )
  found = tune(
    batches=batches,
    loss='textual',
    tolerance=0.1,
    promises=[(losses[0], 0.65), (losses[1], 0.6)],
  )
  certificate = found.certificate
  assert [bound.loss for bound in certificate.promises] == ['textual', 'signed']
  assert len(found.tuning.choice.test_means) == 2
  assert found.tuning.choice.test_p_value == max(
    bound.p_values[0] for bound in certificate.promises
  )
  assert found.tested.other_losses.shape[0] == 1
  assert records.SIGNED_LOSS_NOTE in found.tuning.sentence


def test_time_that_is_over_leaves_candidates_out(monkeypatch):
  """What is there is screened and tested; the log says what is not."""
  now = iter(np.arange(0.0, 1000.0, 7.0))
  stopped = types.SimpleNamespace(monotonic=lambda: next(now))
  monkeypatch.setattr(tuning_clock, 'time', stopped)
  said = []
  found = tune(minutes=2, said=said)
  tuning = found.tuning
  assert tuning.left_out and len(tuning.candidates) < 6
  assert len(tuning.candidates) + len(tuning.left_out) == 6
  (line,) = [line for line in said if line.startswith('no time to screen')]
  assert all(label in line for label in tuning.left_out)
  assert any('minutes left' in line for line in said)
  assert found.certificate is not None


def test_a_sequence_is_thinned_to_the_time_that_is_left():
  fitting = tuning_clock.fitting
  arguments = dict(tests=[0.001, 0.01, 0.02, 0.3, 0.9], error_rate=0.05)
  sequence, seconds = (0, 1, 2, 3, 4), [10.0] * 5
  assert fitting(sequence, seconds, left=60, **arguments) == sequence
  assert fitting(sequence, seconds, left=35, **arguments) == (0, 2, 4)
  assert fitting(sequence, seconds, left=5, **arguments) == (2,)
  assert fitting((3, 4), seconds, left=5, **arguments) == (3,)
  assert fitting((), seconds, left=5, **arguments) == ()


def test_policies_take_turns_from_coarse_to_fine():
  labels = [one.label for one in candidates_module.in_turns(SPACE, MAX_LENGTH)]
  assert labels == [
    'margin, threshold 0.9',
    'maximum, threshold 0.9',
    'drafts',
    'margin, threshold 0.95',
    'maximum, threshold 0.95',
    'margin, threshold 0.7',
  ]
  assert sorted(candidates_module.coarse_first(20)) == [*range(20)]


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'space': ()}, 'the space is empty'),
    ({'space': (MARGINS, MARGINS)}, "2 policies .* are called 'margin'"),
    ({'space': 'margins'}, r'a list of evaluation\.Candidates'),
    ({'space': (MARGIN,)}, r'a list of evaluation\.Candidates'),
    (
      {'space': (dataclasses.replace(MARGINS, settings=(0.5000001, 0.5)),)},
      '2 candidates of the space are margin, threshold 0.5',
    ),
    ({'tolerance': 1.5}, r'tolerance 1\.5'),
    ({'error_rate': 1.5}, 'error_rate must be'),
    ({'promises': ()}, 'leave these two'),
    ({'minutes': 0}, 'minutes is 0'),
    ({'batch_size': 0}, 'batch_size 0 must be'),
    ({'depth_loops': ('rolled',)}, "depth loop 'rolled' is none of while"),
    ({'depth_loops': 'while'}, "depth_loops is 'while'; give some of"),
    ({'depth_loops': ()}, r'depth_loops is \(\); give some of'),
    (
      {'depth_loops': ('shrinking',), 'batch_size': 1},
      "'shrinking' is for batches, and batch_size is 1",
    ),
    ({'batch_size': 61}, 'a batch of 61 cannot be made of 60 inputs'),
    ({'screening_share': 1.0}, r'not in \(0, 1\)'),
    ({'compared': 'nobody'}, "compared is 'nobody', but .* margin, maximum"),
    ({'batches': make_batches(1, 1)}, '1 rows cannot screen and test'),
    ({'spent': 0.07}, 'spent is'),
    (
      {'space': (dataclasses.replace(MARGINS, weights='int8'),)},
      'give a function from weights',
    ),
    ({'loss': 'risk', 'metric': 'rouge_l'}, 'references'),
  ],
)
def test_bad_input_is_refused(changes, message):
  with pytest.raises((TypeError, ValueError), match=message):
    tune(**{'space': SPACE, **changes})


def test_rows_that_are_too_few_for_any_certificate_are_told():
  said = []
  found = tune(batches=make_batches(8, 8), tolerance=0.1, said=said)
  assert any('too few to certify anything' in line for line in said)
  assert found.tuning.choice.lossless


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'name': ' '}, 'has the name'),
    ({'name': 3}, 'has the name 3'),
    ({'settings': (0.1, 0.9)}, "'margin' of the space: .*out of order"),
    ({'settings': (1.2,)}, r'not in \[0, 1\]'),
    ({'settings': ({'readout.blocks': 3},)}, 'has no field'),
    ({'weights': 'int4'}, 'int4'),
    (
      {'policy': dataclasses.replace(LOSSLESS, exit_rule=exits.NeverExit())},
      'threshold to set',
    ),
  ],
)
def test_candidates_that_are_none_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    evaluation.Candidates(
      **{'name': 'margin', 'policy': MARGIN, 'settings': (0.5,), **changes}
    )
