"""The outcome of a calibration: which setting was certified, and why.

A `Certificate` holds the chosen setting together with everything it follows
from, so that a reader can check it without the losses. It is stored as JSON
with a checksum over its content; reading it back recomputes the choice from the
stored p-values and refuses a file in which they disagree.
"""

import dataclasses
import hashlib
import json
import os
from typing import Any

import numpy as np

from calm_jax import records
from calm_jax.calibration import bounds, certificate_words, multiple_testing
from calm_jax.calibration.bounds import TestedBound
from calm_jax.calibration.inputs import threshold_of

FORMAT = 'calm_jax.certificate'
VERSION = 1
# Of certificates with several promises, which versions before cannot read.
JOINT_VERSION = 2

# What a file states besides the fields, for its human readers. All of it
# follows from the fields and is compared with them on reading.
_DERIVED = ('certified', 'setting', 'threshold')


@dataclasses.dataclass(frozen=True)
class Certificate:
  """The result of `calibrate`.

  Attributes:
    index: the chosen one of `settings`, the last that was rejected by the
      procedure; None if nothing was certified.
    reason: why this index and no other, in plain sentences.
    tolerance: the bound on E[loss], in the units of the losses.
    error_rate: the bound on the probability that E[loss] at the chosen setting
      is above the tolerance, over the draw of the calibration examples.
    p_value: the name of the p-value, with parameters such as a seed.
    procedure: the name of the multiple testing procedure, with parameters.
    num_examples: N, the number of calibration examples.
    settings: [J], thresholds or {path of a field of the policy: value}, from
      conservative to aggressive.
    risks: [J], mean losses in the units of the losses; NaN where not computed.
    p_values: [J], NaN where not tested.
    loss_range: the smallest and the largest value a loss can have.
    context: what else it depends on, JSON: the fields of a
      `records.DecodingContext`, the loss, its metric, the task.
    promises: K of them, in one order, where several losses are bounded
      together; () for one. `p_values` are then the largest of theirs, and
      tolerance, risks, loss_range and the loss of the context those of the
      first, which holds by itself as each of them does.
  """

  index: int | None
  reason: str
  tolerance: float
  error_rate: float
  p_value: str
  procedure: str
  num_examples: int
  settings: tuple[float | dict, ...]
  risks: tuple[float, ...]
  p_values: tuple[float, ...]
  loss_range: tuple[float, float] = (0.0, 1.0)
  context: dict[str, Any] = dataclasses.field(default_factory=dict)
  promises: tuple[TestedBound, ...] = ()

  def __post_init__(self):
    """Brings the fields to one form, so that reading equals what was saved."""

    def put(name, value):
      object.__setattr__(self, name, value)

    if self.index is not None:
      put('index', int(self.index))
    put('risks', bounds.numbers(self.risks))
    put('p_values', bounds.numbers(self.p_values))
    put('settings', tuple(_plain('settings', list(self.settings))))
    put('loss_range', tuple(float(bound) for bound in self.loss_range))
    put('context', _plain('context', dict(self.context)))
    if not len(self.settings) == len(self.risks) == len(self.p_values):
      raise ValueError(
        f'{len(self.settings)} settings, {len(self.risks)} risks and '
        f'{len(self.p_values)} p-values should be equally many'
      )
    put('promises', tuple(map(_tested, self.promises)))
    _check_promises(self)
    if self.index is not None and not 0 <= self.index < len(self.settings):
      raise ValueError(
        f'index {self.index} is none of the {len(self.settings)} settings'
      )

  @property
  def certified(self) -> bool:
    """Whether any setting was certified."""
    return self.index is not None

  @property
  def bounds(self) -> tuple[TestedBound, ...]:
    """What is promised of one loss or of several, in one form."""
    if self.promises:
      return self.promises
    return (
      TestedBound(
        loss=self.context.get('loss', ''),
        metric=self.context.get('metric', ''),
        tolerance=self.tolerance,
        loss_range=self.loss_range,
        risks=self.risks,
        p_values=self.p_values,
      ),
    )

  @property
  def decoding(self) -> records.DecodingContext:
    """What decodes it holds for, as far as its context says."""
    return records.DecodingContext.read(self.context)

  @property
  def setting(self) -> float | dict | None:
    """The chosen setting, None if nothing was certified."""
    return None if self.index is None else self.settings[self.index]

  @property
  def threshold(self) -> float | None:
    """The threshold to decode with: 1.0, the full model, if none is certified.

    None only if a setting without a threshold was certified.
    """
    if self.index is None:
      return 1.0
    return threshold_of(self.settings[self.index])

  def describe(self) -> str:
    """Says in one paragraph what is guaranteed and what for."""
    stated = (
      records.read_seen_rows(self.context),
      records.read_row_history(self.context),
    )
    parts = [one.describe() for one in stated if one is not None]
    return ' '.join([certificate_words.describe(self), self.reason, *parts])

  @property
  def fingerprint(self) -> str:
    """The checksum of its file, by which states and rows name it."""
    return _checksum(self._content())

  def save(self, path: str | os.PathLike) -> None:
    """Writes the certificate as JSON, whole or not at all."""
    content = {**self._content(), 'checksum': self.fingerprint}
    records.write_json(path, content)

  def _content(self) -> dict[str, Any]:
    """Returns what its file holds, without the checksum."""
    version = JOINT_VERSION if self.promises else VERSION
    content = {'format': FORMAT, 'version': version}
    content.update(records.to_jsonable(self))
    if not self.promises:
      # As earlier versions write and read it.
      del content['promises']
    content.update({name: getattr(self, name) for name in _DERIVED})
    return content

  @classmethod
  def load(
    cls,
    path: str | os.PathLike,
    *,
    procedure: multiple_testing.Procedure | None = None,
  ) -> 'Certificate':
    """Reads a certificate and checks that it is what a calibration wrote.

    Args:
      path: a file written by `save`.
      procedure: the procedure it was made with, if it is none of calm_jax's.

    Raises:
      FileNotFoundError: if there is none.
      ValueError: if the file is no certificate, of an unknown version, was
        edited, or states a choice that does not follow from its p-values.
    """
    content = records.read_json(path)
    try:
      certificate = _parse(cls, content)
      _check_choice(certificate, content, procedure)
    except ValueError as error:
      raise ValueError(f'{os.fspath(path)}: {error}') from None
    return certificate


def _parse(cls, content) -> Certificate:
  """Builds a certificate from the content of a file."""
  if not isinstance(content, dict) or content.get('format') != FORMAT:
    raise ValueError('not a certificate written by calm_jax')
  version = content.get('version')
  if version not in (VERSION, JOINT_VERSION):
    raise ValueError(
      f'certificate version {version!r}; this calm_jax reads versions '
      f'{VERSION} and {JOINT_VERSION}, so calibrate again or install the '
      'matching calm_jax'
    )
  names = [field.name for field in dataclasses.fields(cls)]
  if version == VERSION:
    names.remove('promises')
  expected = {'format', 'version', 'checksum', *names, *_DERIVED}
  if content.keys() != expected:
    raise ValueError(
      'fields missing or unknown: '
      + ', '.join(sorted(content.keys() ^ expected))
    )
  unsigned = {key: value for key, value in content.items() if key != 'checksum'}
  if content['checksum'] != _checksum(unsigned):
    raise ValueError(
      'the content does not match its checksum: the file was edited or '
      'damaged. A certificate cannot be adjusted by hand; calibrate again'
    )
  try:
    return cls(**{name: content[name] for name in names})
  except (TypeError, KeyError) as error:
    raise ValueError(f'malformed certificate: {error}') from None


def _check_choice(certificate, content, procedure) -> None:
  """Raises ValueError unless the choice follows from the p-values."""
  if procedure is None:
    procedure = multiple_testing.find_procedure(certificate.procedure)
  tests = np.asarray(certificate.p_values, np.float64)
  rejected = procedure(tests, certificate.error_rate)
  index = max(rejected, default=None)
  if index != certificate.index:
    raise ValueError(
      f'index {certificate.index} does not follow from the p-values: '
      f'{certificate.procedure} at error rate {certificate.error_rate:g} gives '
      f'{index}. Calibrate again'
    )
  for name in _DERIVED:
    if content[name] != getattr(certificate, name):
      raise ValueError(
        f'{name} {content[name]!r} does not follow from index {index}, which '
        f'has {getattr(certificate, name)!r}. Calibrate again'
      )


def _tested(found: TestedBound | dict) -> TestedBound:
  """Returns a promise, as it is or as JSON has it."""
  if isinstance(found, TestedBound):
    return found
  return records.from_jsonable(TestedBound, found, where='promises')


def _check_promises(certificate: Certificate) -> None:
  """Raises ValueError unless several promises make up the certificate."""
  promises = certificate.promises
  if not promises:
    return
  if bounds.in_order(promises) != [*range(len(promises))] or len(promises) < 2:
    raise ValueError(
      f'promises {[bound.name for bound in promises]} must be several '
      'different ones in the order of calibration.calibrate_jointly'
    )
  tests = [bound.p_values for bound in promises]
  shapes = {len(values) for b in promises for values in (b.risks, b.p_values)}
  if shapes != {len(certificate.settings)} or not np.array_equal(
    np.max(tests, axis=0), certificate.p_values, equal_nan=True
  ):
    raise ValueError(
      'p_values must be the largest of those of the promises, setting by '
      'setting'
    )
  first = promises[0]
  if (first.tolerance, first.loss_range) != (
    certificate.tolerance,
    certificate.loss_range,
  ) or not np.array_equal(first.risks, certificate.risks, equal_nan=True):
    raise ValueError(
      'tolerance, loss_range and risks must be those of the first promise'
    )


def _plain(name: str, value):
  """Returns `value` as JSON gives it back; raises ValueError if it cannot."""
  try:
    return json.loads(json.dumps(records.to_jsonable(value), allow_nan=False))
  except TypeError as error:
    raise ValueError(
      f'{name} must be of what JSON can hold (numbers, strings, lists, dicts), '
      f'but {error}'
    ) from None


def _checksum(content: dict) -> str:
  """Returns a checksum over the content, whatever the order of its keys."""
  text = json.dumps(
    records.to_jsonable(content), sort_keys=True, allow_nan=False
  )
  return 'sha256:' + hashlib.sha256(text.encode()).hexdigest()
