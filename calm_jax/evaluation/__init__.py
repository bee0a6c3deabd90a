"""Policies times batches: outputs, scores, loss tables and timings.

Everything takes a `LayeredDecoder` and iterables of NumPy batches; nothing here
loads TensorFlow or knows the model.
"""

from calm_jax.evaluation.comparison import (
  ComparedDecode,
  Scoring,
  baseline_row,
  compare,
  decode_for_comparison,
  score,
  static_layers,
)
from calm_jax.evaluation.decode_dataset import (
  DecodedDataset,
  decode_dataset,
  example_id,
  oracle_policy,
)
from calm_jax.evaluation.loss_table import (
  build_loss_table,
  risk_loss,
  textual_loss,
)
from calm_jax.evaluation.samples import decoded_text, sample_outputs
from calm_jax.evaluation.timing import take_batches, time_decode

__all__ = [
  'ComparedDecode',
  'DecodedDataset',
  'Scoring',
  'baseline_row',
  'build_loss_table',
  'compare',
  'decode_dataset',
  'decode_for_comparison',
  'decoded_text',
  'example_id',
  'oracle_policy',
  'risk_loss',
  'sample_outputs',
  'score',
  'static_layers',
  'take_batches',
  'textual_loss',
  'time_decode',
]
