import queue
import socket
import time

import pytest

from calm_jax.processes.meeting import Ending, Watch
from calm_jax.processes.meeting.links import Link

PATIENCE = 10


class Members:
  """Three processes of one job, each with its watch and what it was told.

  One that is to die has no watch, as its thread dies with it.
  """

  def __init__(self, mortal=None, silence_seconds=8):
    self.told = [queue.Queue() for _ in range(3)]
    self.warned = [queue.Queue() for _ in range(3)]
    pairs = {index: _pair() for index in (1, 2)}
    # Each end is called by who is at the other.
    self.here = {i: Link(a, f'process {i}') for i, (a, _) in pairs.items()}
    self.there = {i: Link(b, 'process 0') for i, (_, b) in pairs.items()}
    self.watches = {
      index: Watch(
        self.links(index),
        silence_seconds=silence_seconds,
        on_end=self.told[index].put,
        on_silence=self.warned[index].put,
      )
      for index in range(3)
      if index != mortal
    }

  def links(self, index):
    return list(self.here.values()) if index == 0 else [self.there[index]]

  def die(self, index):
    for link in self.links(index):
      link.socket.shutdown(socket.SHUT_RDWR)


def _pair():
  with socket.create_server(('localhost', 0)) as listener:
    near = socket.create_connection(listener.getsockname())
    return listener.accept()[0], near


@pytest.fixture
def gather():
  made = []

  def make(mortal=None, **settings):
    made.append(Members(mortal, **settings))
    return made[-1]

  yield make
  for members in made:
    for watch in members.watches.values():
      watch.leave()
    for index in range(3):
      for link in members.links(index):
        link.close()


def test_all_others_hear_which_process_died(gather):
  members = gather(mortal=2)
  members.die(2)
  for index in (0, 1):
    ending = members.told[index].get(timeout=PATIENCE)
    assert ending.what.startswith('process 2 is gone')
    assert not ending.failed


def test_the_death_of_process_0_is_heard(gather):
  members = gather(mortal=0)
  members.die(0)
  for index in (1, 2):
    ending = members.told[index].get(timeout=PATIENCE)
    assert ending.what.startswith('process 0 is gone')


@pytest.mark.parametrize('failing', [0, 1])
def test_an_error_is_passed_on(gather, failing):
  members = gather()
  members.watches[failing].leave('ValueError: bad row')
  for index in {0, 1, 2} - {failing}:
    ending = members.told[index].get(timeout=PATIENCE)
    assert ending == Ending(f'process {failing}: ValueError: bad row', True)


def test_who_leaves_in_order_is_not_missed_and_the_others_are(gather):
  members = gather(mortal=2)
  members.watches[1].leave()
  with pytest.raises(queue.Empty):
    members.told[0].get(timeout=0.5)
  members.die(2)
  assert members.told[0].get(timeout=PATIENCE).what.startswith('process 2')
  assert members.told[1].empty()


def test_who_has_left_hears_nothing(gather):
  members = gather(mortal=2)
  members.watches[0].leave()
  members.die(2)
  with pytest.raises(queue.Empty):
    members.told[0].get(timeout=0.5)


def test_who_hangs_is_named_to_all_and_ends_nobody(gather):
  members = gather(mortal=2, silence_seconds=1)
  for index in (0, 1):
    assert members.warned[index].get(timeout=PATIENCE) == 'process 2'
  # It has come back, and hangs again.
  members.there[2].send({'alive': True})
  for index in (0, 1):
    assert members.warned[index].get(timeout=PATIENCE) == 'process 2'
    assert members.told[index].empty()


def test_who_is_idle_gives_signs_of_life(gather):
  members = gather(silence_seconds=0.8)
  time.sleep(1.5)
  assert all(queue.empty() for queue in (*members.told, *members.warned))


def test_a_silent_host_breaks_the_connection_in_time(gather):
  """The kernel asks for signs of life; a real host cannot be unplugged here."""
  sock = gather().here[1].socket
  assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
  if not hasattr(socket, 'TCP_KEEPIDLE'):
    pytest.skip('another system')
  idle, interval, count = (
    sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
    for name in ('TCP_KEEPIDLE', 'TCP_KEEPINTVL', 'TCP_KEEPCNT')
  )
  assert idle + interval * count <= 8
