"""The schema of every file that one job writes and another reads.

One module per kind of file; all of it is named from here. This package knows
NumPy and nothing of JAX.
"""

from calm_jax.records.arenas import ArenaClock, ArenaRow
from calm_jax.records.audited_rows import AUDITED, NewRows, read_new_rows
from calm_jax.records.budgets import BudgetUse
from calm_jax.records.calibration_costs import (
  CalibrationCost,
  SettingCost,
)
from calm_jax.records.classifiers import (
  ClassifierEvaluation,
  ClassifierLayer,
)
from calm_jax.records.context_gates import (
  ContextGateEvaluation,
  ContextShare,
)
from calm_jax.records.controllers import ControllerRow
from calm_jax.records.decoding_contexts import (
  DecodingContext,
  Differences,
  setting_in_words,
)
from calm_jax.records.draft_heads import DraftHeadEvaluation
from calm_jax.records.encoder_exits import (
  CERTIFIED,
  FULL_ENCODER,
  NOTHING,
  EncoderExitRow,
)
from calm_jax.records.encoder_heads import (
  EncoderHeadEvaluation,
  EncoderHeadLayer,
)
from calm_jax.records.evaluations import (
  CertificateSummary,
  DecodedText,
  EvaluationResult,
  PolicyRow,
  RunContext,
  SampleOutput,
  TimingRow,
)
from calm_jax.records.exit_adapters import ExitAdapterEvaluation
from calm_jax.records.export_manifests import (
  MANIFEST_NAME,
  ArraySpec,
  ArtifactFile,
  ExportManifest,
  describe_file,
  read_export_manifest,
  write_export_manifest,
)
from calm_jax.records.gates import GateEvaluation, MeasureDepth
from calm_jax.records.json_files import (
  FORMAT_VERSION,
  append_jsonl,
  from_jsonable,
  read_json,
  read_jsonl,
  read_record,
  to_jsonable,
  write_json,
  write_jsonl,
  write_text,
)
from calm_jax.records.label_words import (
  LABEL_WORDS_NAME,
  LabelWordList,
)
from calm_jax.records.loss_tables import (
  LossTable,
  OtherLoss,
  read_loss_table,
  write_loss_table,
)
from calm_jax.records.measure_lines import CertifiedPlace, MeasureLine
from calm_jax.records.monitoring import (
  MONITOR_NAME,
  Alarm,
  Audit,
  MonitorState,
  ReadRows,
  WatchState,
)
from calm_jax.records.oracles import OracleRow, TwinOracleRow
from calm_jax.records.promises import (
  SIGNED_LOSS_NOTE,
  PromisedLoss,
  PromiseOutcome,
)
from calm_jax.records.routers import RoutedDepths, RouterEvaluation
from calm_jax.records.row_uses import (
  ROW_USES_NAME,
  RowHistory,
  RowUse,
  digest_of_rows,
  find_row_use,
  forget_row_use,
  note_row_use,
  other_row_uses,
  read_row_history,
)
from calm_jax.records.seen_rows import Lengths, SeenRows, read_seen_rows
from calm_jax.records.serving import ServingRow
from calm_jax.records.setting_speeds import (
  SETTING_SPEEDS_NAME,
  SettingSpeeds,
  find_setting_speeds,
)
from calm_jax.records.small_twins import TwinEvaluation, TwinPattern
from calm_jax.records.source_scorers import (
  PrunedShare,
  SourceScorerEvaluation,
)
from calm_jax.records.speed_reports import (
  SpeedReport,
  SpeedRow,
)
from calm_jax.records.systems import FULL_SYSTEM, ORACLE_SYSTEM, SystemRow
from calm_jax.records.training_rows import (
  TRAINING_ROWS_NAME,
  TrainingRows,
  read_training_rows,
  training_rows_files,
  write_training_rows,
)
from calm_jax.records.tunings import (
  SCREENING_TABLE,
  TUNED_CERTIFICATE,
  TUNED_FOLDER,
  TUNED_NAME,
  HandComparison,
  TunedCandidate,
  TunedValidation,
  Tuning,
)
from calm_jax.records.twin_routers import (
  RoutedBlocks,
  TwinRouterEvaluation,
)
from calm_jax.records.validations import (
  SplitStudy,
  ToleranceCurve,
  ValidatedTable,
  Validation,
  ViolationCount,
)

__all__ = [
  'AUDITED',
  'CERTIFIED',
  'FORMAT_VERSION',
  'FULL_ENCODER',
  'FULL_SYSTEM',
  'LABEL_WORDS_NAME',
  'MANIFEST_NAME',
  'MONITOR_NAME',
  'NOTHING',
  'ORACLE_SYSTEM',
  'ROW_USES_NAME',
  'SCREENING_TABLE',
  'SETTING_SPEEDS_NAME',
  'SIGNED_LOSS_NOTE',
  'TRAINING_ROWS_NAME',
  'TUNED_CERTIFICATE',
  'TUNED_FOLDER',
  'TUNED_NAME',
  'Alarm',
  'ArenaClock',
  'ArenaRow',
  'ArraySpec',
  'ArtifactFile',
  'Audit',
  'BudgetUse',
  'CalibrationCost',
  'CertificateSummary',
  'CertifiedPlace',
  'ClassifierEvaluation',
  'ClassifierLayer',
  'ContextGateEvaluation',
  'ContextShare',
  'ControllerRow',
  'DecodedText',
  'DecodingContext',
  'Differences',
  'DraftHeadEvaluation',
  'EncoderExitRow',
  'EncoderHeadEvaluation',
  'EncoderHeadLayer',
  'EvaluationResult',
  'ExitAdapterEvaluation',
  'ExportManifest',
  'GateEvaluation',
  'HandComparison',
  'LabelWordList',
  'Lengths',
  'LossTable',
  'MeasureDepth',
  'MeasureLine',
  'MonitorState',
  'NewRows',
  'OracleRow',
  'OtherLoss',
  'PolicyRow',
  'PromiseOutcome',
  'PromisedLoss',
  'PrunedShare',
  'ReadRows',
  'RoutedBlocks',
  'RoutedDepths',
  'RouterEvaluation',
  'RowHistory',
  'RowUse',
  'RunContext',
  'SampleOutput',
  'SeenRows',
  'ServingRow',
  'SettingCost',
  'SettingSpeeds',
  'SourceScorerEvaluation',
  'SpeedReport',
  'SpeedRow',
  'SplitStudy',
  'SystemRow',
  'TimingRow',
  'ToleranceCurve',
  'TrainingRows',
  'TunedCandidate',
  'TunedValidation',
  'Tuning',
  'TwinEvaluation',
  'TwinOracleRow',
  'TwinPattern',
  'TwinRouterEvaluation',
  'ValidatedTable',
  'Validation',
  'ViolationCount',
  'WatchState',
  'append_jsonl',
  'describe_file',
  'digest_of_rows',
  'find_row_use',
  'find_setting_speeds',
  'forget_row_use',
  'from_jsonable',
  'note_row_use',
  'other_row_uses',
  'read_export_manifest',
  'read_json',
  'read_jsonl',
  'read_loss_table',
  'read_new_rows',
  'read_record',
  'read_row_history',
  'read_seen_rows',
  'read_training_rows',
  'setting_in_words',
  'to_jsonable',
  'training_rows_files',
  'write_export_manifest',
  'write_json',
  'write_jsonl',
  'write_loss_table',
  'write_text',
  'write_training_rows',
]
