"""Whether there is a promise to audit, and what it is measured against."""

import dataclasses
from collections.abc import Callable
from typing import Any

from calm_jax import decoding
from calm_jax.calibration import risk_monitor
from calm_jax.calibration.certificate import Certificate
from calm_jax.evaluation import losses, text_metrics
from calm_jax.pipeline.text_generator import TextGenerator


def check_fraction(fraction: Any) -> None:
  """Raises ValueError unless it is a fraction of requests to audit."""
  is_number = isinstance(fraction, (int, float)) and fraction is not True
  if not (is_number and 0 < fraction <= 1):
    raise ValueError(
      f'the fraction of audited requests is {fraction!r}; give a number above '
      '0 and at most 1, such as 0.05'
    )


def certificate_of(generator: TextGenerator) -> Certificate:
  """Returns the certificate that a generator serves by.

  Raises:
    ValueError: if there is none, if it serves what the full model says, or
      what no certificate covers.
  """
  if generator.forced_prefix:
    raise ValueError(
      f'every output begins with {generator.forced_prefix!r}, and no '
      "certificate covers such: give forced_prefix=''"
    )
  if generator.certificate is None:
    raise ValueError(
      'no certificate covers this generator, so there is no promise to watch'
    )
  policy = generator.policy
  full = decoding.describe(decoding.full_model(policy), {})
  if generator.bound.weights is None and (
    policy.verifies or decoding.describe(policy, {}) == full
  ):
    raise ValueError(
      'outputs are those of the full model: there is nothing to watch'
    )
  return generator.certificate


def promised_loss(
  certificate: Certificate, metric: str | Callable | None
) -> losses.ConsistencyLoss:
  """Returns the textual loss that a certificate promises.

  Args:
    certificate: the certificate.
    metric: that of the certificate, where it is a function of your own; or the
      one to watch, where it promises several textual losses.

  Raises:
    ValueError: if it promises none by that metric, or its metric is not one of
      calm_jax's and not given.
  """
  name = metric
  if metric is not None and not isinstance(metric, str):
    name = text_metrics.metric_name(metric)
  bound = risk_monitor.watched_bound(certificate, name)
  if metric is None and bound.metric not in text_metrics.METRICS:
    raise ValueError(
      f'the certificate measures by {bound.metric}, which is not imported '
      "unless you name it: metric='module:function', or the function"
    )
  return losses.get_loss('textual', metric or bound.metric)


def full_of(
  generator: TextGenerator, full: TextGenerator | None
) -> TextGenerator:
  """Returns what the losses of a generator are measured against.

  Args:
    generator: what serves.
    full: the full model in float, where that is another generator.

  Raises:
    ValueError: if it is none, or is the full model of something else.
  """
  if full is None:
    if generator.bound.weights is not None:
      raise ValueError(
        'this generator has weights in 8 bits, and its losses are measured '
        "against the float model: give full=calm_jax.load(run, weights='float',"
        ' certificate=None)'
      )
    policy = decoding.full_model(generator.policy)
    return dataclasses.replace(generator, policy=policy, certificate=None)
  policy = decoding.describe(decoding.full_model(full.policy), {})
  if decoding.describe(full.policy, {}) != policy or full.bound.weights:
    raise ValueError(
      'full is not the full model in float: give full=calm_jax.load(run, '
      "weights='float', certificate=None)"
    )
  ours, theirs = (
    dataclasses.replace(one.context(), policy=None, weights=None)
    for one in (generator, full)
  )
  if breaking := ours.differences(theirs, made='served').breaking:
    raise ValueError(
      f'full is the full model of something else: {"; ".join(breaking)}'
    )
  return full
