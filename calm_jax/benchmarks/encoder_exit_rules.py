"""Exit rules of an encoder's classifier that a benchmark compares."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from calm_jax import calibration, decoding, evaluation, exits, records, runs
from calm_jax.evaluation.decode_dataset import Batch
from calm_jax.interfaces import ExitRule

_PATH = 'encoder_exit.rule'
# Methods of certificates that jobs wrote.
OF_JOBS = ('calibrated', 'tuned')


@dataclasses.dataclass(frozen=True)
class Entry:
  """One rule at one setting.

  Attributes:
    name: of its row.
    setting: in words.
    rule: the rule there.
    method: as for `records.EncoderExitRow`.
  """

  name: str
  setting: str
  rule: ExitRule
  method: str = ''

  @property
  def certified(self) -> bool:
    """Whether it is what a certificate says, be it nothing."""
    return self.name.startswith(records.CERTIFIED)


def full(called: str = '') -> Entry:
  """Returns what others are held against, by what its name begins with."""
  return Entry(f'{called}{records.FULL_ENCODER}', '-', exits.NeverExit())


def rules_of(
  run_dir: str, *, heads: str, gate: str | None
) -> dict[str, ExitRule]:
  """Returns the rules by name, at settings that do not matter.

  Args:
    run_dir: a run directory with heads.
    heads: their folder in it.
    gate: the folder of a gate of its encoder; None for none.
  """
  temperatures = runs.load_class_temperatures(run_dir, name=heads)
  maximum = exits.SoftmaxMaximum()
  rules: dict[str, ExitRule] = {
    'maximum': exits.ConfidenceExit(maximum, 1.0),
    'maximum, tempered': exits.ConfidenceExit(
      exits.Tempered(maximum, temperatures), 1.0
    ),
    'margin': exits.ConfidenceExit(exits.SoftmaxMargin(), 1.0),
    'patience': exits.PatienceExit(1),
    'similarity': exits.ConfidenceExit(exits.StateSimilarity(), 1.0),
    'one depth for all': exits.FixedExit(1),
  }
  if gate is not None:
    measure = runs.load_encoder_gate(run_dir, name=gate, heads=heads)
    rules['gate'] = exits.ConfidenceExit(measure, 1.0)
    rules['gate, quantile'] = exits.QuantileExit(measure, 1.0)
  return rules


def entries_of(
  classifier: evaluation.DatasetClassifier,
  rules: Mapping[str, ExitRule],
  thresholds: Sequence[float] | None,
) -> list[Entry]:
  """Returns all rules at their settings.

  Args:
    classifier: encoder and heads.
    rules: by name.
    thresholds: of those that have one; those that suit each if None.
  """
  found = []
  for name, rule in rules.items():
    settings = _settings(classifier, rule)
    if thresholds is not None and not isinstance(settings[0], dict):
      settings = tuple(thresholds)
    found.extend(
      Entry(name, _in_words(setting), _at(classifier, rule, setting))
      for setting in settings
    )
  return found


def calibrated(
  classifier: evaluation.DatasetClassifier,
  rules: Mapping[str, ExitRule],
  batches: Sequence[Batch],
  tolerances: Sequence[float],
  *,
  uses_in: str | os.PathLike,
) -> list[Entry]:
  """Certifies each rule by itself, as `calm_jax.cli.calibrate_encoder` does.

  Promised is that classes are other ones than the last layer's at most so
  often. Whoever chooses among rules afterwards has no certificate for the
  choice; `calm_jax.cli.tune_encoder` has.

  Args:
    classifier: encoder and heads.
    rules: by name.
    batches: inputs that chose nothing.
    tolerances: each in (0, 1).
    uses_in: the folder in which the run notes what its rows were used for.
  """
  found = []
  for tolerance in tolerances:
    for name, rule in rules.items():
      certificate = evaluation.run_calibration(
        classifier,
        batches,
        classifier.policy(rule),
        evaluation.CalibrationPlan(
          settings=_settings(classifier, rule),
          tolerance=tolerance,
          metric='same_text',
        ),
        uses_in=uses_in,
      ).certificate
      ends: ExitRule = exits.NeverExit()
      if certificate.certified:
        ends = _at(classifier, rule, certificate.setting)
      said = _promised(certificate), _said(certificate)
      found.append(Entry(*said, ends, method=name))
  return found


def certified_entry(path: str, run_dir: str, *, called: str = '') -> Entry:
  """Returns the rule at a certificate's setting, all layers if it has none.

  Args:
    path: of what calibrate_encoder or tune_encoder wrote.
    run_dir: the run directory.
    called: what the rule's name begins with.

  Raises:
    ValueError: for another kind of certificate.
  """
  certificate = calibration.Certificate.load(path)
  sampler = certificate.decoding.sampler or {}
  if sampler.get('type') != evaluation.CLASSES:
    raise ValueError(
      f'{os.fspath(path)} is a certificate of decoding; give one that '
      'calm_jax.cli.calibrate_encoder or tune_encoder wrote'
    )
  promised, said = _promised(certificate), _said(certificate)
  tuned = certificate.context.get('tuning')
  method = called + ('calibrated' if tuned is None else 'tuned')
  if not certificate.certified:
    return Entry(promised, said, exits.NeverExit(), method)
  stops: Any = runs.policy_of(certificate, run_dir).encoder_exit
  if tuned is not None:
    said = f'{tuned["policy"]}, {said}'
  return Entry(promised, said, stops.rule, method)


def _promised(certificate: calibration.Certificate) -> str:
  """Says what a certificate promises, as the rule of a row."""
  return records.CERTIFIED + ', '.join(
    f'{bound.loss} {bound.tolerance:g}' for bound in certificate.bounds
  )


def _said(certificate: calibration.Certificate) -> str:
  """Returns the setting that it certifies, in words."""
  if not certificate.certified:
    return records.NOTHING
  return _in_words(certificate.setting)


def _settings(classifier, rule: ExitRule) -> tuple[Any, ...]:
  return exits.usual_settings(rule, _PATH, classifier.encoder.num_layers)


def _in_words(setting: Any) -> str:
  return records.setting_in_words(setting).removeprefix(f'{_PATH}.')


def _at(classifier, rule: ExitRule, setting: Any) -> ExitRule:
  """Returns a rule at a setting."""
  policy = decoding.with_setting(classifier.policy(rule), setting)
  stops: Any = policy.encoder_exit
  return stops.rule
