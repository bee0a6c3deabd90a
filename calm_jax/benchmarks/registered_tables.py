"""Every table that a README shows: its name, its JSON files, its renderer.

To add one: let the benchmark write JSON (`--output`), put the file into
`calm_jax/benchmarks/results`, and add an entry to `TABLES` that renders it
with the code that the benchmark prints with.
"""

import dataclasses
import pathlib
from collections.abc import Callable

from calm_jax import records, reporting
from calm_jax.benchmarks import (
  abuse_table,
  adaptive_table,
  anytime_rows,
  anytime_study,
  arena_classes_table,
  arena_table,
  calibration_power,
  certified_layers,
  certified_table,
  drafting_table,
  encoder_exits_table,
  exactness_table,
  gate_depths_table,
  layouts_table,
  measured_rows,
  measures_table,
  mesh_memory_table,
  monitor_delays_table,
  oracles_table,
  quantisation_table,
  scaling_model,
  serving_table,
  throughput_table,
  token_controllers_table,
  twin_oracles_table,
  unlabelled_rows,
  weak_scaling_table,
  weights_table,
)
from calm_jax.reporting import columns, tables

# Of interest to those who work on the decoder: `decode_speed --show` has them.
_DETAILS = ('of its parts', 'compile s')


@dataclasses.dataclass(frozen=True)
class RegisteredTable:
  """One table.

  Attributes:
    files: names of JSON files in the folder of results.
    render: their paths, as that many arguments -> Markdown.
  """

  files: tuple[str, ...]
  render: Callable[..., str]

  def content(self, results: pathlib.Path) -> str:
    """Returns the Markdown of the table.

    Args:
      results: the folder of the JSON files.

    Raises:
      FileNotFoundError: if a file is not there.
      ValueError: if a file is not what the renderer reads.
    """
    return self.render(*(results / name for name in self.files))


def content_of(name: str, results: pathlib.Path) -> str:
  """Returns the Markdown of a table.

  Raises:
    ValueError: for a name that is not registered, and as `RegisteredTable`.
  """
  if name not in TABLES:
    raise ValueError(
      f'there is no table {name!r}; there are {", ".join(sorted(TABLES))} '
      '(calm_jax/benchmarks/registered_tables.py)'
    )
  return TABLES[name].content(results)


def _of_rows(kind: type, table: Callable[..., tables.Table]):
  """Returns a renderer of files that `measured_rows.publish` wrote."""
  return lambda *paths: tables.as_markdown(
    table(*(measured_rows.read(path, kind) for path in paths))
  )


def _of_records(kind: type, table: Callable[..., tables.Table]):
  """Returns a renderer of files that hold one record each."""
  return lambda *paths: tables.as_markdown(
    table(*(records.read_record(path, kind) for path in paths))
  )


def _speed_table(*reports: records.SpeedReport) -> tables.Table:
  table = reporting.speed_table(*map(reporting.fastest_rows, reports))
  return columns.without_columns(table, _DETAILS)


def _demo_quality(path: pathlib.Path) -> str:
  result = records.read_record(path, records.EvaluationResult)
  table = tables.as_markdown(reporting.comparison_table(result))
  return '\n\n'.join([*reporting.certified_sentences(result), table])


def _results(*paths: pathlib.Path) -> str:
  """Returns the arena's table for readers of the first page."""
  found = []
  for path in paths:
    measured = measured_rows.read(path, records.ArenaRow)
    rows = tuple(row for row in measured.rows if row.kind != 'uncertified')
    found.append(dataclasses.replace(measured, rows=rows))
  table = arena_table.table(*found)
  return tables.with_notes(
    columns.without_columns(
      table, ('model', 'distance', 'quality', 'layers', 'cost %')
    )
  )


def _of_several_runs(*paths: pathlib.Path) -> str:
  """Returns one table of certified rows, with their runs and tolerances."""
  found = []
  for path in paths:
    measured = measured_rows.read(path, certified_table.CertifiedRow)
    run = pathlib.PurePath(measured.flags['run_dir']).name
    rows = tuple(
      dataclasses.replace(
        row, name=f'{run}: {certified_table.name_with_tolerance(row)}'
      )
      for row in measured.rows
    )
    found.append(dataclasses.replace(measured, rows=rows))
  return tables.as_markdown(certified_table.table(*found))


_GATES = {
  'gate_deep_64_seed_0.json': '12-layer model: 64 units',
  'gate_deep_64_seed_1.json': 'another seed',
  'gate_deep_64_seed_2.json': 'another seed still',
  'gate_deep_256_per_exit.json': '256 units per exit',
  'gate_deep_cost_aware.json': '64 units, cost_aware',
  'gate_deep_quantile.json': '64 units, quantile',
  'gate_e2e_nlg_64_seed_0.json': 'e2e_nlg: 64 units',
  'gate_e2e_nlg_256_per_exit.json': '256 units per exit of it',
  'gate_tatoeba_en_fr_64_seed_0.json': 'tatoeba_en_fr: 64 units',
  'gate_tatoeba_en_fr_256_per_exit.json': '256 units per exit of that',
}


def _gate_depths(*paths: pathlib.Path) -> str:
  gates = {
    _GATES[path.name]: records.read_record(path, records.GateEvaluation)
    for path in paths
  }
  return tables.as_markdown(gate_depths_table.table(gates))


_IN_ARENA = tuple(
  f'arena_{run}_cpu.json'
  for run in ('deep', 'demo', 'e2e_nlg', 'tatoeba_en_fr')
)
_arena = _of_rows(records.ArenaRow, arena_table.table)
_TUNED = {
  f'tuned_{run}_batch_{size}_cpu.json': run
  for run in ('deep', 'e2e_nlg', 'tatoeba_en_fr')
  for size in (1, 16)
}
_TUNED_CLASSES = {
  f'tuned_banking77_batch_{size}_cpu.json': 'banking77' for size in (1, 32)
}


def _tuned(*paths: pathlib.Path) -> str:
  return tables.as_markdown(
    reporting.choices_table(
      (
        {**_TUNED, **_TUNED_CLASSES}[path.name],
        records.read_record(path, records.Tuning),
      )
      for path in paths
    )
  )


_speed = _of_records(records.SpeedReport, _speed_table)
_certified = _of_rows(certified_table.CertifiedRow, certified_table.table)
_plain = _of_records(tables.Table, lambda table: table)
_DEEP = 'deep_certified_batch_1_cpu.json'
_E2E_NLG = 'e2e_nlg_certified_batch_1_cpu.json'

TABLES = {
  'results': RegisteredTable(_IN_ARENA[:1], _results),
  'speed_batch_1': RegisteredTable(('batch_1_cpu.json',), _speed),
  'speed_batches': RegisteredTable(
    ('batch_16_cpu.json', 'small_batch_64_cpu.json', 'base_batch_64_cpu.json'),
    _speed,
  ),
  'speed_exact': RegisteredTable(
    (
      'exact_batch_1_cpu.json',
      'exact_batch_8_cpu.json',
      'exact_batch_16_cpu.json',
    ),
    _speed,
  ),
  'speed_plans': RegisteredTable(('plans_base_cpu.json',), _speed),
  'speed_sources': RegisteredTable(('sources_base_cpu.json',), _speed),
  'speed_contexts': RegisteredTable(('contexts_small_cpu.json',), _speed),
  'drafting': RegisteredTable(
    ('drafting_cpu.json',),
    _of_rows(drafting_table.DraftingRow, drafting_table.table),
  ),
  'layouts': RegisteredTable(
    ('layouts_cpu.json',),
    _of_rows(layouts_table.LayoutRow, layouts_table.table),
  ),
  'exactness': RegisteredTable(
    ('exactness_narrow_cpu.json',),
    _of_rows(exactness_table.ExactnessRow, exactness_table.table),
  ),
  'exactness_e2e_nlg': RegisteredTable(
    ('exactness_e2e_nlg_cpu.json',),
    _of_rows(exactness_table.ExactnessRow, exactness_table.table),
  ),
  'exactness_tatoeba': RegisteredTable(
    ('exactness_tatoeba_en_fr_cpu.json',),
    _of_rows(exactness_table.ExactnessRow, exactness_table.table),
  ),
  'exactness_deep': RegisteredTable(
    ('exactness_deep_cpu.json',),
    _of_rows(exactness_table.ExactnessRow, exactness_table.table),
  ),
  'certified_deep': RegisteredTable((_DEEP,), _certified),
  'certified_deep_exact': RegisteredTable(
    ('deep_exact_certified_batch_1_cpu.json',), _certified
  ),
  'certified_e2e_nlg_exact': RegisteredTable(
    ('e2e_nlg_exact_certified_batch_1_cpu.json',), _certified
  ),
  'certified_tatoeba_exact': RegisteredTable(
    ('tatoeba_en_fr_exact_certified_batch_1_cpu.json',), _certified
  ),
  'certified_int8': RegisteredTable(
    tuple(
      f'{run}_int8_certified_batch_1_cpu.json'
      for run in ('e2e_nlg', 'tatoeba_en_fr', 'deep', 'narrow')
    ),
    _of_several_runs,
  ),
  'certified_e2e_nlg': RegisteredTable(
    (_E2E_NLG, 'e2e_nlg_certified_batch_16_cpu.json'), _certified
  ),
  'quantisation': RegisteredTable(
    tuple(
      f'quantisation_{run}.json'
      for run in ('e2e_nlg', 'tatoeba_en_fr', 'deep', 'narrow')
    ),
    _of_rows(quantisation_table.Report, quantisation_table.model_table),
  ),
  'weights': RegisteredTable(
    (
      'weights_t5_v1_1_small_cpu.json',
      'weights_t5_v1_1_base_cpu.json',
      'weights_batch_64_cpu.json',
    ),
    _of_rows(weights_table.WeightsRow, weights_table.table),
  ),
  'tuned_deep': RegisteredTable(
    ('tuned_deep_batch_1_cpu.json',),
    _of_records(records.Tuning, reporting.tuning_table),
  ),
  'tuned': RegisteredTable(tuple(_TUNED), _tuned),
  'tuned_classes': RegisteredTable(tuple(_TUNED_CLASSES), _tuned),
  'frozen_exits': RegisteredTable(('frozen_exits.json',), _plain),
  'certified_frozen_exits': RegisteredTable(
    ('frozen_exits_batch_1_cpu.json',), _certified
  ),
  'arena': RegisteredTable(_IN_ARENA, _arena),
  'adaptive_systems': RegisteredTable(
    (
      'adaptive_e2e_nlg_cpu.json',
      'adaptive_e2e_nlg_plans_cpu.json',
      'adaptive_arxiv_titles_cpu.json',
    ),
    _of_rows(records.SystemRow, adaptive_table.table),
  ),
  'oracles': RegisteredTable(
    ('oracles_e2e_nlg_cpu.json',),
    _of_rows(records.OracleRow, oracles_table.table),
  ),
  'twin_oracles': RegisteredTable(
    ('twin_oracles_e2e_nlg_cpu.json',),
    _of_rows(records.TwinOracleRow, twin_oracles_table.table),
  ),
  'token_controllers': RegisteredTable(
    ('token_controllers_e2e_nlg_cpu.json',),
    _of_rows(records.ControllerRow, token_controllers_table.table),
  ),
  'throughput': RegisteredTable(
    ('e2e_nlg_throughput_cpu.json', 'arxiv_titles_throughput_cpu.json'),
    _of_rows(throughput_table.ThroughputRow, throughput_table.table),
  ),
  'serving': RegisteredTable(
    ('e2e_nlg_serving_cpu.json',),
    _of_rows(records.ServingRow, serving_table.table),
  ),
  'abuse': RegisteredTable(
    ('e2e_nlg_abuse_cpu.json',),
    _of_rows(abuse_table.AbuseRow, abuse_table.table),
  ),
  'abuse_text': RegisteredTable(
    ('tatoeba_abuse_cpu.json',),
    _of_rows(abuse_table.AbuseRow, abuse_table.table),
  ),
  'abuse_encoder': RegisteredTable(
    ('banking77_abuse_cpu.json',),
    _of_rows(abuse_table.AbuseRow, abuse_table.table),
  ),
  'encoder_exits': RegisteredTable(
    (
      *(
        f'encoder_exits_banking77_{kind}{seed}_cpu.json'
        for kind in ('', 'joint_')
        for seed in range(3)
      ),
      'encoder_exits_banking77_words_cpu.json',
    ),
    _of_rows(records.EncoderExitRow, encoder_exits_table.table),
  ),
  'encoder_exits_long': RegisteredTable(
    tuple(f'encoder_exits_answer_kinds_{seed}_cpu.json' for seed in range(3)),
    _of_rows(records.EncoderExitRow, encoder_exits_table.table),
  ),
  'tuned_encoder': RegisteredTable(
    ('tuned_encoder_batch_1_cpu.json',),
    _of_records(records.Tuning, reporting.tuning_table),
  ),
  'tuned_encoder_signed': RegisteredTable(
    ('tuned_encoder_signed_batch_1_cpu.json',),
    _of_records(records.Tuning, reporting.tuning_table),
  ),
  'arena_classes': RegisteredTable(
    (
      'encoder_exits_banking77_0_cpu.json',
      'encoder_exits_answer_kinds_0_cpu.json',
    ),
    _of_rows(records.EncoderExitRow, arena_classes_table.table),
  ),
  'tuned_plans': RegisteredTable(
    ('tuned_plans_batch_16_cpu.json',),
    _of_records(records.Tuning, reporting.tuning_table),
  ),
  'tuned_plans_signed': RegisteredTable(
    ('tuned_plans_signed_batch_16_cpu.json',),
    _of_records(records.Tuning, reporting.tuning_table),
  ),
  'demo_tuned': RegisteredTable(
    ('demo_tuned.json',), _of_records(records.Tuning, reporting.tuning_table)
  ),
  'demo_tuned_8': RegisteredTable(
    ('demo_tuned_8.json',), _of_records(records.Tuning, reporting.tuning_table)
  ),
  'demo_quality': RegisteredTable(('demo.json',), _demo_quality),
  'calibration_power': RegisteredTable(
    ('calibration_power.json',),
    _of_rows(calibration_power.PowerRow, calibration_power.table),
  ),
  'anytime_rows': RegisteredTable(
    ('anytime_rows.json',),
    _of_rows(anytime_study.AnytimeRow, anytime_rows.table),
  ),
  'unlabelled_rows': RegisteredTable(
    ('unlabelled_rows.json',),
    _of_rows(unlabelled_rows.UnlabelledRow, unlabelled_rows.table),
  ),
  'certified_measures': RegisteredTable(
    tuple(
      f'measures_{run}.json' for run in ('deep', 'e2e_nlg', 'tatoeba_en_fr')
    ),
    _of_rows(records.MeasureLine, measures_table.table),
  ),
  'gate_depths': RegisteredTable(tuple(_GATES), _gate_depths),
  'certified_deep_gates': RegisteredTable(
    ('deep_gates_batch_1_cpu.json',), _certified
  ),
  'certified_tatoeba_gates': RegisteredTable(
    ('tatoeba_gates_cpu.json',), _certified
  ),
  'shrinking': RegisteredTable(('tatoeba_shrinking_cpu.json',), _certified),
  'certified_e2e_gates': RegisteredTable(
    ('e2e_gates_projected_cpu.json', 'e2e_gates_signed_cpu.json'), _certified
  ),
  'certified_gates': RegisteredTable(('certified_gates.json',), _plain),
  'certified_layers': RegisteredTable(
    ('certified_layers.json',),
    _of_rows(certified_layers.LayersRow, certified_layers.table),
  ),
  'certified_table_2': RegisteredTable(('certified_table_2.json',), _plain),
  'classifier_rates': RegisteredTable(
    (
      'tatoeba_long_classifier_independent.json',
      'tatoeba_long_classifier_balanced.json',
    ),
    _of_records(records.ClassifierEvaluation, reporting.classifier_table),
  ),
  'exit_weights': RegisteredTable(('narrow_exit_weights.json',), _plain),
  'mesh_memory': RegisteredTable(
    ('mesh_memory.json',),
    _of_rows(mesh_memory_table.MemoryRow, mesh_memory_table.table),
  ),
  'monitor_delays': RegisteredTable(
    ('monitor_delays.json',),
    _of_rows(monitor_delays_table.DelayRow, monitor_delays_table.table),
  ),
  'device_model': RegisteredTable(
    ('e2e_nlg_device_model.json',),
    _of_rows(scaling_model.EfficiencyRow, scaling_model.table),
  ),
  'weak_scaling': RegisteredTable(
    ('weak_scaling_cpu.json',),
    _of_rows(weak_scaling_table.ScalingRow, weak_scaling_table.table),
  ),
}
