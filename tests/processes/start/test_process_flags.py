import re

import pytest
from absl import flags
from absl.testing import flagsaver

from calm_jax.processes.meeting import Membership
from calm_jax.processes.start import process_flags

SLURM = {
  'SLURM_JOB_ID': '5',
  'SLURM_STEP_NODELIST': 'node[3-4]',
  'SLURM_NTASKS': '2',
  'SLURM_PROCID': '1',
  'SLURM_LOCALID': '0',
}


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()
  monkeypatch.delenv('JAX_COORDINATOR_ADDRESS', raising=False)
  for name in SLURM:
    monkeypatch.delenv(name, raising=False)


def membership(**given):
  with flagsaver.flagsaver(**given):
    return process_flags.membership()


def test_without_flags_a_process_is_alone():
  assert membership() is None
  one = dict(coordinator_address='a:1', process_count=1, process_index=0)
  assert membership(**one) is None


def test_flags_say_which_process_it_is(monkeypatch):
  given = dict(process_count=4, process_index=3)
  found = Membership('a:1', 4, 3)
  assert membership(coordinator_address='a:1', **given) == found
  monkeypatch.setenv('JAX_COORDINATOR_ADDRESS', 'a:1')
  assert membership(**given) == found
  other = membership(coordinator_address='b:1', **given)
  assert other.coordinator == 'b:1'


@pytest.mark.parametrize(
  'given,message',
  [
    (
      dict(process_count=2),
      '--process_count=2, but no --coordinator_address and no --process_index',
    ),
    (
      dict(coordinator_address='a:1', process_index=0),
      '--coordinator_address=a:1, --process_index=0, but no --process_count',
    ),
    (
      dict(coordinator_address='a:1', process_count=2, process_index=2),
      'index 2 is out of range',
    ),
    (dict(multiprocess=True, process_index=0), 'give one or the other'),
    (dict(multiprocess=True), 'finds no TPU pod, SLURM step'),
  ],
)
def test_bad_flags_are_named(given, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    membership(**given)


def test_an_address_left_in_the_environment_is_named(monkeypatch):
  monkeypatch.setenv('JAX_COORDINATOR_ADDRESS', 'a:1')
  with pytest.raises(
    ValueError, match=r'a:1 \(\$JAX_COORDINATOR_ADDRESS\), bu'
  ):
    membership()


def test_slurm_is_found_as_jax_finds_it(monkeypatch):
  for name, value in SLURM.items():
    monkeypatch.setenv(name, value)
  found = membership(multiprocess=True)
  assert (found.count, found.index) == (2, 1)
  assert found.address[0] == 'node3'


def test_another_jax_is_named_with_the_way_out(monkeypatch):
  monkeypatch.setattr(process_flags, '_CLUSTERS', 'jax._src.nowhere')
  with pytest.raises(ValueError, match='does not know.*--process_count'):
    membership(multiprocess=True)
