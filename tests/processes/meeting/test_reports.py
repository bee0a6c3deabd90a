import dataclasses

import pytest

from calm_jax.processes.meeting import Membership, Report, disagreements


def report(index, error=None, **facts):
  return Report(
    index=index, count=3, host=f'host{index}', facts=facts, error=error
  )


def test_equal_reports_agree():
  assert not disagreements(
    [report(i, jax='0.10', gin='a\nb') for i in range(3)]
  )


def test_a_version_that_differs_is_named_with_its_hosts():
  (line,) = disagreements(
    [report(0, jax='0.10'), report(1, jax='0.10'), report(2, jax='0.11')]
  )
  assert line == (
    'jax differs: 0.10 (process 0 on host0, process 1 on host1), '
    '0.11 (process 2 on host2)'
  )


def test_a_library_that_one_host_lacks_is_named():
  (line,) = disagreements([report(0, libtpu='1'), report(1), report(2)])
  assert 'libtpu differs: 1 (process 0 on host0), missing (process 1' in line


def test_configurations_differ_by_the_lines_that_do():
  first = 'steps = 100\nseed = 0\nrate = 0.1\n'
  other = first.replace('100', '200')
  (line,) = disagreements(
    [report(0, gin=first), report(1, gin=other), report(2, gin=first)]
  )
  assert "'steps = 200' (the former), 'steps = 100' (the latter)" in line
  assert 'process 1 on host1 and process 0 on host0 differ' in line
  assert 'seed' not in line and 'rate' not in line


def test_long_differences_are_cut():
  first = '\n'.join(f'a{i} = 1' for i in range(50))
  (line,) = disagreements(
    [report(0, gin=first), report(1, gin=first.replace('= 1', '= 2'))]
  )
  assert len(line) < 400 and 'more lines' in line


def test_an_error_is_passed_on_and_its_missing_facts_are_not():
  reports = [report(0, jax='1'), report(1, 'no gin file x'), report(2, jax='1')]
  assert disagreements(reports) == ['process 1 on host1: no gin file x']
  reports = [dataclasses.replace(r, error='bad') for r in reports]
  assert disagreements(reports) == [
    'process 0 on host0, process 1 on host1, process 2 on host2: bad'
  ]


def test_many_hosts_are_counted():
  reports = [report(i, jax='1') for i in range(20)]
  reports[0] = report(0, jax='2')
  (line,) = disagreements(reports)
  assert '16 others' in line and 'host9' not in line


@pytest.mark.parametrize(
  'address,count,index,message',
  [
    ('localhost', 2, 0, "must be host:port, got 'localhost'"),
    ('localhost:http', 2, 0, 'must be host:port'),
    (':80', 2, 0, 'must be host:port'),
    ('a:70000', 2, 0, 'must be host:port'),
    ('a:80', 0, 0, 'count must be >= 1, got 0'),
    ('a:80', 2, 2, 'index 2 is out of range: 2 processes are numbered 0 to 1'),
    ('a:80', 2, -1, 'index -1 is out of range'),
  ],
)
def test_bad_memberships_are_named(address, count, index, message):
  with pytest.raises(ValueError, match=message):
    Membership(address, count, index)


def test_an_address_of_ipv6_loses_its_brackets():
  assert Membership('[::1]:80', 2, 0).address == ('::1', 80)
