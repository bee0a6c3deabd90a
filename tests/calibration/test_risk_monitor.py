"""A watched certificate: its state on disk, alarms, resets, and refusals."""

import dataclasses
import json

import numpy as np
import pytest

from calm_jax import calibration, records
from calm_jax.calibration import RiskMonitor, bounds

TEXTUAL = bounds.Bound(loss='textual', metric='rouge_l', tolerance=0.1)
SIGNED = bounds.Bound(
  loss='signed', metric='chrf', tolerance=0.05, loss_range=(-1.0, 1.0)
)


def certificate(*promised, losses=0.0, **context):
  promised = promised or (TEXTUAL,)
  tables = [np.full((200, 1), losses) for _ in promised]
  return calibration.calibrate_jointly(
    tables, [0.5], promises=list(promised), context=context
  )


def observe(monitor, losses, served=None):
  served = len(losses) if served is None else served
  return monitor.observe(dict(enumerate(losses)), served=served)


def test_a_state_survives_and_an_alarm_stands(tmp_path):
  path = tmp_path / 'monitor.json'
  found = certificate()
  monitor = RiskMonitor(found, path)
  assert not monitor.observe({2: 0.0, 5: 0.1}, served=10)
  again = RiskMonitor(found, path)
  assert again.state == monitor.state
  assert (again.state.served, again.state.watch.count) == (10, 2)
  assert calibration.standing_alarm(found, path) is None
  assert again.observe({1: 1.0, 3: 1.0, 4: 1.0, 9: 1.0}, served=20)
  # Raised by the fourth of these, or earlier; counted to the request.
  alarm = RiskMonitor(found, path).alarm
  assert alarm == calibration.standing_alarm(found, path)
  assert alarm.served in (14, 15, 20) and alarm.audited in (4, 5, 6)
  assert not observe(again, [1.0]), 'it is raised once'
  assert 'alarm: YES' in again.describe()
  assert '7 of 31 requests' in again.describe()


def test_a_home_directory_may_be_written_short(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  found = certificate()
  observe(RiskMonitor(found, '~/monitor.json'), [1.0] * 10)
  assert (tmp_path / 'monitor.json').exists()
  assert RiskMonitor(found, '~/monitor.json').alarm is not None
  assert calibration.standing_alarm(found, '~/monitor.json') is not None


def test_another_certificate_is_told_before_its_numbers(tmp_path):
  path = tmp_path / 'monitor.json'
  by_chrf = dataclasses.replace(TEXTUAL, metric='chrf')
  observe(RiskMonitor(certificate(by_chrf), path), [0.0])
  with pytest.raises(ValueError, match='is of another certificate'):
    RiskMonitor(certificate(), path)


def test_a_reset_begins_anew_and_is_on_record(tmp_path):
  monitor = RiskMonitor(certificate(), tmp_path / 'monitor.json')
  with pytest.raises(ValueError, match='no alarm to reset'):
    monitor.reset()
  observe(monitor, [1.0] * 10)
  first = monitor.alarm
  monitor.reset()
  state = RiskMonitor(certificate(), tmp_path / 'monitor.json').state
  assert state.alarm is None and state.watch == records.WatchState()
  # Which requests are audited depends on their number, which goes on.
  assert (state.served, state.served_before) == (10, 10)
  (past,) = state.past_alarms
  assert past == dataclasses.replace(first, reset=past.reset)
  assert 'earlier alarm' in monitor.describe()
  assert '0 of 0 requests' in monitor.describe()
  observe(monitor, [1.0] * 10)
  assert monitor.alarm.served == first.served


def test_a_state_of_something_else_is_refused(tmp_path):
  path = tmp_path / 'monitor.json'
  observe(RiskMonitor(certificate(), path, error_rate=0.05), [0.1])
  assert RiskMonitor(certificate(), path).state.error_rate == 0.05
  with pytest.raises(ValueError, match='begun with error_rate 0.05, not 0.01'):
    RiskMonitor(certificate(), path, error_rate=0.01)
  with pytest.raises(ValueError, match="guarantee 'ever', not 'on_average'"):
    RiskMonitor(certificate(), path, guarantee='on_average')
  with pytest.raises(ValueError, match='is of another certificate, sha256:'):
    RiskMonitor(certificate(task='other'), path)
  assert calibration.standing_alarm(certificate(task='other'), path) is None
  path.write_text('{"certificate": ')
  with pytest.raises(ValueError, match='monitor.json is not valid JSON'):
    RiskMonitor(certificate(), path)


def test_nothing_is_counted_of_what_is_refused(tmp_path):
  path = tmp_path / 'monitor.json'
  monitor = RiskMonitor(certificate(), path)
  observe(monitor, [0.1])
  before = path.read_text()
  with pytest.raises(ValueError, match=r'loss 1.5 is outside \[0, 1\]'):
    observe(monitor, [0.2, 1.5])
  assert path.read_text() == before
  assert monitor.state.watch.count == 1


def test_the_promise_without_references_is_watched():
  chrf = dataclasses.replace(TEXTUAL, metric='chrf', tolerance=0.2)
  monitor = RiskMonitor(certificate(SIGNED, TEXTUAL, chrf))
  assert monitor.bound.metric == 'chrf'
  other = RiskMonitor(certificate(SIGNED, TEXTUAL, chrf), metric='rouge_l')
  assert (other.bound.metric, other.bound.tolerance) == ('rouge_l', 0.1)
  with pytest.raises(ValueError, match='by rouge_l, not by token_f1'):
    RiskMonitor(certificate(), metric='token_f1')
  with pytest.raises(ValueError, match='signed loss by chrf, which needs ref'):
    RiskMonitor(certificate(SIGNED))
  with pytest.raises(ValueError, match='nothing was certified'):
    RiskMonitor(certificate(losses=0.5))


def test_a_fingerprint_is_the_checksum_of_the_file(tmp_path):
  found = certificate()
  found.save(tmp_path / 'c.json')
  content = json.loads((tmp_path / 'c.json').read_text())
  assert content['checksum'] == found.fingerprint
  assert certificate(task='other').fingerprint != found.fingerprint
