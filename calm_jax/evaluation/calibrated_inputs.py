"""What the inputs of a calibration are like, for its certificate."""

import datetime

import numpy as np

from calm_jax import records
from calm_jax.evaluation.decode_dataset import num_valid_of
from calm_jax.evaluation.decoded_dataset import DecodedDataset
from calm_jax.evaluation.distinct_inputs import DistinctInputs


def seen_rows(inputs: DistinctInputs, full: DecodedDataset) -> records.SeenRows:
  """Returns what a calibration has seen, before any loss.

  Args:
    inputs: the inputs that were there.
    full: the full model's decode of those that were looked at.
  """
  lengths, filled = [], 0
  for batch in inputs.batches:
    tokens = np.asarray(batch['encoder_input_tokens'])[: num_valid_of(batch)]
    lengths += np.count_nonzero(tokens, axis=1).tolist()
    filled += int(np.count_nonzero(tokens[:, -1]))
  today = datetime.datetime.now(datetime.UTC).date()
  return records.SeenRows(
    date=today.isoformat(),
    given=len(inputs.places),
    used=len(full.lengths),
    input_tokens=records.Lengths.of(lengths),
    filled=filled,
    output_tokens=records.Lengths.of(full.lengths.tolist()),
  )
