"""Who enters the arena: the methods of a run's certificates and tunings."""

import dataclasses
import math
import os
from collections.abc import Sequence

from calm_jax import (
  calibration,
  decoding,
  exits,
  quantisation,
  records,
  runs,
)
from calm_jax.benchmarks import certified_policies

FULL = 'full model'
# What `of_margins` calls its entries, to be formatted with the threshold.
MARGIN = 'SoftmaxMargin at {:g}'
RELEASED = 'SoftmaxMargin, K/V from layer 1 at {:g}'
_AS_RELEASED = decoding.ProjectFirstExitState()


@dataclasses.dataclass(frozen=True, eq=False)
class Entry:
  """One way of decoding.

  Attributes:
    name: what the table calls it.
    policy: the policy, at its setting.
    weights: which matrices are in 8 bits; None for none.
    certificate: what promises something of it; None where nothing does.
    lossless: whether its outputs are the full model's by construction.
  """

  name: str
  policy: decoding.ComputePolicy
  weights: quantisation.Int8Weights | None = None
  certificate: calibration.Certificate | None = None
  lossless: bool = False

  @property
  def promises(self) -> tuple[records.PromisedLoss, ...]:
    """What is promised of it, () for nothing."""
    return () if self.certificate is None else _promises(self.certificate)

  @property
  def error_rate(self) -> float:
    """How likely that may be broken; NaN where nothing is promised."""
    return math.nan if self.certificate is None else self.certificate.error_rate


def full_model() -> Entry:
  """Returns the entry that all others are held against."""
  return Entry(FULL, decoding.ComputePolicy(), lossless=True)


def of_certificates(run_dir: str, paths: Sequence[str]) -> list[Entry]:
  """Returns an entry per certificate, and one for each deferred fill.

  Raises:
    FileNotFoundError, ValueError: as `certified_policies.read_policies`.
  """
  return [
    _certified(
      f'{name}{certified_policies.at_setting(certificate)}, '
      f'{_tolerances(certificate)}',
      policy,
      certificate,
    )
    for path in paths
    # One by one: setting and promise tell those of one policy apart.
    for name, (certificate, policy) in certified_policies.read_policies(
      run_dir, [path]
    ).items()
  ]


def of_tuning(run_dir: str, folder: str) -> list[Entry]:
  """Returns what a tuning chose, and the fastest of each lossless policy.

  Args:
    run_dir: the run.
    folder: where it was tuned into, in the run.

  Raises:
    FileNotFoundError, ValueError: as `runs.read_tuning`; for policies that
      cannot be made again.
  """
  tuning = runs.read_tuning(run_dir, tuned=folder)
  fastest = {}
  for one in sorted(tuning.candidates, key=lambda one: one.milliseconds):
    if one.lossless:
      fastest.setdefault(one.policy, one)
  found = [
    Entry(
      one.label, runs.policy_described(one.described, run_dir), lossless=True
    )
    for one in fastest.values()
  ]
  choice = tuning.choice
  if choice is None or choice.lossless or tuning.certificate is None:
    return found
  certificate = calibration.Certificate.load(
    os.path.join(run_dir, folder, tuning.certificate)
  )
  name = (
    f'tuned at batch {tuning.batch_size}: {choice.label}, '
    f'{_tolerances(certificate)}'
  )
  policy = runs.policy_described(choice.described, run_dir)
  return [*found, _certified(name, policy, certificate)]


def of_margins(thresholds: Sequence[float]) -> list[Entry]:
  """Returns softmax margins that nobody certified, of which nothing is known.

  As the paper fills the layers that a token skips, and as T5X's CALM does.

  Args:
    thresholds: in [0, 1].

  Raises:
    ValueError: for one that is not.
  """
  fills = {MARGIN: decoding.ProjectExitState(), RELEASED: _AS_RELEASED}
  return [
    Entry(
      name.format(threshold),
      decoding.ComputePolicy(
        exit_rule=exits.ConfidenceExit(
          exits.SoftmaxMargin(), exits.ConstantThreshold(threshold)
        ),
        cache_fill=fill,
      ),
    )
    for threshold in thresholds
    for name, fill in fills.items()
  ]


def each_once(entries: Sequence[Entry]) -> list[Entry]:
  """Returns entries without those that two tunings found alike.

  Raises:
    ValueError: for different ones of one name.
  """
  found: dict[str, Entry] = {}
  for entry in entries:
    first = found.setdefault(entry.name, entry)
    if _description(first) != _description(entry):
      raise ValueError(
        f'two different entries are called {entry.name!r}; give one of them in '
        'another run of this program'
      )
  return list(found.values())


def check_holds(entry: Entry, run: runs.LoadedRun, *, max_length: int) -> None:
  """Checks that an entry's certificate is about what is decoded.

  Args:
    entry: the entry.
    run: the model with its tokenizer.
    max_length: T, the most tokens of an output.

  Raises:
    ValueError: if it is of other parameters, another length or policy, naming
      what differs.
  """
  if entry.certificate is None:
    return
  policy = entry.policy
  if isinstance(policy.cache_fill, decoding.DeferredExitState):
    # It says what the one says that it was certified with.
    policy = dataclasses.replace(policy, cache_fill=decoding.ProjectExitState())
  context = runs.decoding_context(
    policy,
    **{
      **run.context(),
      'sampler': decoding.Greedy(),
      'max_length': max_length,
      'weights': quantisation.describe_weights(entry.weights),
    },
  )
  found = runs.certificate_differences(entry.certificate, policy, context)
  if found.breaking:
    raise ValueError(
      f'the certificate of {entry.name} does not hold here: '
      f'{"; ".join(found.breaking)}'
    )


def _description(entry: Entry) -> tuple:
  policy = decoding.describe(entry.policy, {})
  return policy, entry.weights, entry.promises


def _certified(
  name: str,
  policy: decoding.ComputePolicy,
  certificate: calibration.Certificate,
) -> Entry:
  return Entry(
    name,
    policy,
    weights=runs.weights_of(certificate),
    certificate=certificate,
  )


def _promises(
  certificate: calibration.Certificate,
) -> tuple[records.PromisedLoss, ...]:
  """Returns all that a certificate promises."""
  if certificate.promises:
    return tuple(
      records.PromisedLoss(
        loss=one.loss, metric=one.metric, tolerance=one.tolerance
      )
      for one in certificate.promises
    )
  context = certificate.context
  return (
    records.PromisedLoss(
      loss=context.get('loss', ''),
      metric=context.get('metric', ''),
      tolerance=certificate.tolerance,
    ),
  )


def _tolerances(certificate: calibration.Certificate) -> str:
  return ' and '.join(
    f'{one.loss} {one.tolerance:g}' for one in _promises(certificate)
  )
