"""Tasks of inputs alone: splits by hash, empty targets, bad definitions."""

import pytest

pytest.importorskip('seqio')

from calm_jax import data
from calm_jax.data.seqio import preprocessors

INPUTS = [f'text number {n}' for n in range(200)]


def task(name, inputs=INPUTS, **changes):
  return data.TextInputs(name, inputs, 'bytes', **changes)


def test_splits_follow_from_the_texts_alone():
  whole = task('whole').read_splits()
  assert {split: len(rows) for split, rows in whole.items()} == {
    split: pytest.approx(200 * share, abs=20)
    for split, share in (
      ('train', 0.5),
      ('validation', 0.05),
      ('calibration', 0.45),
    )
  }
  found = [row.inputs for rows in whole.values() for row in rows]
  assert sorted(found) == sorted(INPUTS)
  # Fewer of them, in another order, some twice: the same places.
  part = [*INPUTS[60:], *INPUTS[80:90]][::-1]
  for split, rows in task('part', part).read_splits().items():
    kept = {row.inputs for row in whole[split]} & set(part)
    assert {row.inputs for row in rows} == kept and len(rows) == len(kept)
  only = task('only', shares={'calibration': 1.0}).read_splits()
  assert list(only) == ['calibration'] and len(only['calibration']) == 200


def test_a_task_has_inputs_and_no_references():
  definition = task('said', INPUTS[:20], prefix='say: ', extra_ids=3)
  registered = data.as_task(definition)
  assert registered is data.as_task(definition)
  (first, *_) = registered.get_dataset(
    None, 'calibration', shuffle=False
  ).as_numpy_iterator()
  text = first['inputs_pretokenized'].decode()
  assert text.startswith('say: text number')
  assert (len(first['inputs']), first['targets'].tolist()) == (
    len(text) + 1,
    [1],
  )
  assert preprocessors.unpack_references(first) == []
  assert data.prefix_of(definition) == 'say: '
  with pytest.raises(ValueError, match='registered already with another'):
    data.as_task(task('said', INPUTS[:19]))


def test_what_learns_from_targets_refuses_it():
  definition = task('without_targets', INPUTS[:20])
  for given in (definition, data.as_task(definition)):
    with pytest.raises(ValueError, match='targets.* train_gates learns'):
      data.refuse_inputs_alone(given, job='train_gates')
  data.refuse_inputs_alone(data.EmbeddedCorpus(), job='train')


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (dict(inputs='one text'), "are one text, 'one text'; give a list"),
    (dict(inputs=[]), 'has no inputs'),
    (dict(inputs=['a', ' ']), "input 1 of Task 'bad' is empty"),
    (dict(shares={}), 'shares of Task'),
    (dict(shares={'tset': 0.5}), 'shares of Task .*tset'),
    (dict(shares={'train': 0.0}), 'shares of Task'),
    (dict(shares={'train': 0.7, 'calibration': 0.6}), 'at most 1 together'),
  ],
)
def test_bad_definitions_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    task('bad', **changes)
