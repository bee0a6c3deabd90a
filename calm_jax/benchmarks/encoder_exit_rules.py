"""Exit rules of an encoder's classifier that a benchmark compares."""

import os
from collections.abc import Sequence
from typing import Any

from calm_jax import calibration, evaluation, exits, records, runs
from calm_jax.benchmarks.encoder_exits_table import CERTIFIED, NOTHING

# Name of the rule, its setting in words, the rule there.
Entry = tuple[str, str, Any]


def entries_of(
  run_dir: str,
  *,
  heads: str,
  gate: str | None,
  thresholds: Sequence[float],
  patience: Sequence[int],
  certificates: Sequence[str],
) -> list[Entry]:
  """Returns the full encoder, rules at settings, and what was certified.

  Args:
    run_dir: a run directory with heads.
    heads: their folder in it.
    gate: the folder of a gate of its encoder; None for none.
    thresholds: of the rules that have one.
    patience: of `exits.PatienceExit`.
    certificates: paths of what calibrate_encoder or tune_encoder wrote.
  """
  temperatures = runs.load_class_temperatures(run_dir, name=heads)
  maximum = exits.SoftmaxMaximum()
  measures: dict[str, Any] = {
    'maximum': maximum,
    'margin': exits.SoftmaxMargin(),
    'maximum, tempered': exits.Tempered(maximum, temperatures),
  }
  if gate is not None:
    measures['gate'] = runs.load_gate(run_dir, name=gate)
  entries: list[Entry] = [('full encoder', '-', exits.NeverExit())]
  for name, measure in measures.items():
    for value in thresholds:
      rule = exits.ConfidenceExit(measure, value)
      entries.append((name, f'{value:g}', rule))
  if gate is not None:
    for value in thresholds:
      rule = exits.QuantileExit(measures['gate'], value)
      entries.append(('gate, quantile', f'{value:g}', rule))
  for times in patience:
    entries.append(('patience', str(times), exits.PatienceExit(times)))
  for path in certificates:
    entries.append(certified_entry(path, run_dir))
  return entries


def certified_entry(path: str, run_dir: str) -> Entry:
  """Returns the rule at a certificate's setting, all layers if it has none.

  Args:
    path: of what calibrate_encoder wrote.
    run_dir: the run directory.

  Raises:
    ValueError: for another kind of certificate.
  """
  certificate = calibration.Certificate.load(path)
  promised = ', '.join(
    f'{bound.loss} {bound.tolerance:g}' for bound in certificate.bounds
  )
  name = f'{CERTIFIED}{promised}'
  sampler = certificate.decoding.sampler or {}
  if sampler.get('type') != evaluation.CLASSES:
    raise ValueError(
      f'{os.fspath(path)} is a certificate of decoding; give one that '
      'calm_jax.cli.calibrate_encoder or tune_encoder wrote'
    )
  if not certificate.certified:
    return name, NOTHING, exits.NeverExit()
  stops: Any = runs.policy_of(certificate, run_dir).encoder_exit
  setting = records.setting_in_words(certificate.setting)
  tuned = certificate.context.get('tuning')
  if tuned is not None:
    setting = f'tuned: {tuned["policy"]}, {setting}'
  return name, setting, stops.rule
