"""A calibration that decodes rows by blocks, and no more than it takes."""

import numpy as np
import pytest
from fakes import toy_decoder

from calm_jax import calibration, decoding, evaluation, exits, records
from calm_jax.evaluation import reordered_batches

SETTINGS = (0.9, 0.5, 0.1)
POLICY = decoding.ComputePolicy(
  exit_rule=exits.ConfidenceExit(
    exits.SoftmaxMargin(), exits.ConstantThreshold(1.0)
  )
)


def make_batches(num_inputs=60, batch_size=20):
  """Inputs whose confidence grows at different speeds; the first four times."""
  batches = []
  for start in range(0, num_inputs, batch_size):
    rows = np.arange(start, start + batch_size)
    rows[-1] = 0
    tokens = np.stack([1 + rows % 9, 1 + rows // 9, 1 + rows * 0], axis=1)
    batches.append(
      {
        'encoder_input_tokens': tokens.astype(np.int32),
        'num_valid': batch_size,
        'inputs_text': [f'input {row}' for row in rows],
      }
    )
  return batches


def same_words(prediction, references):
  words = prediction.split()
  return max(
    float(np.mean([a == b for a, b in zip(words, text.split(), strict=True)]))
    for text in references
  )


def run(procedure, *, tolerance=0.95, batches=None, lines=None, **options):
  decode = evaluation.DatasetDecoder(
    bound=toy_decoder.toy_bound(),
    detokenize=lambda ids: ' '.join(map(str, ids)),
    max_length=4,
    eos_id=-1,
  )
  plan = evaluation.CalibrationPlan(
    settings=SETTINGS,
    tolerance=tolerance,
    loss=evaluation.textual_loss(same_words),
    procedure=procedure,
    **{name: options.pop(name) for name in ('p_value',) if name in options},
  )
  return evaluation.run_calibration(
    decode,
    make_batches() if batches is None else batches,
    POLICY,
    plan,
    progress=None if lines is None else lines.append,
    **options,
  )


@pytest.fixture(scope='module')
def whole():
  return run(None, full_grid=True)


@pytest.fixture(scope='module')
def stopped(tmp_path_factory):
  path, lines = tmp_path_factory.mktemp('table') / 'loss_table.npz', []
  found = run(
    calibration.AnytimeSequence(block=8), table_path=path, lines=lines
  )
  return found, path, lines


def test_rows_are_those_of_the_whole_table(whole, stopped):
  """In the order of the bets, as many as it took, with their own outputs."""
  found, path, lines = stopped
  seen = found.table.num_examples
  assert 0 < seen < whole.table.num_examples == 57
  assert found.certificate.num_examples == seen == found.cost.num_examples
  assert sum('of 57 inputs' in line for line in lines) == sum(
    -(-count // 8)
    for count in found.certificate.context['anytime_rows']['looked_at']
  )
  order = calibration.Betting().order(57)[:seen]
  ids = [whole.table.example_ids[place] for place in order]
  assert list(found.table.example_ids) == ids == list(found.full.example_ids)
  known = ~np.isnan(found.table.losses)
  np.testing.assert_array_equal(
    found.table.losses[known], whole.table.losses[order][known]
  )
  np.testing.assert_array_equal(found.full.tokens, whole.full.tokens[order])
  assert found.certificate.index == whole.certificate.index
  read = records.read_loss_table(path)
  np.testing.assert_array_equal(read.losses, found.table.losses)
  assert '57 in all' in found.certificate.describe()


def test_every_row_that_was_given_has_its_place(whole, stopped):
  """Twins share one; what was not looked at has neither tokens nor losses."""
  found, _, _ = stopped
  assert found.places.shape == whole.places.shape == (60,)
  assert len({found.places[row] for row in (0, 19, 39, 59)}) == 1
  tokens, losses = found.of_rows()
  seen = found.places >= 0
  np.testing.assert_array_equal(tokens[seen], whole.of_rows()[0][seen])
  assert not tokens[~seen].any() and np.isnan(losses[~seen]).all()


def test_what_is_hopeless_is_given_up_after_a_block():
  found = run(calibration.AnytimeSequence(block=20), tolerance=0.02)
  assert not found.certificate.certified
  assert found.certificate.num_examples == found.full.num_examples == 20
  # Of all rows, not of those that were looked at.
  assert '57 calibration examples are too few' in found.certificate.reason


def test_what_does_not_go_with_it_is_refused_before_decoding(monkeypatch):
  def refuse(*arguments, **keywords):
    raise AssertionError('decoded')

  monkeypatch.setattr(decoding, 'generate', refuse)
  sequence = calibration.AnytimeSequence()
  with pytest.raises(ValueError, match='FULL_GRID'):
    run(sequence, full_grid=True)
  with pytest.raises(ValueError, match='use calibration.betting'):
    run(sequence, p_value=calibration.hoeffding_bentkus)
  with pytest.raises(TypeError, match='without parentheses'):
    run(calibration.AnytimeSequence)


def test_rows_are_put_into_batches_of_their_shapes():
  """Rows keep the order, and everything that is said of them."""
  short, long = (
    {
      'encoder_input_tokens': np.arange(1, 1 + 3 * width).reshape(3, width),
      'inputs_text': [f'{width}-{row}' for row in range(3)],
      'num_valid': 2 if width == 4 else 3,
    }
    for width in (2, 4)
  )
  order = [4, 0, 1, 3, 2]
  first, last = reordered_batches.blocks_of([short, long], order, 4)
  texts = [text for batch in (*first, *last) for text in batch['inputs_text']]
  assert texts == ['4-1', '2-0', '2-1', '4-0', '2-2']
  assert [batch['num_valid'] for batch in first] == [1, 2, 1]
  tokens = first[1]['encoder_input_tokens']
  assert tokens.tolist() == [[1, 2], [3, 4], [0, 0]]
  same = reordered_batches.blocks_of([short, short], range(6), 6)[0]
  assert [batch['num_valid'] for batch in same] == [3, 3]
