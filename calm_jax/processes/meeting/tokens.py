"""How processes of one job know each other: a token that they all were given.

Whoever reaches the coordinator's port could otherwise take a process's place,
or end the job by saying that it has other numbers. Each side shows that it has
the token by a hash over a number that the other one has just made up; the token
itself is never sent, and what was overheard is of no use in the next meeting.
Without a token everybody is let in, as on a network of one's own.
"""

import hmac
import json
import secrets
from collections.abc import Mapping
from typing import Any


def fresh() -> str:
  """Returns a number that nobody has used before, as text."""
  return secrets.token_hex(16)


def proof(token: str, *said: str) -> str:
  """Returns what only a holder of the token can say of these texts."""
  text = json.dumps(said).encode()
  key = token.encode(errors='surrogateescape')
  return hmac.new(key, text, 'sha256').hexdigest()


def _is(said: Any, expected: str) -> bool:
  """Says whether a proof is the one expected, in a time that tells nothing."""
  if not isinstance(said, str) or not said.isascii():
    return False
  return hmac.compare_digest(said, expected)


class Gate:
  """What process 0 asks of one that greets it."""

  def __init__(self, token: str, greeting: Mapping[str, Any]):
    """Remembers what the other one said; see `challenge`."""
    self._token = token
    self._theirs = str(greeting.get('nonce'))
    self._ours = fresh()
    self._report = json.dumps(greeting.get('report'))

  def challenge(self) -> dict[str, str]:
    """Returns what to send: a number, and the proof that we have the token."""
    return {
      'challenge': self._ours,
      'proof': proof(self._token, 'process 0', self._theirs),
    }

  def admits(self, message: Mapping[str, Any]) -> bool:
    """Says whether the answer is that of a holder of the token."""
    expected = proof(self._token, 'member', self._ours, self._report)
    return _is(message.get('proof'), expected)


def answer(
  token: str, nonce: str, report: Mapping[str, Any], message: Mapping[str, Any]
) -> dict[str, str] | None:
  """Returns what to say to a challenge; None if the tokens differ.

  Args:
    token: ours.
    nonce: the number that we sent with our greeting.
    report: the report that we sent.
    message: the challenge.
  """
  if not _is(message.get('proof'), proof(token, 'process 0', nonce)):
    return None
  theirs = str(message.get('challenge'))
  # As the other side reads it: tuples have become lists.
  sent = json.dumps(json.loads(json.dumps(report)))
  return {'proof': proof(token, 'member', theirs, sent)}
