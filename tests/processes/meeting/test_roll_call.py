"""Processes as threads: who comes, who does not, and what all are told."""

import concurrent.futures
import contextlib
import dataclasses
import json
import select
import socket
import time

import pytest
from tools.free_ports import free_port

from calm_jax.processes.meeting import (
  Membership,
  Refused,
  Report,
  hold,
  join,
  roll_call,
)


def take_part(
  port, count, index, *, host=None, timeout=10.0, judge=None, token=''
):
  membership = Membership(f'localhost:{port}', count, index)
  report = Report(index=index, count=count, host=host or f'host{index}')
  if index == 0:
    return hold(
      membership,
      report,
      judge=judge or (lambda reports: ()),
      timeout_seconds=timeout,
      token=token,
    )
  return {0: join(membership, report, timeout_seconds=timeout, token=token)}


@pytest.fixture(autouse=True)
def _short_linger(monkeypatch):
  monkeypatch.setattr(roll_call, '_LINGER_SECONDS', 1.0)


def gather(*calls):
  """Runs them at once; returns what each returned or was refused with."""
  with concurrent.futures.ThreadPoolExecutor(len(calls)) as pool:
    futures = [pool.submit(call) for call in calls]
    outcomes = []
    for future in futures:
      try:
        outcomes.append(future.result(60))
      except Refused as refusal:
        outcomes.append(str(refusal))
  for links in outcomes:
    if isinstance(links, dict):
      for link in links.values():
        link.close()
  return outcomes


def test_all_who_come_are_connected_and_named():
  port = free_port()
  seen = []

  def judge(reports):
    seen.extend(report.host for report in reports)
    return ()

  outcomes = gather(
    *(lambda i=i: take_part(port, 4, i, judge=judge) for i in (3, 2, 1, 0))
  )
  assert seen == ['host0', 'host1', 'host2', 'host3']
  assert sorted(outcomes[-1]) == [1, 2, 3]
  assert outcomes[-1][2].name == 'process 2 on host2'
  assert [links[0].name for links in outcomes[:3]] == ['process 0 on host0'] * 3


def test_the_port_is_free_for_jax_while_the_links_are_open():
  port = free_port()
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    joined = pool.submit(take_part, port, 2, 1)
    links = take_part(port, 2, 0)
    socket.create_server(('', port)).close()
    links[1].send({'still': 'there'})
    joined.result()[0].socket.settimeout(30)
    assert joined.result()[0].receive() == [{'still': 'there'}]
    links[1].close()
    joined.result()[0].close()


def test_what_comes_right_behind_the_verdict_is_not_lost():
  listener = socket.create_server(('localhost', 0))
  port = listener.getsockname()[1]
  with concurrent.futures.ThreadPoolExecutor(1) as pool, listener:
    joined = pool.submit(take_part, port, 2, 1)
    connection, _ = listener.accept()
    with connection:
      connection.recv(65536)
      connection.sendall(b'{"start": "zero"}\n{"still": "there"}\n{"an')
      link = joined.result(30)[0]
      link.socket.settimeout(30)
      assert link.receive() == [{'still': 'there'}]
      connection.sendall(b'd": 1}\n')
      assert link.receive() == [{'and': 1}]
    with pytest.raises(EOFError):
      link.receive(one=True)
    link.close()


def test_all_are_told_what_the_judge_objects_to():
  port = free_port()
  outcomes = gather(
    lambda: take_part(port, 3, 0, judge=lambda reports: ['jax differs', 'x']),
    lambda: take_part(port, 3, 1),
    lambda: take_part(port, 3, 2),
  )
  assert outcomes == ['jax differs; x'] * 3


def test_the_missing_are_named_in_time():
  port, started = free_port(), time.monotonic()
  outcomes = gather(
    lambda: take_part(port, 4, 0, timeout=1.0),
    lambda: take_part(port, 4, 2, timeout=3.0),
  )
  assert time.monotonic() - started < 9
  for outcome in outcomes:
    assert (
      f'2 of 4 processes (1, 3) did not come to localhost:{port}' in outcome
    )
    assert 'within 1 s' in outcome


def test_other_counts_are_refused_at_once_and_late_comers_told():
  port, started = free_port(), time.monotonic()
  outcomes = gather(
    lambda: take_part(port, 3, 0, timeout=60),
    lambda: take_part(port, 2, 1, timeout=60),
    lambda: (time.sleep(0.5), take_part(port, 3, 2, timeout=60))[1],
  )
  assert time.monotonic() - started < 20
  assert len(set(outcomes)) == 1
  assert outcomes[0] == (
    'process 1 on host1 was told that there are 2 processes, process 0 on '
    'host0 that there are 3: give all the same --process_count'
  )


def test_two_of_one_number_are_refused():
  port = free_port()
  outcomes = gather(
    lambda: take_part(port, 3, 0),
    lambda: take_part(port, 3, 1, host='a'),
    lambda: take_part(port, 3, 1, host='b'),
  )
  assert len(set(outcomes)) == 1
  assert 'there are two of number 1, on ' in outcomes[0]


def test_strangers_and_those_who_gave_up_do_not_count():
  """One that was killed while it waited may come again."""
  port = free_port()
  first = json.dumps(
    {
      'greeting': 'calm_jax 1',
      'report': dataclasses.asdict(Report(index=1, count=3, host='dead')),
    }
  )

  def disturb():
    for text in ('PRI * HTTP/2.0\r\n\r\n', '{"a": 1}\n', '[]\n', first + '\n'):
      with _connected(port) as connection:
        connection.sendall(text.encode())
        time.sleep(0.3)
    return take_part(port, 3, 1)

  seen = []
  outcomes = gather(
    lambda: take_part(
      port, 3, 0, judge=lambda reports: seen.extend(r.host for r in reports)
    ),
    disturb,
    lambda: (time.sleep(1.5), take_part(port, 3, 2))[1],
  )
  assert all(isinstance(outcome, dict) for outcome in outcomes), outcomes
  assert seen == ['host0', 'host1', 'host2']


@contextlib.contextmanager
def _connected(port):
  for _ in range(100):
    with contextlib.suppress(OSError):
      with socket.create_connection(('localhost', port)) as connection:
        yield connection
      return
    time.sleep(0.05)


def test_a_port_in_use_is_named():
  with socket.create_server(('', 0)) as taken:
    port = taken.getsockname()[1]
    with pytest.raises(Refused, match=f'cannot listen on port {port}.*another'):
      take_part(port, 2, 0, timeout=0.5)


def test_an_unreachable_coordinator_is_named():
  port = free_port()
  with pytest.raises(Refused, match=f'process 0 at localhost:{port}.*refused'):
    take_part(port, 2, 1, timeout=0.5)
  membership = Membership('nowhere.invalid:80', 2, 1)
  with pytest.raises(Refused, match='process 0 at nowhere.invalid:80'):
    join(membership, Report(index=1, count=2), timeout_seconds=0.5)


def test_something_else_at_the_address_is_named():
  with socket.create_server(('', 0)) as other:

    def answer():
      connection, _ = other.accept()
      connection.sendall(b'SSH-2.0-OpenSSH_9.2\r\n')
      return connection

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
      answered = pool.submit(answer)
      with pytest.raises(Refused, match='not process 0 of this job.*SSH-2.0'):
        take_part(other.getsockname()[1], 2, 1, timeout=0.2)
      answered.result().close()


GOOD = dataclasses.asdict(Report(index=1, count=2, host='a'))
HALF_FORMED = [
  {},
  None,
  'report',
  {**GOOD, 'index': []},
  {**GOOD, 'index': '1'},
  {**GOOD, 'index': True},
  {**GOOD, 'index': -1},
  {**GOOD, 'index': 2},
  {**GOOD, 'count': 2.0},
  {**GOOD, 'host': 3},
  {**GOOD, 'host': 'a\x1b[2J'},
  {**GOOD, 'facts': []},
  {**GOOD, 'facts': {'jax': 3}},
  {**GOOD, 'marks': {'model_dir': 'x'}},
  {**GOOD, 'marks': {'model_dir': ['x', {}]}},
  {**GOOD, 'error': 3},
  {**GOOD, 'more': 1},
]


def test_half_formed_messages_stop_nobody():
  port = free_port()
  lines = [b'[' * 100_000, b'{"greeting": []}', b'\xff', b'{"greeting"']
  lines += [
    json.dumps({'greeting': 'calm_jax 1', 'report': report}).encode()
    for report in HALF_FORMED
  ]

  def disturb():
    for line in lines:
      with _connected(port) as connection:
        connection.sendall(line + b'\n')
    return take_part(port, 2, 1)

  outcomes = gather(lambda: take_part(port, 2, 0, timeout=30), disturb)
  assert all(isinstance(outcome, dict) for outcome in outcomes), outcomes


def _closed(connections, number, *, seconds=10.0):
  """Waits until so many were closed by the other side; returns how many."""
  open_, deadline = list(connections), time.monotonic() + seconds
  while time.monotonic() < deadline:
    for connection in select.select(open_, [], [], 0.1)[0]:
      open_.remove(connection)
    if len(connections) - len(open_) >= number:
      break
  return len(connections) - len(open_)


@pytest.mark.parametrize('token', ['', 'ours'])
def test_many_connections_that_say_nothing_keep_nobody_out(token):
  """Of 60 at most 4 x 2 + 16 are kept, and the others make room."""
  port = free_port()

  def disturb():
    with contextlib.ExitStack() as stack:
      idle = [stack.enter_context(_connected(port)) for _ in range(60)]
      assert _closed(idle, 36) == 36
      return take_part(port, 2, 1, token=token)

  outcomes = gather(
    lambda: take_part(port, 2, 0, timeout=30, token=token), disturb
  )
  assert all(isinstance(outcome, dict) for outcome in outcomes), outcomes


def test_who_does_not_say_who_it_is_is_closed_in_time(monkeypatch):
  """One that was let in stays; one that sends a byte now and then does not."""
  monkeypatch.setattr(roll_call, '_GREETING_SECONDS', 0.5)
  port = free_port()

  def disturb():
    with _connected(port) as idle, _connected(port) as slow:
      with contextlib.suppress(OSError):
        for _ in range(20):
          slow.sendall(b'{')
          time.sleep(0.1)
      assert _closed([idle, slow], 2) == 2
    return take_part(port, 3, 2)

  outcomes = gather(
    lambda: take_part(port, 3, 0, timeout=30),
    lambda: take_part(port, 3, 1),
    disturb,
  )
  assert all(isinstance(outcome, dict) for outcome in outcomes), outcomes


def test_without_the_token_nobody_stops_or_becomes_a_process():
  port = free_port()
  forged = {'greeting': 'calm_jax 1', 'report': GOOD, 'nonce': 'x'}
  other = {**forged, 'report': {**GOOD, 'count': 9}}

  def disturb():
    for message in (forged, other):
      for answer in (None, {'proof': 3}, {'proof': '\ud800'}, forged):
        with _connected(port) as connection:
          connection.sendall(json.dumps(message).encode() + b'\n')
          connection.recv(65536)
          if answer is not None:
            connection.sendall(json.dumps(answer).encode() + b'\n')
    refused = []
    for token in ('', 'another'):
      with pytest.raises(Refused) as caught:
        take_part(port, 2, 1, token=token)
      refused.append(str(caught.value))
    assert all('CALM_JAX_JOB_TOKEN' in one for one in refused), refused
    return take_part(port, 2, 1, token='ours', host='true')

  seen = []
  outcomes = gather(
    lambda: take_part(
      port,
      2,
      0,
      token='ours',
      judge=lambda reports: seen.extend(one.host for one in reports),
    ),
    disturb,
  )
  assert all(isinstance(outcome, dict) for outcome in outcomes), outcomes
  assert seen == ['host0', 'true']


def test_a_process_zero_without_the_token_is_none_of_ours():
  port = free_port()
  outcomes = gather(
    lambda: take_part(port, 2, 0),
    lambda: take_part(port, 2, 1, token='ours'),
  )
  assert 'CALM_JAX_JOB_TOKEN' in outcomes[1]
