"""Decoding a dataset: what comes out, in what order, whatever the batches."""

import functools

import jax
import numpy as np
import pytest
from fakes import toy_decoder

from calm_jax import decoding, evaluation, exits

# The first token is how fast confidence grows; the others only tell inputs
# apart.
INPUTS = np.array(
  [[1, 2, 0], [3, 4, 5], [9, 1, 0], [2, 2, 0], [5, 0, 0]], np.int32
)
MAX_LENGTH = 4


def make_batches(batch_size, inputs=INPUTS):
  batches = []
  for start in range(0, len(inputs), batch_size):
    rows = inputs[start : start + batch_size]
    padded = np.zeros((batch_size, inputs.shape[1]), np.int32)
    padded[: len(rows)] = rows
    names = [f'input {start + index}' for index in range(len(rows))]
    batches.append(
      {
        'encoder_input_tokens': padded,
        'num_valid': len(rows),
        'inputs_text': names,
        'targets_text': [name.upper() for name in names],
      }
    )
  return batches


def detokenize(ids):
  return ' '.join(map(str, ids))


def confidence_policy(threshold):
  return decoding.ComputePolicy(
    exit_rule=exits.ConfidenceExit(
      measure=exits.SoftmaxMargin(),
      threshold=exits.ConstantThreshold(threshold),
    )
  )


def decode(batches=None, **arguments):
  return evaluation.decode_dataset(
    toy_decoder.toy_bound(),
    make_batches(2) if batches is None else batches,
    **{
      'detokenize': detokenize,
      'max_length': MAX_LENGTH,
      'eos_id': -1,
      **arguments,
    },
  )


def test_suppressed_tokens_are_never_said():
  never = toy_decoder.FULL_TOKENS[1]
  found = decode(suppressed_tokens=(never,))
  assert found.tokens[0, 0] == toy_decoder.FULL_TOKENS[0]
  assert not (found.tokens == never).any()


def test_full_and_static_decodes_are_the_ones_worked_out_by_hand():
  full = decode()
  assert full.tokens.tolist() == [list(toy_decoder.FULL_TOKENS)] * 5
  assert full.exit_layer_histogram() == (0, 0, 20)
  assert full.mean_exit_layer == 3.0
  static = decode(policy=decoding.ComputePolicy(exit_rule=exits.FixedExit(1)))
  assert static.tokens.tolist() == [list(toy_decoder.EXIT_1_TOKENS)] * 5
  assert static.exit_layer_histogram() == (20, 0, 0)
  assert static.texts == ('1 2 4 8',) * 5
  assert static.num_tokens == static.lengths.sum() == 20


def test_texts_and_ids_follow_the_inputs_and_filling_rows_are_dropped():
  decoded = decode()
  assert decoded.num_examples == 5
  assert decoded.inputs_text == tuple(f'input {n}' for n in range(5))
  assert decoded.references == tuple((f'INPUT {n}',) for n in range(5))
  assert len(set(decoded.example_ids)) == 5
  batch = {**make_batches(5)[0], 'references': [['a', 'b']] * 5}
  assert decode([batch]).references == (('a', 'b'),) * 5
  bare = {'encoder_input_tokens': INPUTS}
  assert decode([bare]).references == ((),) * 5


@pytest.mark.parametrize('batch_size', [1, 3])
def test_batching_changes_nothing(batch_size):
  policy = confidence_policy(0.6)
  expected = decode(policy=policy)
  decoded = decode(make_batches(batch_size), policy=policy)
  for name in ('tokens', 'exit_layers', 'lengths'):
    np.testing.assert_array_equal(
      getattr(decoded, name), getattr(expected, name)
    )
  np.testing.assert_allclose(
    decoded.confidences, expected.confidences, rtol=1e-5
  )
  assert decoded.example_ids == expected.example_ids
  assert 1 < expected.mean_exit_layer < 3
  assert sum(expected.exit_layer_histogram()) == expected.num_tokens


def test_draws_do_not_depend_on_the_batches():
  draw = functools.partial(
    decode, sampler=decoding.Temperature(3.0), rng=jax.random.key(7)
  )
  decoded = draw()
  np.testing.assert_array_equal(decoded.tokens, draw(make_batches(3)).tokens)
  assert len({tuple(row) for row in decoded.tokens.tolist()}) > 1


def test_ends_at_eos_and_leaves_it_out_of_the_text():
  decoded = decode(eos_id=9)
  assert decoded.tokens.tolist() == [[3, 9, 0, 0]] * 5
  assert decoded.texts == ('3',) * 5
  assert decoded.lengths.tolist() == [2] * 5
  assert decoded.exit_layers[0].tolist() == [3, 3, -1, -1]
  assert decoded.num_tokens == 10


@pytest.mark.parametrize('batch_size', [2, 5])
def test_oracle_gives_the_full_tokens_with_fewer_layers(batch_size):
  batches = make_batches(batch_size)
  # Row 1's target is what layer 1 says, so that rows are told apart.
  full = decode(batches)
  full.tokens[1] = toy_decoder.EXIT_1_TOKENS
  oracle = decode(batches, policy_for_batch=evaluation.oracle_policy(full))
  assert oracle.tokens[1].tolist() == list(toy_decoder.EXIT_1_TOKENS)
  assert oracle.exit_layers[1].tolist() == [1] * 4
  assert oracle.tokens[0].tolist() == list(toy_decoder.FULL_TOKENS)
  assert oracle.exit_layers[4].tolist() == oracle.exit_layers[0].tolist()


def test_another_threshold_compiles_nothing():
  compiled = []
  decode(policy=confidence_policy(0.5))
  jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: (
      compiled.append(event)
      if event.endswith('backend_compile_duration')
      else None
    )
  )
  try:
    means = [
      decode(policy=confidence_policy(threshold)).mean_exit_layer
      for threshold in (0.2, 0.7, 1.0)
    ]
    assert not compiled
    assert means[0] < means[1] < means[2] == 3.0
    decode(policy=confidence_policy(0.5), max_length=5)
    assert compiled, 'the listener hears nothing'
  finally:
    jax.monitoring.clear_event_listeners()


def test_progress_lines_say_how_far_it_is():
  lines = []
  decode(progress=lines.append, progress_seconds=0.0)
  assert len(lines) == 3
  assert 'decoded 5 of 5 inputs' in lines[-1]
  assert 'tokens/s' in lines[-1] and 'about 0 s left' in lines[-1]
  assert 'mean exit layer 3.00' in lines[-1]


@pytest.mark.parametrize(
  ('batches', 'message'),
  [
    ([], 'nothing to decode'),
    ([{'encoder_input_tokens': np.zeros((1, 3), int)}], 'input 0 is empty'),
    (
      [{'encoder_input_tokens': INPUTS, 'num_valid': 6}],
      'num_valid is 6, expected 1..5',
    ),
  ],
)
def test_bad_batches_are_named(batches, message):
  with pytest.raises(ValueError, match=message):
    decode(batches)


def test_two_policies_are_refused():
  policy = decoding.ComputePolicy()
  with pytest.raises(ValueError, match='not both'):
    decode(policy=policy, policy_for_batch=lambda rows: policy)


def test_example_ids_ignore_padding_and_nothing_else():
  tokens = np.array([4, 0, 7])
  assert evaluation.example_id(tokens) == evaluation.example_id(
    np.pad(tokens, (0, 3)).astype(np.int64)
  )
  different = [[4, 7], [4, 0, 7, 1], [0, 4, 0, 7], [4, 0, 8]]
  ids = {evaluation.example_id(np.array(row)) for row in different}
  assert len(ids | {evaluation.example_id(tokens)}) == 5
