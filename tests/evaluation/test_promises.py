"""Several losses promised at once: planned, calibrated, and looked at again."""

import dataclasses
import functools
import math

import numpy as np
import pytest
from fakes import toy_decoder

from calm_jax import calibration, decoding, evaluation, exits, records
from calm_jax.evaluation import promise_outcomes

MAX_LENGTH = 4
SETTINGS = (0.9, 0.5, 0.1)
POLICY = decoding.ComputePolicy(
  exit_rule=exits.ConfidenceExit(
    exits.SoftmaxMargin(), exits.ConstantThreshold(1.0)
  )
)
BOTH = (('textual', 0.6, 'token_f1'), ('signed', 0.4, 'token_f1'))


def make_batches(num_inputs=60, batch_size=20):
  """Returns inputs whose confidence grows at different speeds."""
  batches = []
  for start in range(0, num_inputs, batch_size):
    rows = np.arange(start, start + batch_size)
    tokens = np.stack([1 + rows % 9, 1 + rows // 9, 1 + rows * 0], axis=1)
    batches.append(
      {
        'encoder_input_tokens': tokens.astype(np.int32),
        'num_valid': batch_size,
        'inputs_text': [f'input {row}' for row in rows],
        'targets_text': [f'{row % 5} 3 7' for row in rows],
      }
    )
  return batches


def detokenize(ids):
  return ' '.join(map(str, ids))


SETUP = dict(detokenize=detokenize, max_length=MAX_LENGTH, eos_id=-1)


@functools.cache
def decoded(setting=None):
  decode = functools.partial(
    evaluation.decode_dataset, toy_decoder.toy_bound(), make_batches(), **SETUP
  )
  if setting is None:
    return decode()
  return decode(policy=decoding.with_setting(POLICY, setting))


def losses_of(name):
  loss = evaluation.get_loss(name, 'token_f1')
  return np.stack([loss(decoded(at), decoded()) for at in SETTINGS], axis=1)


def run(promises=BOTH, batches=None, **arguments):
  decode = evaluation.DatasetDecoder(bound=toy_decoder.toy_bound(), **SETUP)
  plan = evaluation.CalibrationPlan(settings=SETTINGS, promises=promises)
  return evaluation.run_calibration(
    decode,
    make_batches() if batches is None else batches,
    POLICY,
    plan,
    **arguments,
  )


def test_the_joint_certificate_is_that_of_the_losses(tmp_path):
  path = tmp_path / 'loss_table.npz'
  found = run(full_grid=True, table_path=path, uses_in=tmp_path / 'uses')
  bounds = [
    calibration.Bound(loss='textual', metric='token_f1', tolerance=0.6),
    calibration.Bound(
      loss='signed', metric='token_f1', tolerance=0.4, loss_range=(-1, 1)
    ),
  ]
  tables = [losses_of('textual'), losses_of('signed')]
  expected = calibration.calibrate_jointly(tables, SETTINGS, bounds)
  assert found.certificate.p_values == expected.p_values
  assert found.certificate.promises == expected.promises
  assert found.certificate.index == expected.index
  assert found.certificate.context['loss'] == 'textual'
  # Both losses are in the table, which is that of one loss for who asks.
  read = records.read_loss_table(path)
  for one, losses, name in zip(
    read.alone(), tables, ('textual', 'signed'), strict=True
  ):
    np.testing.assert_array_equal(one.losses, losses)
    assert (one.loss, one.fingerprint['metric']) == (name, 'token_f1')
  assert read.alone()[1].fingerprint['loss_range'] == [-1.0, 1.0]
  # The use of the rows is noted with all that was promised of them.
  (use,) = (tmp_path / 'uses').glob('*.json')
  words = records.read_record(use, records.RowUse).describe()
  assert 'textual loss by token_f1 at most 0.6 and signed loss' in words


def test_one_decode_serves_all_losses(monkeypatch):
  calls = []
  generate = decoding.generate

  def counted(*arguments, **keywords):
    calls.append(1)
    return generate(*arguments, **keywords)

  monkeypatch.setattr(decoding, 'generate', counted)
  one = run(promises=BOTH[:1], full_grid=True)
  alone, calls[:] = len(calls), []
  found = run(full_grid=True)
  assert len(calls) == alone > 0
  assert one.certificate.promises == () and not one.table.others
  np.testing.assert_array_equal(one.table.losses, found.table.losses)


def test_order_and_form_of_promises_mean_nothing():
  expected = run().certificate
  for promises in (
    BOTH[::-1],
    [evaluation.Promise(*promise) for promise in BOTH],
    [*BOTH, BOTH[0]],
  ):
    assert run(promises=promises).certificate == expected


def test_one_promise_is_a_loss_and_a_tolerance():
  certificate = evaluation.calibrate(
    toy_decoder.toy_bound(),
    make_batches(),
    POLICY,
    SETTINGS,
    tolerance=0.6,
    metric='token_f1',
    **SETUP,
  )
  assert certificate.promises == ()
  for promises in (BOTH[:1], (BOTH[0], BOTH[0])):
    assert run(promises=promises).certificate == certificate


def test_a_metric_left_open_is_chosen_for_all():
  plan = evaluation.CalibrationPlan(
    promises=(('textual', 0.1), ('signed', 0.05), ('risk', 0.2, 'token_f1'))
  )
  assert plan.left_open
  plan = plan.for_texts(['a text'], what='the texts')
  assert [bound.name for bound in plan.statistics()['promises']] == [
    'risk loss by token_f1',
    'textual loss by rouge_l',
    'signed loss by rouge_l',
  ]
  with pytest.raises(ValueError, match='promised twice'):
    evaluation.CalibrationPlan(
      promises=(('risk', 0.1), ('risk', 0.2, 'rouge_l'))
    ).for_texts(['a text'], what='the texts')


@pytest.mark.parametrize(
  ('promises', 'message'),
  [
    ((), 'there are no promises'),
    ((('textual', 0.1), ('textual', 0.2)), 'promised twice'),
    ((('textual', 1.5), ('signed', 0.2)), r'textual loss: tolerance 1\.5'),
    ((('textual', 0.1), ('signed', -1)), r'signed loss: tolerance -1'),
    ((('textuell', 0.1),), "'textuell'"),
    ((('textual', 0.1, 'rouge'),), "'rouge'"),
    ((('textual',),), "'textual'.* is no promise"),
    ((('textual', '0.1'),), 'is no promise'),
    (('textual', 0.1), "'textual' is no promise"),
    ('textual', 'write them as in'),
    ({'textual': 0.1}, 'write them as in'),
  ],
)
def test_what_is_no_promise_is_refused(promises, message):
  with pytest.raises((ValueError, TypeError), match=message):
    evaluation.CalibrationPlan(promises=promises)


@pytest.mark.parametrize('besides', [{'tolerance': 0.2}, {'loss': 'risk'}])
def test_promises_and_a_tolerance_besides_them_are_refused(besides):
  with pytest.raises(ValueError, match='leave these two'):
    evaluation.CalibrationPlan(promises=BOTH, **besides)


def test_signed_without_references_is_refused_before_decoding(monkeypatch):
  def refuse(*arguments, **keywords):
    raise AssertionError('decoded')

  monkeypatch.setattr(decoding, 'generate', refuse)
  batches = make_batches()
  for batch in batches:
    del batch['targets_text']
  with pytest.raises(ValueError, match='the signed loss is measured against'):
    run(batches=batches)


@pytest.fixture(scope='module')
def certificate():
  found = run().certificate
  assert found.certified
  return found


def metric_of(name):
  return promise_outcomes.metric_named(evaluation.ComparisonPlan(), name)


def test_each_promise_is_measured_again(certificate):
  early = decoded(certificate.setting)
  found = promise_outcomes.promise_outcomes(
    certificate, early, decoded(), metric_of=metric_of
  )
  column = certificate.index
  assert [one.mean for one in found] == pytest.approx(
    [
      losses_of('textual')[:, column].mean(),
      losses_of('signed')[:, column].mean(),
    ]
  )
  assert all(one.kept and one.standard_error >= 0 for one in found)
  broken = dataclasses.replace(found[0], tolerance=found[0].mean - 0.01)
  assert broken.kept is False
  without = dataclasses.replace(decoded(), references=((),) * 60)
  textual, signed = promise_outcomes.promise_outcomes(
    certificate, early, without, metric_of=metric_of
  )
  assert textual == found[0]
  assert math.isnan(signed.mean) and signed.kept is None


def closeness(prediction, references):
  return float(prediction in references)


def test_metrics_of_ones_own_have_to_be_named():
  name = f'{__name__}:closeness'
  plan = evaluation.ComparisonPlan(loss_metric=('chrf', closeness))
  assert promise_outcomes.metric_named(plan, name) is closeness
  with pytest.raises(ValueError, match='no file'):
    metric_of(name)
