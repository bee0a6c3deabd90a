"""A calibration in one call is what its parts make one after the other."""

import datetime
import functools

import numpy as np
import pytest
from fakes import toy_decoder

from calm_jax import calibration, decoding, evaluation, exits, records

MAX_LENGTH = 4
SETTINGS = (0.9, 0.5, 0.1)
POLICY = decoding.ComputePolicy(
  exit_rule=exits.ConfidenceExit(
    exits.SoftmaxMargin(), exits.ConstantThreshold(1.0)
  )
)


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
        'targets_text': ['x'] * batch_size,
      }
    )
  return batches


def same_words(prediction, references):
  """Share of words at their places in the best reference."""
  words = prediction.split()
  return max(
    float(np.mean([a == b for a, b in zip(words, text.split(), strict=True)]))
    for text in references
  )


def detokenize(ids):
  return ' '.join(map(str, ids))


SETUP = dict(detokenize=detokenize, max_length=MAX_LENGTH, eos_id=-1)


def calibrate(batches=None, settings=SETTINGS, **arguments):
  return evaluation.calibrate(
    toy_decoder.toy_bound(),
    make_batches() if batches is None else batches,
    POLICY,
    settings,
    **{
      **SETUP,
      'loss': evaluation.textual_loss(same_words),
      'tolerance': 0.5,
      **arguments,
    },
  )


def expected_losses():
  """The losses at every setting, decoded one by one."""
  decode = functools.partial(
    evaluation.decode_dataset, toy_decoder.toy_bound(), make_batches(), **SETUP
  )
  loss, full = evaluation.textual_loss(same_words), decode()
  return np.stack(
    [
      loss(decode(policy=decoding.with_setting(POLICY, setting)), full)
      for setting in SETTINGS
    ],
    axis=1,
  )


def test_the_certificate_is_that_of_the_losses():
  losses = expected_losses()
  assert losses.any(), 'nothing to calibrate'
  chosen = set()
  for tolerance in (0.02, 0.5, 0.95):
    found = calibrate(tolerance=tolerance)
    expected = calibration.calibrate(losses, SETTINGS, tolerance=tolerance)
    assert (found.index, found.num_examples) == (expected.index, 60)
    tested = ~np.isnan(found.p_values)
    np.testing.assert_array_equal(
      np.array(found.p_values)[tested], np.array(expected.p_values)[tested]
    )
    chosen.add(found.index)
  assert len(chosen) > 1, 'the tolerance tells nothing apart'


def test_it_says_what_it_was_made_for():
  context = calibrate(context={'parameters': 'sha256:1'}).context
  assert context['policy'] == decoding.describe(POLICY)
  assert context['sampler'] == {'type': 'Greedy'}
  assert context['loss'] == 'textual' and context['parameters'] == 'sha256:1'
  assert (context['num_layers'], context['max_length']) == (3, MAX_LENGTH)
  assert context['dtype'] == 'float32' and 'jax' in context['versions']
  assert context['examples'].startswith('sha256:')


def test_it_says_when_and_from_what_it_was_made(tmp_path):
  certificate = calibrate()
  certificate.save(tmp_path / 'c.json')
  stored = calibration.Certificate.load(tmp_path / 'c.json')
  seen = records.read_seen_rows(stored.context)
  today = datetime.datetime.now(datetime.UTC).date()
  assert 0 <= (today - datetime.date.fromisoformat(seen.date)).days <= 1
  assert (seen.given, seen.used) == (60, 60)
  tokens = np.concatenate(
    [b['encoder_input_tokens'][: b.get('num_valid')] for b in make_batches()]
  )
  lengths = np.count_nonzero(tokens, axis=1)
  assert seen.input_tokens == records.Lengths(
    smallest=lengths.min(),
    mean=round(lengths.mean(), 2),
    largest=lengths.max(),
  )
  assert seen.filled == np.count_nonzero(tokens[:, -1])
  full = evaluation.decode_dataset(
    toy_decoder.toy_bound(), make_batches(), **SETUP
  )
  assert seen.output_tokens == records.Lengths.of(full.lengths.tolist())
  assert f'Made on {seen.date} from 60 inputs of' in stored.describe()


def test_statistics_are_those_of_the_plan():
  signed = calibrate(loss='signed', metric='token_f1', tolerance=0.2)
  assert signed.loss_range == (-1.0, 1.0)
  assert signed.p_value.startswith('betting')
  asked = calibrate(
    p_value=calibration.hoeffding, procedure=calibration.Bonferroni()
  )
  assert (asked.p_value, asked.procedure) == ('hoeffding', 'bonferroni')


def test_all_that_it_came_across_is_there(tmp_path):
  """The same certificate, and the table beyond the end of testing."""
  decode = evaluation.DatasetDecoder(
    bound=toy_decoder.toy_bound(), keep_in=str(tmp_path / 'decodes'), **SETUP
  )
  plan = evaluation.CalibrationPlan(
    settings=SETTINGS,
    tolerance=0.02,
    loss=evaluation.textual_loss(same_words),
  )
  run = functools.partial(
    evaluation.run_calibration, decode, make_batches(), POLICY, plan
  )
  lazy, path = run(), tmp_path / 'loss_table.npz'
  whole = run(full_grid=True, table_path=path)
  assert not lazy.table.computed.all() and whole.table.computed.all()
  assert whole.certificate.index == lazy.certificate.index
  np.testing.assert_array_equal(whole.table.losses, expected_losses())
  np.testing.assert_array_equal(
    records.read_loss_table(path).losses, whole.table.losses
  )
  assert [cost.setting for cost in whole.cost.settings] == list(SETTINGS)
  # What the first one decoded was kept.
  assert whole.cost.full_seconds == lazy.cost.full_seconds


def test_what_cannot_be_calibrated_is_refused_before_decoding(monkeypatch):
  def refuse(*arguments, **keywords):
    raise AssertionError('decoded')

  monkeypatch.setattr(decoding, 'generate', refuse)
  batches = make_batches()
  for batch in batches:
    del batch['targets_text']
  for arguments, message in (
    (dict(batches=batches, loss='risk'), 'example 0 has no references'),
    (dict(settings=(0.1, 0.9)), 'decreas'),
    (dict(loss='textuell'), "'textuell'"),
  ):
    with pytest.raises(ValueError, match=message):
      calibrate(**arguments)


RUSSIAN = 'Номер {}, сказал он громко и ушёл'


def test_a_metric_that_cannot_see_the_texts_is_refused(monkeypatch):
  """By the references before anything is decoded, else by the outputs."""
  batches = make_batches()
  arguments = dict(
    batches=batches,
    loss='textual',
    detokenize=lambda ids: RUSSIAN.format(' '.join(map(str, ids))),
  )
  for batch in batches:
    del batch['targets_text']
  with pytest.raises(ValueError, match=r"'rouge_l'.*outputs.*Use 'chrf'"):
    calibrate(metric='rouge_l', **arguments)
  pytest.importorskip('sacrebleu')
  assert calibrate(**arguments).context['metric'] == 'chrf'

  def refuse(*_, **__):
    raise AssertionError('decoded')

  monkeypatch.setattr(decoding, 'generate', refuse)
  for batch in batches:
    batch['targets_text'] = [RUSSIAN.format(7)] * batch['num_valid']
  with pytest.raises(ValueError, match=r"'rouge_l'.*references.*Use 'chrf'"):
    calibrate(metric='rouge_l', **arguments)


def test_inputs_that_are_read_alike_are_counted_before_decoding(monkeypatch):
  said, batches = [], make_batches()
  whole = calibrate(batches=batches)
  again = make_batches()[:1]
  found = calibrate(batches=[*batches, *again], progress=said.append)
  assert found.num_examples == whole.num_examples == 60
  assert (found.p_values[0], found.context['examples']) == (
    whole.p_values[0],
    whole.context['examples'],
  )
  counts = [line for line in said if line.startswith('20 of 80 inputs are the')]
  assert counts == said[:1], 'it is the first thing that is said'


def test_other_uses_of_the_rows_are_stated_and_counted(tmp_path):
  first = calibrate(uses_in=tmp_path, error_rate=0.01)
  assert 'No other use of its rows was noted' in first.describe()
  assert (first.error_rate, calibrate().error_rate) == (0.01, 0.05)
  said = []
  again = dict(uses_in=tmp_path, tolerance=0.6, progress=said.append)
  second = calibrate(**again)
  assert '1 other calibration had looked' in second.describe()
  assert second.error_rate == 0.05
  assert any('1 other calibration had looked' in line for line in said)
  again['tolerance'] = 0.7
  third = calibrate(**again, error_rate=0.1, spent='counted')
  assert third.error_rate == pytest.approx(0.04)
  assert '2 other calibrations' in third.describe()
  # Elsewhere noted, and not at all.
  assert calibrate(spent=0.02).error_rate == pytest.approx(0.03)
  assert 'row_history' not in calibrate().context
  # The same again is no other use.
  assert calibrate(uses_in=tmp_path, error_rate=0.01).num_examples == 60
  assert len(list(tmp_path.glob('*.json'))) == 3
  with pytest.raises(
    ValueError, match='nothing is left of the error rate 0.05'
  ):
    calibrate(uses_in=tmp_path, tolerance=0.8, spent='counted')


@pytest.mark.parametrize('name', ['p_value', 'procedure'])
def test_a_name_is_no_statistic(name):
  """As gin gives it where the @ is forgotten."""
  with pytest.raises(ValueError, match=f"{name} is the text 'betting'.*@calib"):
    evaluation.CalibrationPlan(**{name: 'betting'})


@pytest.mark.slow
@pytest.mark.parametrize(
  ('rule', 'settings', 'num_layers'),
  [
    (exits.QuantileExit(exits.SoftmaxMargin(), 1.0), (0.95, 0.6), 3),
    (
      exits.PatienceExit(1),
      ({'exit_rule.patience': 9}, {'exit_rule.patience': 1}),
      5,  # In 3 layers no token of the toy stays the same.
    ),
  ],
)
def test_rules_that_remember_are_calibrated(rule, settings, num_layers):
  """With each setting decoded as that very rule."""
  policy = decoding.ComputePolicy(exit_rule=rule)
  bound = toy_decoder.toy_bound(num_layers)
  certificate = evaluation.calibrate(
    bound,
    make_batches(),
    policy,
    settings,
    **SETUP,
    loss=evaluation.textual_loss(same_words),
    tolerance=0.99,
  )
  assert certificate.settings == settings
  layers = [
    evaluation.decode_dataset(
      bound,
      make_batches(),
      policy=decoding.with_setting(policy, setting),
      **SETUP,
    ).exit_layers
    for setting in settings
  ]
  assert layers[0].mean() > layers[1].mean()
  assert certificate.risks[0] <= certificate.risks[1]
