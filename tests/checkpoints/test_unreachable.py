"""Buckets that nothing leads to end at once, with what to do."""

import time

import pytest
from tools.free_ports import free_port

from calm_jax import checkpoints


def test_without_a_network_a_bucket_is_refused_in_time(monkeypatch):
  for name in ('http_proxy', 'HTTP_PROXY'):
    monkeypatch.delenv(name, raising=False)
  address = f'http://localhost:{free_port()}'
  monkeypatch.setenv('TENSORSTORE_GCS_HTTP_URL', address)
  started = time.monotonic()
  with pytest.raises(ConnectionError, match='no way to localhost.*cp --recur'):
    checkpoints.open_checkpoint('gs://nothing-here/x')
  assert time.monotonic() - started < 25
