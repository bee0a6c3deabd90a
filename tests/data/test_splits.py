"""Splits are disjoint by normalised input, whatever the rows look like."""

import random

import pytest

from calm_jax.data import splits
from calm_jax.data.jsonl_files import TextExample


def example(inputs, targets='t', references=()):
  return TextExample(inputs, targets, tuple(references) or (targets,))


def random_rows(seed=0, count=2000):
  """Rows of few distinct inputs, written in different ways."""
  rng = random.Random(seed)
  rows = []
  for _ in range(count):
    text = f'input {rng.randrange(count // 3)}'
    variant = rng.choice((text, text.upper(), f'  {text} ', text.title()))
    rows.append(example(variant, f'target {rng.randrange(9)}'))
  return rows


def hashes(rows):
  return [splits.normalised_input_hash(row.inputs) for row in rows]


@pytest.mark.parametrize(
  'left, right',
  [
    ('A  b', 'a b'),
    ('ﬁne', 'fine'),
    ('STRASSE', 'straße'),
    ('e\u0301', 'É'),
    ('\u00a0x\n', 'x'),
    ('１２', '12'),
  ],
)
def test_texts_that_read_alike_hash_alike(left, right):
  assert splits.normalised_input_hash(left) == (
    splits.normalised_input_hash(right)
  )


def test_hash_is_stable_and_depends_on_salt():
  assert splits.normalised_input_hash('a b') == 5918301461009757127
  assert splits.normalised_input_hash('a b') != (
    splits.normalised_input_hash('a b', 'salt')
  )
  assert splits.normalised_input_hash('a b') != (
    splits.normalised_input_hash('ab')
  )


def test_fraction_is_kept_and_nested():
  texts = [f'text {index}' for index in range(4000)]
  small = {text for text in texts if splits.in_fraction(text, 0.2, 's')}
  large = {text for text in texts if splits.in_fraction(text, 0.5, 's')}
  assert small < large
  # Four standard errors of a binomial share.
  assert abs(len(small) / 4000 - 0.2) < 4 * (0.2 * 0.8 / 4000) ** 0.5
  assert not any(splits.in_fraction(text, 0.0, 's') for text in texts)


def test_one_per_input_gathers_references():
  rows = [example('A', 'x'), example('b', 'y'), example('a ', 'z', ['z', 'x'])]
  kept = splits.one_per_input(rows)
  assert [row.inputs for row in kept] == ['A', 'b']
  assert kept[0].targets == 'x'
  assert kept[0].references == ('x', 'z')


@pytest.mark.parametrize('held_out_fraction', (0.0, 0.3))
@pytest.mark.parametrize('with_calibration', (False, True))
def test_splits_share_no_input(held_out_fraction, with_calibration):
  names = ['train', 'validation', 'test']
  names += ['calibration'] if with_calibration else []
  rows = {name: random_rows(seed) for seed, name in enumerate(names)}
  rows['test'] += [example(f'only in test {index}') for index in range(200)]
  rows['calibration' if with_calibration else 'test'] += [
    example(f'Only in calibration {index}') for index in range(200)
  ]
  plan = splits.SplitPlan(held_out_fraction=held_out_fraction)
  divided = plan.apply(rows)
  owners = {}
  for name, examples in divided.items():
    keys = hashes(examples)
    if name != 'train':
      assert len(set(keys)) == len(keys), name
    for key in set(keys):
      assert owners.setdefault(key, name) == name
  assert set(divided) <= set(splits.SPLITS)
  assert {'train', 'calibration', 'test'} <= set(divided)
  if not held_out_fraction:
    assert divided['train'] == rows['train']


def test_held_out_train_inputs_reach_calibration_and_test_alike():
  rows = {'train': random_rows(), 'test': [example('one more')]}
  divided = splits.SplitPlan(0.5, 0.5).apply(rows)
  distinct = len(set(hashes(rows['train'])))
  held = len(divided['calibration']) + len(divided['test'])
  assert held + len(set(hashes(divided['train']))) == distinct + 1
  assert 0.4 < len(divided['calibration']) / held < 0.6


def test_division_ignores_the_order_of_rows():
  rows = random_rows()
  reordered = random.Random(5).sample(rows, len(rows))
  plan = splits.SplitPlan(0.4, 0.3)
  test_rows = [example(f'other {index}') for index in range(50)]
  first = plan.apply({'train': rows, 'test': test_rows})
  second = plan.apply({'train': reordered, 'test': test_rows[::-1]})
  for name in first:
    assert sorted(set(hashes(first[name]))) == sorted(set(hashes(second[name])))


@pytest.mark.parametrize('fraction', (-0.1, 1.0, float('nan')))
def test_bad_fractions_are_named(fraction):
  with pytest.raises(ValueError, match='calibration_fraction is'):
    splits.SplitPlan(calibration_fraction=fraction)
  with pytest.raises(ValueError, match='held_out_fraction is'):
    splits.SplitPlan(held_out_fraction=fraction)


def test_what_splits_leave_out_is_counted():
  """By hand, and against what `apply` leaves."""
  rows = {
    'train': [example(f'{n}') for n in range(10)],
    'validation': [example(text) for text in ('1', 'a', 'A ', 'b', 'c')],
    'test': [example(text) for text in ('a', 'd', 'd', '2', 'e')],
    'calibration': [example(text) for text in ('3', 'b')],
  }
  plan = splits.SplitPlan()
  found = {one.split: one for one in plan.dropped(rows)}
  assert found == {
    'validation': splits.Dropped('validation', 5, 1, 1),
    'calibration': splits.Dropped('calibration', 2, 0, 2),
    'test': splits.Dropped('test', 5, 1, 2),
  }
  assert [found[name].all_shared for name in found] == [False, True, False]
  kept = plan.apply(rows)
  for name, one in found.items():
    left = one.rows - one.repeated - one.shared
    assert len(kept.get(name, ())) == left, name
  assert '5 rows 1 repeat an input' in str(found['validation'])
