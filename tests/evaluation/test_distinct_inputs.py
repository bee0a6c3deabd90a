"""Inputs that the model reads alike are one input, and are counted."""

import numpy as np

from calm_jax.evaluation import distinct_inputs


def batch(rows, references=None, num_rows=3):
  tokens = np.zeros((num_rows, 2), np.int32)
  tokens[: len(rows)] = rows
  made = {
    'encoder_input_tokens': tokens,
    'num_valid': len(rows),
    'inputs_text': [str(row) for row in rows],
    'targets_text': [f'target {row}' for row in rows],
  }
  return made if references is None else {**made, 'references': references}


def test_the_first_of_each_is_kept_with_the_references_of_all():
  batches = [
    batch([[5, 1], [6, 1], [5, 1]], [['a'], ['b'], ['c', 'a']]),
    batch([[6, 1], [5, 1]], [['b'], ['d']]),
    batch([[7, 1], [5, 1]], [['e'], ['f']]),
  ]
  found = distinct_inputs.distinct_inputs(batches)
  assert found.places.tolist() == [0, 1, 0, 1, 0, 2, 0]
  first, last = found.batches
  assert first['encoder_input_tokens'].tolist() == [[5, 1], [6, 1], [0, 0]]
  assert first['references'] == [['a', 'c', 'd', 'f'], ['b']]
  assert last['encoder_input_tokens'].tolist() == [[7, 1], [0, 0], [0, 0]]
  assert last['inputs_text'] == ['[7, 1]'] and last['references'] == [['e']]
  assert [made['num_valid'] for made in found.batches] == [2, 1]
  assert len(set(found.example_ids)) == 3
  assert found.describe().startswith('4 of 7 inputs are the same as an earlier')
  # What was given is left alone.
  assert batches[0]['num_valid'] == 3 and len(batches[0]['references']) == 3


def test_where_nothing_is_left_out_nothing_changes_and_nothing_is_said():
  batches = [batch([[5, 1], [6, 1]]), batch([[7, 1]])]
  found = distinct_inputs.distinct_inputs(batches)
  assert found.describe() is None
  for ours, given in zip(found.batches, batches, strict=True):
    assert ours['num_valid'] == given['num_valid']
    assert ours['encoder_input_tokens'] is given['encoder_input_tokens']
    assert ours['references'] == [[text] for text in given['targets_text']]
  bare = [{'encoder_input_tokens': np.array([[5, 1], [5, 1]])}]
  (ours,) = distinct_inputs.distinct_inputs(bare).batches
  assert 'references' not in ours and ours['num_valid'] == 1


def test_what_was_used_elsewhere_is_left_out_and_those_that_were_cut_counted():
  batches = [batch([[5, 1], [6, 0], [7, 1]]), batch([[8, 1]]), batch([[9, 1]])]
  ids = distinct_inputs.distinct_inputs(batches).example_ids
  left, shared, cut = distinct_inputs.leave_out(batches, {ids[1], ids[3]})
  assert (shared, cut) == (2, 1)
  assert [made['num_valid'] for made in left] == [2, 1]
  assert left[0]['encoder_input_tokens'].tolist() == [[5, 1], [7, 1], [0, 0]]
  assert left[0]['targets_text'] == ['target [5, 1]', 'target [7, 1]']
  assert left[1] is batches[2]
  assert distinct_inputs.leave_out(batches, frozenset())[0] == batches
