"""Calibrating an encoder's classifier by one pass over all layers."""

import dataclasses

import numpy as np
import pytest
from fakes.toy_encoder import toy_encoder

from calm_jax import decoding, encoding, evaluation, exits, runs
from calm_jax.encoder_heads import EncoderHeads
from calm_jax.evaluation import classifier_clock

ENCODER = toy_encoder()
RULE = exits.ConfidenceExit(exits.SoftmaxMaximum(), 1.0)
SETTINGS = (0.99, 0.9, 0.5)
NAMES = ('a', 'the', 'other')
N = 120


def classifier(slope=2.0, **changes):
  """Classes are 0, 1, 2 below 5, 8 and above; early layers are a bit off."""
  bounds = 5.0 + np.array([1.8, 3.3, 6.0])
  nothing = np.zeros(3)
  across = np.stack([nothing, nothing + slope, nothing + 2 * slope], axis=1)
  along = np.stack([nothing, -slope * bounds, -slope * (2 * bounds + 3)], 1)
  heads = EncoderHeads(
    kernel=np.stack([across, along], axis=1).astype('f4'),
    bias=np.zeros((3, 3), 'f4'),
  )
  return evaluation.DatasetClassifier(
    **{
      'encoder': ENCODER,
      'params': np.float32(1.0),
      'heads': heads,
      'class_texts': NAMES,
      'about': {'parameters': 'p', 'tokenizer': 't'},
      **changes,
    }
  )


def batches():
  """Different inputs, the last batch not full."""
  tokens = np.zeros((128, 2), np.int32)
  tokens[:N, 0] = np.arange(1, N + 1) % 11 + 1
  tokens[:N, 1] = np.arange(1, N + 1) // 11 + 1
  classes = np.arange(N) % 3
  return [
    {
      'encoder_input_tokens': tokens[start : start + 64],
      'num_valid': min(64, N - start),
      'references': [[NAMES[c]] for c in classes[start : start + 64]],
    }
    for start in (0, 64)
  ], classes


def calibrated(decode, **plan):
  given, _ = batches()
  plan = evaluation.CalibrationPlan(
    **{'settings': SETTINGS, 'metric': 'same_text', 'tolerance': 0.5, **plan}
  )
  return evaluation.run_calibration(
    decode, given, decode.policy(RULE), plan, full_grid=True
  )


def test_losses_are_those_of_each_threshold_by_itself():
  decode, (given, classes) = classifier(), batches()
  textual = calibrated(decode)
  signed = calibrated(decode, loss='signed')
  full = decode(given, policy=decoding.ComputePolicy())
  assert (full.exit_layers == 3).all() and full.num_examples == N
  for column, threshold in enumerate(SETTINGS):
    rule = exits.ConfidenceExit(exits.SoftmaxMaximum(), threshold)
    found = decode(given, policy=decode.policy(rule))
    said, last = found.tokens[:, 0] - 1, full.tokens[:, 0] - 1
    np.testing.assert_array_equal(textual.table.losses[:, column], said != last)
    lost = (last == classes).astype(float) - (said == classes)
    np.testing.assert_array_equal(signed.table.losses[:, column], lost)
    mean = found.exit_layers.mean()
    assert textual.table.mean_exit_layers[column] == pytest.approx(mean)
    assert found.mean_layers_run == pytest.approx(mean)
  # Something is lost, and not everything: a wrong column would show.
  assert 0 < textual.table.losses[:, -1].mean() < 1
  # One pass, whatever the settings, for the same rows; another for others.
  assert len(decode._passes) == 1
  decode(given[:1], policy=decoding.ComputePolicy())
  assert len(decode._passes) == 2


def gate_of(*sizes):
  """One that is surer where the margin is, or the entropy of squares."""
  weights = np.zeros((1, 4, 1), 'f4')
  weights[0, [1, 3], 0] = 3.0, -3.0
  return exits.Gate(
    layer_bias=np.zeros((1, 1), 'f4'),
    bias=np.array(sizes or (-0.5,), 'f4'),
    logits=weights,
  )


@pytest.mark.parametrize(
  ('rule', 'settings'),
  [
    (exits.ConfidenceExit(gate_of(), 1.0), None),
    (exits.QuantileExit(gate_of(), 1.0), None),
    (exits.PatienceExit(1), None),
    (exits.FixedExit(1), None),
    # States of this encoder are all alike.
    (exits.ConfidenceExit(exits.StateSimilarity(), 1.0), (0.999, 0.99, 0.9)),
  ],
  ids=['gate', 'q-exit', 'patience', 'depth', 'similarity'],
)
def test_every_rule_is_certified_at_settings_of_its_own(rule, settings):
  decode, (given, _) = classifier(), batches()
  if settings is None:
    settings = exits.usual_settings(rule, 'encoder_exit.rule', 3)
    if not isinstance(settings[0], dict):
      # Inputs leave by a cost-aware gate around 0.5.
      assert 0.5 in settings and settings[-1] == 0
      assert [*settings] == sorted({*settings}, reverse=True)
  plan = evaluation.CalibrationPlan(
    settings=settings, metric='same_text', loss='textual', tolerance=0.9
  )
  found = evaluation.run_calibration(
    decode, given, decode.policy(rule), plan, full_grid=True
  )
  # From conservative to aggressive.
  assert (np.diff(found.table.mean_exit_layers) <= 0).all()
  assert found.table.mean_exit_layers[0] > found.table.mean_exit_layers[-1]
  assert found.certificate.certified
  chosen = found.certificate.setting
  if isinstance(rule, (exits.PatienceExit, exits.FixedExit)):
    (value,) = chosen.values()
    assert isinstance(value, int) and len(settings) in (2, 3)


def test_both_promises_in_one_certificate():
  found = calibrated(
    classifier(),
    loss='textual',
    tolerance=0.1,
    promises=(('textual', 0.5), ('signed', 0.4)),
  )
  assert [b.loss for b in found.certificate.promises] == ['textual', 'signed']


def test_a_certificate_holds_for_these_heads_and_no_decoder():
  decode = classifier()
  certificate = calibrated(decode).certificate
  assert certificate.certified

  def use(given, context):
    found = runs.apply_certificate(certificate, given.policy(RULE), context)
    return found.encoder_exit.rule

  context = decode.context(decode.policy(RULE))
  assert use(decode, context).threshold == certificate.threshold
  with pytest.raises(ValueError, match='encoder_exit.heads'):
    use(classifier(slope=3.0), context)
  greedy = runs.decoding_context(
    tokenizer='t', parameters='p', max_length=1, weights='float'
  )
  with pytest.raises(ValueError, match='sampler'):
    use(decode, greedy)


def test_names_that_do_not_fit_are_refused():
  with pytest.raises(ValueError, match='2 different names for the 3 classes'):
    classifier(class_texts=('a', 'b', 'b'))
  # `same_text` would take one for the other.
  with pytest.raises(ValueError, match='2 different names for the 3 classes'):
    classifier(class_texts=('a', 'b', ' b '))
  with pytest.raises(ValueError, match='3 different names for the 3 classes'):
    classifier(class_texts=('a', 'b', 'c', 'c'))
  with pytest.raises(ValueError, match='no inputs'):
    classifier()([], policy=decoding.ComputePolicy())


def test_what_would_be_certified_unseen_is_refused():
  """Its losses would be those of no exit at all, or of other heads."""
  decode, (given, _) = classifier(), batches()
  plan = evaluation.CalibrationPlan(
    settings=SETTINGS, metric='same_text', tolerance=0.05
  )
  with pytest.raises(ValueError, match='does something besides encoder_exit'):
    evaluation.run_calibration(decode, given, RULE, plan)
  other = classifier(slope=3.0).policy(RULE)
  with pytest.raises(ValueError, match='heads are others than those'):
    decode(given, policy=other)
  # Equal ones in other arrays are the same.
  again = decode(given, policy=classifier().policy(RULE))
  assert again.texts == decode(given, policy=decode.policy(RULE)).texts


def test_logits_that_are_no_numbers_certify_nothing():
  """The classes of all layers would be the first, and agree."""
  given, _ = batches()
  broken = classifier(params=np.float32(np.nan))
  with pytest.raises(ValueError, match='input 0 after encoder layer 1 are NaN'):
    broken(given, policy=broken.policy(RULE))


def test_ids_of_another_vocabulary_are_refused():
  (one, _), _ = batches()
  inputs = one['encoder_input_tokens'].copy()
  inputs[1, 1] = ENCODER.vocab_size
  with pytest.raises(ValueError, match=f'token id {ENCODER.vocab_size} in row'):
    classifier()(
      [{**one, 'encoder_input_tokens': inputs}],
      policy=decoding.ComputePolicy(),
    )


def test_a_budget_of_an_encoder_is_certified_with_it():
  """To its rule an input is one position, whatever is decoded."""
  decode, (given, _) = classifier(), batches()
  policy = decode.policy(exits.LayerBudget(RULE, per_token=2))
  plan = evaluation.CalibrationPlan(
    settings=SETTINGS, metric='same_text', tolerance=0.9
  )
  found = evaluation.run_calibration(decode, given, policy, plan)
  assert found.certificate.certified
  context = decode.context(policy)
  held = runs.apply_certificate(found.certificate, policy, context)
  assert held.encoder_exit.rule.per_token == 2
  within = decoding.full_within_budget(policy).encoder_exit.rule
  assert within == exits.LayerBudget(exits.NeverExit(), per_token=2)
  longer = decoding.at_output_length(policy, 20).encoder_exit.rule
  assert longer.max_length == 1


def test_a_tuning_chooses_among_exit_rules(monkeypatch):
  """By one half of the rows and a clock; the other half certifies."""
  decode, (given, _) = classifier(), batches()
  told = {'full model': 10.0, 'maximum': 6.0, 'patience': 8.0}

  def times(classifier, entries, batches, *, num_repeats):
    del classifier, num_repeats
    assert {len(b['encoder_input_tokens']) for b in batches} == {2}
    assert isinstance(entries['patience'][1], encoding.CompactedLayers)
    return {name: (told[name.split(',')[0]], 2.0) for name in entries}

  monkeypatch.setattr(classifier_clock, 'classifying_times', times)
  stops = decoding.StoppedEncoder(exits.PatienceExit(1))
  space = [
    evaluation.Candidates(
      name='maximum',
      policy=decoding.ComputePolicy(encoder_exit=decoding.StoppedEncoder(RULE)),
      settings=(0.9,),
    ),
    evaluation.Candidates(
      name='patience',
      policy=decoding.ComputePolicy(encoder_exit=stops),
      settings=(),
    ),
  ]
  plan = evaluation.TuningPlan(metric='same_text', tolerance=0.4, batch_size=2)
  said = []
  found = evaluation.run_tuning(
    decode, given, decode.space(space, batch_size=2), plan, progress=said.append
  )
  tuning = found.tuning
  assert tuning.choice.label == 'maximum, threshold 0.9'
  assert tuning.choice.speed_up == pytest.approx(10 / 6)
  assert len(tuning.screening_ids) == len(tuning.test_ids) == N // 2
  assert found.certificate.certified
  assert found.certificate.decoding.sampler['type'] == evaluation.CLASSES
  # The loss is the disagreement of the rows that test, by this rule alone.
  mine, full = (
    decode(given, policy=policy)
    for policy in (found.policy, decoding.ComputePolicy())
  )
  tests = [name in tuning.test_ids for name in full.example_ids]
  lost = (mine.tokens != full.tokens)[tests]
  assert found.certificate.risks == (pytest.approx(lost.mean()),)
  loops = dataclasses.replace(plan, depth_loops=('unrolled',))
  with pytest.raises(ValueError, match='of encoder layers alone'):
    evaluation.run_tuning(decode, given, space, loops)


@pytest.mark.parametrize(
  ('slots', 'weights', 'what'),
  [
    ({}, None, 'no encoder exit'),
    ({'encoder_exit': decoding.StoppedEncoder(RULE)}, 'int8', 'weights in 8'),
    (
      {'encoder_exit': decoding.StoppedEncoder(RULE), 'exit_rule': RULE},
      None,
      'slots besides encoder_exit',
    ),
  ],
)
def test_spaces_that_classify_nothing_are_refused(slots, weights, what):
  one = evaluation.Candidates(
    name='mine',
    policy=decoding.ComputePolicy(**slots),
    settings=(),
    weights=weights,
  )
  with pytest.raises(
    ValueError, match=f"policy 'mine' of the space has {what}"
  ):
    classifier().space([one], batch_size=1)


def test_the_clock_measures_what_leaves():
  decode, (given, _) = classifier(), batches()
  timed = evaluation.take_batches(given, batch_size=1, num_batches=3)
  entries = {
    name: (exits.FixedExit(layers), encoding.UnrolledLayers())
    for name, layers in (('one', 1), ('two', 2))
  }
  found = classifier_clock.classifying_times(
    decode, entries, timed, num_repeats=1
  )
  assert [found[name][1] for name in ('one', 'two')] == [1.0, 2.0]
  assert all(milliseconds > 0 for milliseconds, _ in found.values())
