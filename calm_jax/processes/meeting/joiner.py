"""How every process but the first comes to the roll call."""

import dataclasses
import socket
import time

from calm_jax.processes.meeting import tokens
from calm_jax.processes.meeting.links import Link, NotOurs
from calm_jax.processes.meeting.membership import Membership
from calm_jax.processes.meeting.reports import Report

# Says that a connection is one of ours.
GREETING = 'calm_jax 1'
OTHER_TOKEN = (
  'process 0 has another job token: give all processes the same '
  '$CALM_JAX_JOB_TOKEN'
)
RETRY_SECONDS = 0.3


class Refused(ValueError):
  """The job does not start; the message says why."""


def join(
  membership: Membership,
  report: Report,
  *,
  timeout_seconds: float,
  token: str = '',
) -> Link:
  """Joins the roll call, as any other process; returns the connection.

  The arguments are those of `roll_call.hold`.

  Raises:
    Refused: if process 0 cannot be reached, or refuses.
  """
  deadline = time.monotonic() + timeout_seconds
  problem = 'no answer'
  while (left := deadline - time.monotonic()) > 0:
    try:
      connection = socket.create_connection(
        membership.address, timeout=min(left, 10)
      )
    except OSError as error:
      problem = error.strerror or str(error)
      time.sleep(RETRY_SECONDS)
      continue
    link = Link(connection)
    try:
      # Process 0 waits for the others for as long as we would.
      return _await_verdict(link, report, timeout_seconds + 10, token)
    except Refused:
      link.close()
      raise
    except (EOFError, OSError):
      problem = 'what listens there hung up without an answer'
    except NotOurs as error:
      problem = (
        f'what listens there is not process 0 of this job: it said {error}'
      )
    link.close()
    time.sleep(RETRY_SECONDS)
  raise Refused(
    f'{membership} did not reach process 0 at {membership.coordinator} within '
    f'{timeout_seconds:g} s ({problem}). Is process 0 running there, with the '
    'same --coordinator_address, and is the port open between the hosts?'
  )


def _await_verdict(
  link: Link, report: Report, seconds: float, token: str
) -> Link:
  link.socket.settimeout(seconds)
  said, nonce = dataclasses.asdict(report), tokens.fresh()
  link.send({'greeting': GREETING, 'report': said, 'nonce': nonce})
  known = not token
  while True:
    # What follows the verdict is for whoever gets the link.
    for message in link.receive(one=True):
      if 'challenge' in message:
        reply = tokens.answer(token, nonce, said, message)
        if reply is None:
          raise Refused(OTHER_TOKEN)
        link.send(reply)
        known = True
      elif 'refused' in message:
        raise Refused(str(message['refused']))
      elif 'start' not in message:
        raise NotOurs(repr(message)[:40])
      elif not known:
        raise Refused(OTHER_TOKEN)
      else:
        link.socket.settimeout(None)
        link.name = str(message['start'])
        return link
