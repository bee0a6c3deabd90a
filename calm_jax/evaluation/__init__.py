"""Policies times batches: outputs, scores, loss tables and timings.

Everything takes a `LayeredDecoder` and iterables of NumPy batches; nothing here
loads TensorFlow or knows the model.
"""

from calm_jax.evaluation.batch_layout import BatchLayout
from calm_jax.evaluation.budget_use import budget_use
from calm_jax.evaluation.calibrating import (
  Calibration,
  calibrate,
  run_calibration,
)
from calm_jax.evaluation.calibration_plan import CalibrationPlan
from calm_jax.evaluation.candidates import Candidate, Candidates
from calm_jax.evaluation.classifier_clock import classifying_times
from calm_jax.evaluation.comparison import (
  ComparedDecode,
  Scoring,
  baseline_row,
  compare,
  decode_for_comparison,
  score,
  static_layers,
  sweep,
)
from calm_jax.evaluation.comparison_plan import ComparisonPlan
from calm_jax.evaluation.compile_clock import compile_seconds
from calm_jax.evaluation.dataset_classifier import (
  CLASSES,
  DatasetClassifier,
)
from calm_jax.evaluation.dataset_decoder import DatasetDecoder
from calm_jax.evaluation.decode_dataset import decode_dataset, oracle_policy
from calm_jax.evaluation.decode_store import DecodeStore, row_key
from calm_jax.evaluation.decoded_dataset import DecodedDataset, example_id
from calm_jax.evaluation.delay_gradients import (
  DelayLoss,
  embedding_table,
  encoder_exit_gradients,
  token_exit_gradients,
)
from calm_jax.evaluation.delaying_edits import (
  AnyTokens,
  FewWords,
  nearest_words,
)
from calm_jax.evaluation.delaying_inputs import (
  delayed_inputs,
  random_inputs,
  shuffled_inputs,
)
from calm_jax.evaluation.delaying_searches import (
  Climb,
  GradientGuided,
  RandomSearch,
)
from calm_jax.evaluation.depth_batches import batches_by_depth
from calm_jax.evaluation.distinct_inputs import leave_out
from calm_jax.evaluation.evaluating import Evaluation, Timed, run_evaluation
from calm_jax.evaluation.followed_policies import follows_from_full
from calm_jax.evaluation.full_traces import FullTraces
from calm_jax.evaluation.loss_table import build_loss_table
from calm_jax.evaluation.losses import (
  ConsistencyLoss,
  get_loss,
  risk_loss,
  signed_loss,
  textual_loss,
)
from calm_jax.evaluation.predictions import write_predictions
from calm_jax.evaluation.promises import Promise
from calm_jax.evaluation.samples import decoded_text, sample_outputs
from calm_jax.evaluation.setting_speeds import time_settings
from calm_jax.evaluation.shallow_agreement import (
  ShallowAgreement,
  free_threshold,
  shallow_agreement,
)
from calm_jax.evaluation.shortlist_misses import (
  ShortlistMisses,
  count_shortlist_misses,
)
from calm_jax.evaluation.threshold_reuse import changed_rows, take_over
from calm_jax.evaluation.timing import OfModel, take_batches, time_decode
from calm_jax.evaluation.trained_candidates import (
  LeftOut,
  trained_only,
  where_trained,
)
from calm_jax.evaluation.tuning import TunedRun, run_tuning
from calm_jax.evaluation.tuning_plan import TuningPlan

__all__ = [
  'CLASSES',
  'AnyTokens',
  'BatchLayout',
  'Calibration',
  'CalibrationPlan',
  'Candidate',
  'Candidates',
  'Climb',
  'ComparedDecode',
  'ComparisonPlan',
  'ConsistencyLoss',
  'DatasetClassifier',
  'DatasetDecoder',
  'DecodeStore',
  'DecodedDataset',
  'DelayLoss',
  'Evaluation',
  'FewWords',
  'FullTraces',
  'GradientGuided',
  'LeftOut',
  'OfModel',
  'Promise',
  'RandomSearch',
  'Scoring',
  'ShallowAgreement',
  'ShortlistMisses',
  'Timed',
  'TunedRun',
  'TuningPlan',
  'baseline_row',
  'batches_by_depth',
  'budget_use',
  'build_loss_table',
  'calibrate',
  'changed_rows',
  'classifying_times',
  'compare',
  'compile_seconds',
  'count_shortlist_misses',
  'decode_dataset',
  'decode_for_comparison',
  'decoded_text',
  'delayed_inputs',
  'embedding_table',
  'encoder_exit_gradients',
  'example_id',
  'follows_from_full',
  'free_threshold',
  'get_loss',
  'leave_out',
  'nearest_words',
  'oracle_policy',
  'random_inputs',
  'risk_loss',
  'row_key',
  'run_calibration',
  'run_evaluation',
  'run_tuning',
  'sample_outputs',
  'score',
  'shallow_agreement',
  'shuffled_inputs',
  'signed_loss',
  'static_layers',
  'sweep',
  'take_batches',
  'take_over',
  'textual_loss',
  'time_decode',
  'time_settings',
  'token_exit_gradients',
  'trained_only',
  'where_trained',
  'write_predictions',
]
