"""Decoded rows on disk: nothing is decoded twice, and nothing is mixed up."""

import numpy as np
import pytest
from fakes import toy_decoder

from calm_jax import decoding, evaluation, exits
from calm_jax.evaluation import decode_store
from calm_jax.evaluation.decode_store import FIELDS, WORK

INPUTS = np.array(
  [[1, 2, 0], [3, 4, 5], [9, 1, 0], [2, 2, 0], [5, 0, 0]], np.int32
)
POLICY = decoding.ComputePolicy(
  exit_rule=exits.ConfidenceExit(exits.SoftmaxMargin(), 0.6)
)


def batches(inputs=INPUTS, size=2):
  for start in range(0, len(inputs), size):
    rows = np.zeros((size, inputs.shape[1]), np.int32)
    valid = inputs[start : start + size]
    rows[: len(valid)] = valid
    yield {'encoder_input_tokens': rows, 'num_valid': len(valid)}


def decode(store=None, source=None, policy=POLICY):
  return evaluation.decode_dataset(
    toy_decoder.toy_bound(),
    batches() if source is None else source,
    detokenize=str,
    max_length=4,
    eos_id=-1,
    policy=policy,
    store=store,
  )


def open_store(folder, **about):
  return evaluation.DecodeStore(folder, {'model': 'toy', **about})


def assert_same(one, other):
  for name in FIELDS:
    if name != 'seconds':
      np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
  assert one.texts == other.texts


def test_a_killed_decode_goes_on_where_it_was(tmp_path):
  def killed_after(number):
    for index, batch in enumerate(batches()):
      if index == number:
        raise KeyboardInterrupt
      yield batch

  with pytest.raises(KeyboardInterrupt):
    decode(open_store(tmp_path), killed_after(2))
  store = open_store(tmp_path)
  assert len(store) == 4
  before = set(tmp_path.rglob('rows-*.npz'))
  resumed = decode(store)
  assert len(set(tmp_path.rglob('rows-*.npz')) - before) == 1
  assert_same(resumed, decode())
  # The time of an earlier run counts, so that costs are those of one run.
  assert (resumed.seconds > 0).all()
  again = decode(open_store(tmp_path))
  np.testing.assert_array_equal(again.seconds, resumed.seconds)


def test_a_finished_decode_needs_no_model(tmp_path, monkeypatch):
  expected = decode(open_store(tmp_path))
  monkeypatch.setattr(decoding, 'generate', None)
  assert_same(decode(open_store(tmp_path)), expected)


def test_other_ways_of_decoding_are_kept_apart(tmp_path):
  decode(open_store(tmp_path, threshold=0.6))
  assert not len(open_store(tmp_path, threshold=0.5))
  assert len(open_store(tmp_path, threshold=0.6)) == 5
  # Another shape of batch may round otherwise, so it is another row.
  other = decode(open_store(tmp_path, threshold=0.6), batches(size=5))
  assert len(open_store(tmp_path, threshold=0.6)) == 10
  np.testing.assert_array_equal(other.tokens, decode().tokens)


def test_new_inputs_are_decoded_and_old_ones_found(tmp_path):
  decode(open_store(tmp_path))
  more = np.concatenate([INPUTS[::-1], [[7, 7, 7]]]).astype(np.int32)
  store = open_store(tmp_path)
  found = decode(store, batches(more))
  assert len(store) == 6
  assert_same(found, decode(source=batches(more)))


def test_the_ledger_of_every_row_is_kept(tmp_path):
  """Sums over its positions, from the decode or from the folder."""
  policy = decoding.ComputePolicy(
    exit_rule=exits.ScheduledExit(np.array([1, 1, 3, 1])),
    cache_fill=decoding.CatchUp(),
  )
  for _ in range(2):
    decoded = decode(open_store(tmp_path), policy=policy)
    assert decoded.work.shape == (5, len(WORK))
    row = dict(zip(WORK, decoded.work[4].tolist(), strict=True))
    # The third of four tokens takes two along through two layers.
    assert (row['attention'], row['caught_up']) == (6, 4)
    assert (row['fills'], row['projections']) == (6, 10)
    assert (row['checks'], row['outputs']) == (4, 40)
    assert decoded.total_work() == {name: 5 * of for name, of in row.items()}


def test_rows_of_which_less_was_kept_are_decoded_anew(tmp_path, monkeypatch):
  def older_store():
    fewer = [name for name in FIELDS if name != 'work']
    with monkeypatch.context() as patched:
      patched.setattr(decode_store, 'FIELDS', fewer)
      store = open_store(tmp_path)
      if not len(store):
        store.add(['a'], {name: np.zeros((1, 4)) for name in fewer})
    return store

  assert len(older_store()) == len(older_store()) == 1
  store = open_store(tmp_path)
  assert not len(store)
  assert_same(decode(store), decode())


def test_an_input_that_occurs_twice_is_decoded_and_counted_twice():
  twice = np.concatenate([INPUTS, INPUTS[:1]])
  decoded = decode(evaluation.DecodeStore(None, {}), batches(twice))
  assert decoded.num_examples == 6
  assert decoded.texts[5] == decoded.texts[0]


def test_two_jobs_that_decode_at_once_lose_no_rows(tmp_path, monkeypatch):
  """Even where the second one writes in the midst of the first one's write."""
  one, other = open_store(tmp_path), open_store(tmp_path)
  rows = {name: np.zeros((1, 4)) for name in FIELDS}
  save = np.savez_compressed

  def interrupted(*arguments, **arrays):
    monkeypatch.setattr(np, 'savez_compressed', save)
    other.add(['b'], rows)
    save(*arguments, **arrays)

  monkeypatch.setattr(np, 'savez_compressed', interrupted)
  one.add(['a'], rows)
  assert {'a', 'b'} == {key for key in 'ab' if key in open_store(tmp_path)}


def test_a_broken_file_is_named(tmp_path):
  decode(open_store(tmp_path))
  broken = sorted(tmp_path.rglob('rows-*.npz'))[1]
  broken.write_bytes(broken.read_bytes()[:-40])
  with pytest.raises(ValueError, match=f'{broken.name}.*delete it'):
    open_store(tmp_path)
  broken.unlink()
  assert len(open_store(tmp_path)) == 3


def test_what_differs_by_row_is_refused():
  with pytest.raises(ValueError, match='leave it out with'):
    evaluation.decode_dataset(
      toy_decoder.toy_bound(),
      batches(),
      detokenize=str,
      max_length=4,
      policy_for_batch=lambda rows: POLICY,
      store=evaluation.DecodeStore(None, {}),
    )
