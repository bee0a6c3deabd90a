"""Served and audited: which requests, what is kept, alarms and the way back."""

import dataclasses
import json

import pytest
from cases import text_cases
from cases.text_cases import POLICY, L

import calm_jax
from calm_jax import decoding, pipeline, runs

# Of one length, so that few programs are compiled.
TEXTS = [f'text {number:02}' for number in range(20)]
BATCHES = dict(batch_size=4)


@pytest.fixture(scope='module')
def run_dir(tmp_path_factory):
  folder = tmp_path_factory.mktemp('certified')
  return text_cases.save_certified_run(
    folder, loss='textual', metric='exact_match'
  )


@pytest.fixture(scope='module')
def generator(run_dir):
  return calm_jax.load(run_dir)


@pytest.fixture(scope='module')
def early(generator):
  return generator.generate(TEXTS, **BATCHES)


@pytest.fixture(scope='module')
def full(run_dir):
  full = calm_jax.load(run_dir, certificate=None)
  return full.generate(TEXTS, **BATCHES)


@pytest.fixture
def path(tmp_path):
  return tmp_path / 'monitor.json'


def test_which_requests_are_audited_follows_from_their_number(generator):
  def drawn(**options):
    auditor = pipeline.Auditor.of(generator, **options)
    return [number for number in range(4000) if auditor.draws(number)]

  some = drawn(fraction=0.1)
  assert 340 < len(some) < 460
  assert drawn(fraction=0.1) == some
  assert drawn(fraction=0.1, seed=1) != some
  assert set(some) < set(drawn(fraction=0.2))
  assert len(drawn(fraction=1)) == 4000
  # Of many short files not the same lines, or none, of each.
  files = [
    pipeline.Auditor.of(generator, fraction=0.01, among=f'{hour}.jsonl')
    for hour in range(48)
  ]
  lines = [[n for n in range(100) if one.draws(n)] for one in files]
  assert 24 < sum(map(len, lines)) < 80
  assert len({n for found in lines for n in found}) > 15


def test_what_is_audited_is_kept(generator, early, full, path):
  said = []
  with pipeline.Monitor(
    generator, path, fraction=0.3, error_rate=1e-9, say=said.append
  ) as monitor:
    served = [monitor.generate(TEXTS[:8], **BATCHES)]
    served += [monitor.generate(TEXTS[8:], **BATCHES)]
  assert [output.tokens for part in served for output in part] == [
    output.tokens for output in early
  ]
  auditor = pipeline.Auditor.of(generator, fraction=0.3)
  numbers = [number for number in range(len(TEXTS)) if auditor.draws(number)]
  losses = [
    float(early[number].text.strip() != full[number].text.strip())
    for number in numbers
  ]
  assert 0 < sum(losses) and len(numbers) < len(TEXTS)
  state = json.loads(path.read_text())
  assert (state['served'], state['watch']['count']) == (20, len(numbers))
  assert state['watch']['total'] == sum(losses)
  assert monitor.alarm is None and not said


def test_an_alarm_is_followed_by_full_depth_until_it_is_reset(
  generator, full, path
):
  said = []
  options = dict(fraction=1.0, say=said.append)
  with pipeline.Monitor(generator, path, **options) as monitor:
    while monitor.alarm is None:
      outputs = monitor.generate(TEXTS[:4], **BATCHES)
      assert monitor.state.served <= 40
    assert any(min(output.exit_layers) < L for output in outputs)
    (line,) = said
    assert 'alarm: YES' in line and 'full depth' in line
    served = monitor.state.served
    after = monitor.generate(TEXTS, **BATCHES)
    assert [one.tokens for one in after] == [one.tokens for one in full]
    assert {layer for one in after for layer in one.exit_layers} == {L}
    # The full model is what every certificate covers.
    assert all(output.certified for output in after)
    assert monitor.state.served == served, 'nothing is left to audit'
    assert len(said) == 1
    with pytest.raises(ValueError, match='is being written by process'):
      pipeline.Monitor(generator, path, **options)
  # A restart forgets nothing.
  with pipeline.Monitor(generator, path, **options) as monitor:
    assert said[1] == line
    assert monitor.serving.policy == decoding.full_model(POLICY)
    monitor.reset()
    assert monitor.serving is generator
    monitor.generate(TEXTS[:1], batch_size=1)
    assert monitor.state.served == served + 1
  assert 'earlier alarm' in monitor.describe()


def test_a_stream_is_audited_once_it_was_read(generator, early):
  monitor = pipeline.Monitor(generator, fraction=1.0)
  stream = monitor.stream(TEXTS[0])
  first = next(stream)
  assert first.token == early[0].tokens[0]
  assert monitor.state.served == 0
  rest = ''.join(token.text for token in stream)
  assert first.text + rest == early[0].text
  assert monitor.state.watch.count == monitor.state.served == 1


def test_a_stream_that_its_reader_leaves_is_audited_as_others_are(
  generator, early, full
):
  monitor = pipeline.Monitor(generator, fraction=1.0, error_rate=1e-9)
  for text in TEXTS[:6]:
    stream = monitor.stream(text)
    next(stream)
    stream.close()
  pairs = zip(early[:6], full[:6], strict=True)
  losses = [one.text.strip() != other.text.strip() for one, other in pairs]
  assert monitor.state.watch.count == monitor.state.served == 6
  assert monitor.state.watch.total == sum(losses) > 0


def test_a_closed_monitor_serves_no_more(generator, path):
  with pipeline.Monitor(generator, path, fraction=1.0) as monitor:
    monitor.generate(TEXTS[:1], batch_size=1)
  before = path.read_text()
  for call in (
    lambda: monitor.generate(TEXTS[:1], batch_size=1),
    lambda: next(monitor.stream(TEXTS[0])),
    monitor.reset,
  ):
    with pytest.raises(ValueError, match='was closed, and its state may be'):
      call()
  assert path.read_text() == before


def test_what_audits_compared_is_not_kept_for_ever(generator):
  monitor = pipeline.Monitor(generator, fraction=1.0)
  monitor.generate(TEXTS[:4], **BATCHES)
  assert monitor.state.watch.count == 4
  assert not monitor._auditor.loss.scores


def test_a_state_remembers_which_metric_it_watches(generator, run_dir, path):
  first = calm_jax.calibration.Certificate.load(runs.certificate_path(run_dir))
  (bound,) = first.bounds
  tested = calm_jax.calibration.bounds.TestedBound(
    loss='textual',
    metric='exact_match',
    tolerance=bound.tolerance,
    risks=first.risks,
    p_values=first.p_values,
  )
  both = dataclasses.replace(
    first, promises=(tested, dataclasses.replace(tested, metric='token_f1'))
  )
  twice = dataclasses.replace(generator, certificate=both)
  for options, served in (({'metric': 'token_f1'}, 1), ({}, 2)):
    with pipeline.Monitor(twice, path, fraction=1.0, **options) as monitor:
      monitor.generate(TEXTS[:1], batch_size=1)
    state = json.loads(path.read_text())
    assert (state['metric'], state['served']) == ('token_f1', served)


def test_a_generator_that_forces_a_prefix_has_no_promise(generator):
  forced = dataclasses.replace(generator, forced_prefix='a')
  with pytest.raises(ValueError, match="every output begins with 'a', and no"):
    pipeline.Monitor(forced)


def test_a_forced_prefix_is_no_promise_to_watch(generator):
  auditor = pipeline.Auditor.of(generator, fraction=1.0)
  request = generator.encode(0, 'text', forced_prefix='a')
  (batch,) = generator.batches([request], 1)
  assert auditor.audit(batch, ['a']) == {}


@pytest.mark.parametrize('fraction', [0, 0.0, 1.5, -0.1, True, '0.1', None])
def test_fractions_that_are_none_are_refused(generator, fraction):
  with pytest.raises(ValueError, match='the fraction of audited requests is'):
    pipeline.Monitor(generator, fraction=fraction)


def _certificate(run_dir, **context):
  found = calm_jax.calibration.Certificate.load(runs.certificate_path(run_dir))
  return dataclasses.replace(found, context={**found.context, **context})


def test_where_there_is_nothing_to_watch_that_is_said(generator, run_dir):
  bare = calm_jax.load(run_dir, policy=POLICY, certificate=None)
  with pytest.raises(ValueError, match='no certificate covers this generator'):
    pipeline.Monitor(bare)
  own = dataclasses.replace(
    generator,
    certificate=_certificate(run_dir, metric='cases.own:metric'),
  )
  with pytest.raises(ValueError, match='measures by cases.own:metric, which'):
    pipeline.Monitor(own)
  deep = dataclasses.replace(generator, policy=decoding.full_model(POLICY))
  with pytest.raises(ValueError, match='outputs are those of the full model'):
    pipeline.Monitor(deep)
  with pytest.raises(ValueError, match='loss by exact_match, not by chrf'):
    pipeline.Monitor(generator, metric='chrf')
  full = calm_jax.load(run_dir, certificate=None)
  assert pipeline.Monitor(generator, full=full).serving is generator
  with pytest.raises(ValueError, match='not the full model in float'):
    pipeline.Monitor(generator, full=bare)
  other = dataclasses.replace(full, max_length=4)
  with pytest.raises(ValueError, match='something else: max_length'):
    pipeline.Monitor(generator, full=other)


def test_a_state_of_another_certificate_leaves_no_lock(
  generator, run_dir, path
):
  other = dataclasses.replace(
    generator, certificate=_certificate(run_dir, task='another')
  )
  with pipeline.Monitor(other, path, fraction=1.0) as monitor:
    monitor.generate(TEXTS[:1], batch_size=1)
  with pytest.raises(ValueError, match='is of another certificate'):
    pipeline.Monitor(generator, path)
  # Whatever metric that one watches.
  text = path.read_text()
  path.write_text(text.replace('"exact_match"', '"chrf"'))
  with pytest.raises(ValueError, match='is of another certificate'):
    pipeline.Monitor(generator, path)
  assert [one.name for one in path.parent.iterdir()] == ['monitor.json']
