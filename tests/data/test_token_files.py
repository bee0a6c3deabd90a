"""Training from .npz files: what was written, in a fixed order, or an error."""

import itertools
import json
import zipfile

import numpy as np
import pytest

from calm_jax import training
from calm_jax.tokenizer import cut_input

BUCKETS = ((4, 3), (7, 5))
KEYS = (
  'encoder_input_tokens',
  'decoder_input_tokens',
  'decoder_target_tokens',
  'decoder_loss_weights',
)


def examples(count=60):
  """Ids that tell the example: its number in the first ids, EOS last."""
  random = np.random.default_rng(0)
  return [
    {
      'inputs': [number + 2] * int(random.integers(1, 9)) + [1],
      'targets': [number + 2] * int(random.integers(1, 6)) + [1],
      'input_hash': 2**64 - 1 - number % 50,
    }
    for number in range(count)
  ]


@pytest.fixture
def path(tmp_path):
  path = tmp_path / 'tokens' / 'train.npz'
  written = training.write_npz(path, examples(), metadata={'prefix': 'é: '})
  assert written == 60
  return path


def take(path, count=None, **options):
  return list(itertools.islice(training.npz_batches(path, 8, **options), count))


def rows_of(batches):
  """Multiset of (inputs, targets), rows of zeros left out."""
  return sorted(
    (tuple(source[source > 0]), tuple(target[target > 0]))
    for batch in batches
    for source, target in zip(batch[KEYS[0]], batch[KEYS[2]], strict=True)
    if source.any()
  )


def assert_same(left, right):
  assert len(left) == len(right)
  for one, other in zip(left, right, strict=True):
    for key in KEYS:
      np.testing.assert_array_equal(one[key], other[key])


@pytest.mark.parametrize('buckets', [(), BUCKETS])
def test_an_epoch_holds_every_example_once(path, buckets):
  epoch = take(path, length_buckets=buckets, num_epochs=1)
  assert rows_of(epoch) == sorted(
    (tuple(row['inputs']), tuple(row['targets'])) for row in examples()
  )
  assert sum(batch['num_valid'] for batch in epoch) == 60
  shapes = {
    (batch[KEYS[0]].shape[1], batch[KEYS[2]].shape[1]) for batch in epoch
  }
  assert shapes == {*buckets, (9, 6)}


def test_batches_have_t5x_arrays(path):
  for batch in take(path, 20, length_buckets=BUCKETS):
    source, shifted, target, weights = (batch[key] for key in KEYS)
    assert source.dtype == shifted.dtype == target.dtype == np.int32
    assert weights.dtype == np.float32 and len(source) == len(target) == 8
    np.testing.assert_array_equal(weights, target > 0)
    assert not shifted[:, 0].any()
    np.testing.assert_array_equal(shifted[:, 1:], target[:, :-1])


def test_order_follows_from_the_seed_and_differs_between_epochs(path):
  first = take(path, 30, seed=3, length_buckets=BUCKETS)
  assert_same(first, take(path, 30, seed=3, length_buckets=BUCKETS))
  other = take(path, 30, seed=4, length_buckets=BUCKETS)
  assert rows_of(first[:3]) != rows_of(other[:3])
  # Without buckets 60 examples are seven and a half batches of each epoch.
  both = take(path, 15, seed=3)
  assert rows_of(both) == sorted(2 * rows_of(take(path, num_epochs=1)))
  assert rows_of(both[:7]) != rows_of(both[8:])


def test_the_file_order_is_kept_without_shuffling(path):
  made = take(path, num_epochs=1, shuffle=False)
  numbers = np.concatenate([batch[KEYS[0]][:, 0] for batch in made])
  assert numbers[:60].tolist() == list(range(2, 62))
  assert [batch['num_valid'] for batch in made] == [8] * 7 + [4]


@pytest.mark.parametrize('skip', [1, 9, 25])
def test_skip_goes_on_where_a_run_stopped(path, skip):
  options = dict(seed=1, length_buckets=BUCKETS)
  whole = take(path, 30, **options)
  assert_same(whole[skip:], take(path, 30 - skip, skip=skip, **options))


def test_shards_make_up_the_batches_of_one_process(path):
  options = dict(seed=1, length_buckets=BUCKETS, num_epochs=1, skip=2)
  whole = take(path, **options)
  shards = [
    take(path, num_shards=4, shard_id=shard, **options) for shard in range(4)
  ]
  for batch, *parts in zip(whole, *shards, strict=True):
    for key in KEYS:
      joined = np.concatenate([part[key] for part in parts])
      np.testing.assert_array_equal(joined, batch[key])
    assert sum(part['num_valid'] for part in parts) == batch['num_valid']


def test_long_examples_are_cut_with_one_warning(path, caplog):
  caplog.set_level('WARNING')
  lengths = {'inputs': 4, 'targets': 3}
  epoch = take(path, num_epochs=1, feature_lengths=lengths)
  assert rows_of(epoch) == sorted(
    (tuple(cut_input(row['inputs'], 4)), tuple(row['targets'][:3]))
    for row in examples()
  )
  (record,) = caplog.records
  assert (
    'of 60 examples' in record.message
    and 'are cut (inputs keep their EOS)' in record.message
  )


def test_metadata_and_hashes_are_kept(path, tmp_path):
  assert training.npz_metadata(path) == {'prefix': 'é: '}
  hashes = training.npz_input_hashes(path)
  assert hashes.dtype == np.uint64
  assert hashes.tolist() == [2**64 - 1 - number for number in range(49, -1, -1)]
  bare = tmp_path / 'bare.npz'
  training.write_npz(bare, [{'inputs': [3, 1], 'targets': [4, 1]}])
  assert training.npz_metadata(bare) == {}
  with pytest.raises(ValueError, match='holds no input hashes'):
    training.npz_input_hashes(bare)


@pytest.mark.parametrize(
  'change, message',
  [
    ({'inputs': [5, -3, 1]}, 'example 2: inputs holds the token id -3'),
    ({'targets': [5, 0]}, 'example 2: targets holds the token id 0'),
    ({'targets': [2**31]}, 'example 2: targets holds the token id 2147483648'),
    ({'targets': []}, 'example 2: targets must be'),
    ({'inputs': [1.5]}, 'example 2: inputs must be'),
  ],
)
def test_bad_ids_are_not_written(tmp_path, change, message):
  rows = [*examples(2), {**examples(3)[2], **change}]
  with pytest.raises(ValueError, match=message):
    training.write_npz(tmp_path / 'bad.npz', rows)
  assert not list(tmp_path.iterdir())


def test_nothing_and_half_the_hashes_are_not_written(tmp_path):
  with pytest.raises(ValueError, match='no examples to write'):
    training.write_npz(tmp_path / 'bad.npz', [])
  rows = [*examples(2), {'inputs': [3], 'targets': [3]}]
  with pytest.raises(ValueError, match='2 of 3 examples have an input_hash'):
    training.write_npz(tmp_path / 'bad.npz', rows)


def test_truncated_and_foreign_files_are_named(path, tmp_path):
  whole = path.read_bytes()
  for size in (0, 10, len(whole) // 2, len(whole) - 30):
    path.write_bytes(whole[:size])
    with pytest.raises(ValueError, match='train.npz is not a whole file'):
      training.npz_batches(path, 8)
  for arrays in (
    {'losses': np.zeros(3)},
    {'header': np.array(json.dumps({'format': 'loss table', 'version': 1}))},
    {'header': np.array(json.dumps([1]))},
  ):
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match='train.npz is not a whole file'):
      training.npz_batches(path, 8)
  np.save(tmp_path / 'array.npy', np.zeros(3))
  with pytest.raises(ValueError, match='is not a whole file'):
    training.npz_batches(tmp_path / 'array.npy', 8)
  with pytest.raises(FileNotFoundError, match='calm_jax.cli.tokenize'):
    training.npz_batches(tmp_path / 'none.npz', 8)


def rewritten(path, **changes):
  with np.load(path) as arrays:
    columns = {**arrays, **changes}
  np.savez(path, **columns)


def test_changed_files_are_named(path):
  with np.load(path) as arrays:
    columns = dict(arrays)
  ids, offsets = columns['inputs_ids'], columns['inputs_offsets']
  negative = ids.copy()
  negative[offsets[7]] = -4
  for changes, message in (
    ({'inputs_ids': negative}, r'1 token ids of inputs .* \(-4\) in example 7'),
    ({'inputs_ids': ids.astype(np.int64)}, 'dtypes int64'),
    ({'inputs_ids': ids[:-3]}, 'offsets of inputs do not divide'),
    ({'inputs_offsets': offsets[::-1].copy()}, 'offsets of inputs do not'),
    ({'input_hashes': np.zeros(3, np.uint64)}, r'are of \[3, 60\] examples'),
  ):
    np.savez(path, **{**columns, **changes})
    with pytest.raises(ValueError, match=message):
      training.npz_batches(path, 8)


def test_a_newer_version_is_refused(path):
  with np.load(path) as arrays:
    header = json.loads(arrays['header'].item())
  rewritten(path, header=np.array(json.dumps({**header, 'version': 9})))
  with pytest.raises(ValueError, match='version 9 is newer'):
    training.npz_batches(path, 8)


@pytest.mark.parametrize(
  'options, message',
  [
    ({'skip': -1}, 'skip is -1'),
    ({'num_epochs': 0}, 'num_epochs is 0'),
    ({'num_shards': 3}, 'batch_size is 8, which 3 shards'),
    ({'num_shards': 2, 'shard_id': 2}, 'shard_id is 2'),
    ({'feature_lengths': {'inputs': 0}}, 'feature_lengths'),
    ({'feature_lengths': {'sources': 3}}, 'sources'),
    ({'length_buckets': ((3, 0),)}, 'length_buckets'),
  ],
)
def test_bad_arguments_are_named_at_once(path, options, message):
  with pytest.raises(ValueError, match=message):
    training.npz_batches(path, 8, **options)


def test_a_bad_checksum_is_noticed(path):
  with zipfile.ZipFile(path) as archive:
    place = archive.getinfo('inputs_ids.npy').header_offset + 200
  data = bytearray(path.read_bytes())
  data[place] ^= 0xFF
  path.write_bytes(bytes(data))
  with pytest.raises(ValueError, match='is not a whole file'):
    training.npz_batches(path, 8)
