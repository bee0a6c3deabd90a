"""Batches: shapes, every example once, the same order again, cut examples."""

import itertools

import numpy as np
import pytest
from tools.planned import train_batches

pytest.importorskip('seqio')

from calm_jax.data.seqio import batches, tasks
from calm_jax.data.seqio.tensorflow_setup import tf

KEYS = (
  'encoder_input_tokens',
  'decoder_input_tokens',
  'decoder_target_tokens',
  'decoder_loss_weights',
)
LENGTHS = {'inputs': 30, 'targets': 20}
BUCKETS = ((10, 8), (16, 12))


@pytest.fixture(scope='module')
def task(jsonl_files):
  paths, vocabulary = jsonl_files
  return tasks.JsonlTask('batches', paths, vocabulary)


def take(count, **arguments):
  iterator = train_batches(
    arguments.pop('task'), 8, length_buckets=BUCKETS, **arguments
  )
  return list(itertools.islice(iterator, count))


def rows_of(all_batches):
  """Multiset of (inputs, targets) over batches, rows of zeros left out."""
  return sorted(
    (tuple(np.trim_zeros(source)), tuple(np.trim_zeros(target)))
    for batch in all_batches
    for source, target in zip(
      batch['encoder_input_tokens'],
      batch['decoder_target_tokens'],
      strict=True,
    )
    if source.any()
  )


def assert_same(left, right):
  assert len(left) == len(right)
  for one, other in zip(left, right, strict=True):
    for key in KEYS:
      np.testing.assert_array_equal(one[key], other[key])


@pytest.mark.slow
def test_rows_that_a_task_made_elsewhere_loses_are_counted(task, capsys):
  made = task.register()
  dropping = made.replace(
    name='batches_that_drop',
    preprocessors=[
      lambda dataset: (
        dataset.enumerate()
        .filter(lambda number, row: number % 50 > 0)
        .map(lambda number, row: row)
      ),
      *made.preprocessors,
    ],
  )
  for each, said in (
    (dropping, 'train: of 200 rows of its source 4'),
    (made, ''),
  ):
    take(1, task=each, feature_lengths=LENGTHS)
    found = capsys.readouterr().err
    assert said in found and bool(said) == ('no example' in found)


def test_train_batches_have_t5x_arrays_in_bucket_shapes(task):
  shapes = {*BUCKETS, (30, 20)}
  for batch in take(40, task=task, feature_lengths=LENGTHS):
    source, shifted, target, weights = (batch[key] for key in KEYS)
    assert (source.shape[1], target.shape[1]) in shapes
    assert len(source) == len(target) == 8
    assert source.dtype == shifted.dtype == target.dtype == np.int32
    assert weights.dtype == np.float32
    np.testing.assert_array_equal(weights, target > 0)
    assert not shifted[:, 0].any()
    np.testing.assert_array_equal(shifted[:, 1:], target[:, :-1])
    # EOS ends every row, and nothing but padding follows it.
    for row in (*source, *target):
      assert np.trim_zeros(row, 'b')[-1] == 1 and np.sum(row == 1) == 1


def test_one_epoch_holds_every_example_once(task):
  epoch = take(None, task=task, feature_lengths=LENGTHS, num_epochs=1)
  evaluation = batches.eval_batches(
    task, 8, feature_lengths=LENGTHS, split='train'
  )
  assert rows_of(epoch) == rows_of(evaluation)
  assert len(rows_of(epoch)) == 200


def test_order_follows_from_the_seed(task):
  first = take(60, task=task, feature_lengths=LENGTHS, seed=3)
  assert_same(first, take(60, task=task, feature_lengths=LENGTHS, seed=3))
  other = take(60, task=task, feature_lengths=LENGTHS, seed=4)
  assert not all(
    np.array_equal(a[KEYS[0]], b[KEYS[0]])
    for a, b in zip(first, other, strict=True)
  )


def test_epochs_are_shuffled_differently(task):
  both = take(None, task=task, feature_lengths=LENGTHS, num_epochs=2)
  assert len(rows_of(both)) == 400
  half = len(both) // 2
  assert not np.array_equal(both[0][KEYS[0]], both[half][KEYS[0]])


def test_skip_goes_on_where_a_run_stopped(task):
  whole = take(70, task=task, feature_lengths=LENGTHS, seed=1)
  for skip in (1, 33, 60):
    rest = take(
      70 - skip, task=task, feature_lengths=LENGTHS, seed=1, skip=skip
    )
    assert_same(whole[skip:], rest)


def test_eval_batches_keep_order_and_texts(task):
  made = list(
    batches.eval_batches(task, 8, feature_lengths=LENGTHS, split='validation')
  )
  rows = task.read_splits()['validation']
  assert sum(batch['num_valid'] for batch in made) == len(rows) == 30
  assert {batch[KEYS[0]].shape for batch in made} == {(8, 30)}
  texts = [text for batch in made for text in batch['inputs_text']]
  assert texts == [row.inputs for row in rows]
  references = [refs for batch in made for refs in batch['references']]
  assert references == [list(row.references) for row in rows]
  last = made[-1]
  assert last['num_valid'] == len(last['targets_text']) == 6
  assert all(not last[key][6:].any() for key in KEYS)
  assert all(last[KEYS[0]][:6].any(axis=1))


def test_max_examples(task):
  made = batches.eval_batches(task, 4, split='test', max_examples=6)
  assert [batch['num_valid'] for batch in made] == [4, 2]


def test_long_examples_are_cut_with_one_warning(task, caplog):
  lengths = {'inputs': 12, 'targets': 5}
  caplog.set_level('WARNING')
  made = take(40, task=task, feature_lengths=lengths)
  warnings = [
    record.message
    for record in caplog.records
    if 'feature_lengths' in record.message
  ]
  assert len(warnings) == 1 and 'of 200 examples' in warnings[0]
  assert {batch[KEYS[0]].shape for batch in made} == {(8, 12)}
  ends = np.concatenate([batch[KEYS[2]][:, -1] for batch in made])
  assert (ends > 1).any()


def test_long_examples_can_be_refused(task):
  with pytest.raises(ValueError, match=r'\d+ of 30 examples'):
    batches.eval_batches(
      task, 4, feature_lengths={'inputs': 10}, on_too_long='error'
    )


@pytest.mark.parametrize(
  'arguments, message',
  [
    ({'split': 'dev'}, "no split 'dev'"),
    ({'seed': 0, 'skip': -1}, 'skip is -1'),
    ({'num_epochs': 0}, 'num_epochs is 0'),
    ({'shuffle_buffer': 0}, 'shuffle_buffer is 0'),
    ({'feature_lengths': {'inputs': 0}}, 'inputs is 0'),
    ({'feature_lengths': {'sources': 9}}, 'sources'),
    ({'length_buckets': ((8, 0),)}, 'length_buckets'),
    ({'eval_examples': 0}, 'eval_examples is 0'),
  ],
)
def test_bad_arguments_are_named_at_once(task, arguments, message):
  with pytest.raises(ValueError, match=message):
    train_batches(task, 8, **arguments)


def test_bad_arguments_of_eval_batches(task):
  with pytest.raises(ValueError, match='batch_size is 0'):
    batches.eval_batches(task, 0)
  with pytest.raises(ValueError, match="on_too_long is 'drop'"):
    batches.eval_batches(task, 4, on_too_long='drop')


def packed(task, count=None, **options):
  iterator = train_batches(
    task, 4, feature_lengths=LENGTHS, pack=True, **options
  )
  return list(itertools.islice(iterator, count))


def segments_of(batch):
  """Yields (inputs, targets, decoder inputs) of every packed example."""
  for row in range(len(batch['encoder_input_tokens'])):
    encoder = batch['encoder_segment_ids'][row]
    decoder = batch['decoder_segment_ids'][row]
    assert encoder.max() == decoder.max()
    for segment in range(1, encoder.max() + 1):
      ours, theirs = encoder == segment, decoder == segment
      for side, chosen in (('encoder', ours), ('decoder', theirs)):
        positions = batch[f'{side}_positions'][row][chosen]
        np.testing.assert_array_equal(positions, np.arange(chosen.sum()))
        # One run of places without a gap.
        assert np.ptp(np.flatnonzero(chosen)) == chosen.sum() - 1
      yield (
        tuple(batch['encoder_input_tokens'][row][ours]),
        tuple(batch['decoder_target_tokens'][row][theirs]),
        tuple(batch['decoder_input_tokens'][row][theirs]),
      )


@pytest.mark.slow
def test_packing_keeps_every_example_whole(task):
  epoch = packed(task, num_epochs=1)
  plain = take(None, task=task, feature_lengths=LENGTHS, num_epochs=1)
  segments = [segment for batch in epoch for segment in segments_of(batch)]
  assert sorted(segment[:2] for segment in segments) == rows_of(plain)
  for _, targets, inputs in segments:
    assert inputs == (0, *targets[:-1])
  for batch in epoch:
    assert batch['encoder_input_tokens'].shape == (4, 30)
    assert batch['decoder_target_tokens'].shape == (4, 20)
    for name, array in batch.items():
      expected = np.float32 if name == 'decoder_loss_weights' else np.int32
      assert array.dtype == expected
    for side, tokens in (
      ('encoder', 'encoder_input_tokens'),
      ('decoder', 'decoder_target_tokens'),
    ):
      padding = batch[tokens] == 0
      np.testing.assert_array_equal(batch[f'{side}_segment_ids'] == 0, padding)
    np.testing.assert_array_equal(
      batch['decoder_loss_weights'], batch['decoder_target_tokens'] > 0
    )
  # Rows hold more than one example, or nothing was gained.
  rows = sum(batch['encoder_segment_ids'].any(axis=1).sum() for batch in epoch)
  assert rows < 0.7 * len(segments)


@pytest.mark.slow
def test_packed_batches_follow_from_the_seed_and_skip(task):
  whole = packed(task, 14, seed=5)
  rest = packed(task, 6, seed=5, skip=8)
  for one, other in zip(whole[8:], rest, strict=True):
    assert one.keys() == other.keys() and len(one) == 8
    for name in one:
      np.testing.assert_array_equal(one[name], other[name])
  assert not np.array_equal(
    whole[0][KEYS[0]], packed(task, 1, seed=6)[0][KEYS[0]]
  )


@pytest.mark.slow
@pytest.mark.parametrize('pack', [False, True])
def test_shards_make_up_the_batches_of_one_process(task, pack):
  options = dict(
    feature_lengths=LENGTHS,
    length_buckets=BUCKETS,
    num_epochs=1,
    pack=pack,
    skip=3,
  )
  whole = list(train_batches(task, 8, **options))
  shards = [
    list(train_batches(task, 8, num_shards=2, shard_id=shard, **options))
    for shard in range(2)
  ]
  assert {len(shard) for shard in shards} == {len(whole)} and len(whole) > 3
  for batch, *parts in zip(whole, *shards, strict=True):
    real = [part.pop('num_valid', 0) for part in parts]
    assert sum(real) == batch.pop('num_valid', 0)
    for name, array in batch.items():
      joined = np.concatenate([part[name] for part in parts])
      np.testing.assert_array_equal(joined, array)


def test_evaluation_shards_count_every_example_once(task):
  options = dict(feature_lengths=LENGTHS, split='validation')
  whole = list(batches.eval_batches(task, 8, **options))
  shards = [
    list(batches.eval_batches(task, 8, num_shards=4, shard_id=shard, **options))
    for shard in range(4)
  ]
  assert {len(shard) for shard in shards} == {len(whole)} == {4}
  for batch, *parts in zip(whole, *shards, strict=True):
    for key in KEYS:
      joined = np.concatenate([part[key] for part in parts])
      np.testing.assert_array_equal(joined, batch[key])
    for key in ('inputs_text', 'targets_text', 'references'):
      assert sum((part[key] for part in parts), []) == batch[key]
    assert sum(part['num_valid'] for part in parts) == batch['num_valid']
  # 30 rows: the last batch has 6, so the last process has none of them.
  assert [part[-1]['num_valid'] for part in shards] == [2, 2, 2, 0]


@pytest.mark.parametrize('make', [train_batches, batches.eval_batches])
@pytest.mark.parametrize(
  'shards, message',
  [
    ({'num_shards': 0}, 'num_shards is 0'),
    ({'num_shards': 3}, 'batch_size is 8, which 3 shards'),
    ({'num_shards': 2, 'shard_id': 2}, 'shard_id is 2'),
    ({'num_shards': 2, 'shard_id': -1}, 'shard_id is -1'),
  ],
)
def test_bad_shards_are_named(task, make, shards, message):
  with pytest.raises(ValueError, match=message):
    make(task, 8, **shards)


def test_tensorflow_sees_no_accelerator():
  assert not tf.config.get_visible_devices('GPU')
  assert not tf.config.get_visible_devices('TPU')
