"""Served requests, of which some are decoded at full depth as well.

Which ones follows from a key and the number of a request, never from what it
says, so that their mean loss is, but for chance, that of all.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from calm_jax import decoding, records
from calm_jax.calibration import risk_monitor
from calm_jax.evaluation import losses, text_metrics
from calm_jax.pipeline.requests import RequestBatch
from calm_jax.pipeline.text_generator import TextGenerator


def check_fraction(fraction: Any) -> None:
  """Raises ValueError unless it is a fraction of requests to audit."""
  is_number = isinstance(fraction, (int, float)) and fraction is not True
  if not (is_number and 0 < fraction <= 1):
    raise ValueError(
      f'the fraction of audited requests is {fraction!r}; give a number above '
      '0 and at most 1, such as 0.05'
    )


@dataclasses.dataclass(frozen=True)
class Auditor:
  """Decodes some requests at full depth, and says how far the served text is.

  Attributes:
    generator: what serves, by its certificate.
    full: the full model in float.
    loss: the textual loss that the certificate promises.
    fraction: of the requests that are audited, in (0, 1].
    seed: which ones; a request's number decides the rest.
  """

  generator: TextGenerator
  full: TextGenerator
  loss: losses.ConsistencyLoss
  fraction: float
  seed: int = 0

  @classmethod
  def of(
    cls,
    generator: TextGenerator,
    *,
    fraction: float,
    seed: int = 0,
    metric: str | Callable | None = None,
    full: TextGenerator | None = None,
  ) -> 'Auditor':
    """Returns the auditor of a generator with a certificate.

    Args:
      generator: what serves.
      fraction: of the requests, in (0, 1].
      seed: which ones.
      metric: that of the certificate, where it is a function of your own; or
        the one to watch, where it promises several textual losses.
      full: the full model in float, where the generator has weights in 8 bits.

    Raises:
      ValueError: if there is nothing to audit or to audit with, saying why.
    """
    check_fraction(fraction)
    certificate = generator.certificate
    if certificate is None:
      raise ValueError(
        'no certificate covers this generator, so there is no promise to watch'
      )
    if full is None:
      if generator.bound.weights is not None:
        # Says what to do.
        generator.at_full_depth()
      policy = decoding.full_model(generator.policy)
      full = dataclasses.replace(generator, policy=policy, certificate=None)
    _check_full(generator, full)
    name = metric
    if metric is not None and not isinstance(metric, str):
      name = text_metrics.metric_name(metric)
    bound = risk_monitor.watched_bound(certificate, name)
    if metric is None and bound.metric not in text_metrics.METRICS:
      raise ValueError(
        f'the certificate measures by {bound.metric}, which is not imported '
        "unless you name it: metric='module:function', or the function"
      )
    loss = losses.get_loss('textual', metric or bound.metric)
    return cls(generator, full, loss, fraction, seed)

  def describe(self) -> dict[str, Any]:
    """Returns what audits depend on besides the generator."""
    return {
      'fraction': self.fraction,
      'seed': self.seed,
      'metric': self.loss.metric_name,
    }

  def draws(self, number: int) -> bool:
    """Says whether the request of this number, from 0, is audited."""
    drawn = hashlib.sha256(f'audit {self.seed} {number}'.encode()).digest()
    return int.from_bytes(drawn[:8]) < self.fraction * 2**64

  def audit(
    self,
    batch: RequestBatch,
    texts: Sequence[str],
    *,
    numbers: Sequence[int] | None = None,
    seed: int = 0,
  ) -> dict[int, records.Audit]:
    """Decodes those requests of a batch at full depth that are drawn.

    Args:
      batch: that was served. Requests with a forced prefix are left out, as no
        certificate covers them.
      texts: the output of each of its requests.
      numbers: by which they are drawn; those of the requests if None.
      seed: of what the sampler draws.

    Returns:
      The audit of each request that was drawn, by its place in the batch.
    """
    if numbers is None:
      numbers = [request.number for request in batch.requests]
    places = [
      place
      for place, request in enumerate(batch.requests)
      if not request.forced_prefix and self.draws(numbers[place])
    ]
    if not places:
      return {}
    taken = tuple(batch.requests[place] for place in places)
    num_rows = min(batch.num_rows, 1 << (len(taken) - 1).bit_length())
    decoded = self.full.decode(
      RequestBatch(taken, num_rows, batch.length), seed=seed
    )
    full_texts = [samples[0].text for samples in decoded]
    values = self.loss.of_texts([texts[place] for place in places], full_texts)
    found = zip(places, full_texts, values.tolist(), strict=True)
    return {place: self._audit(text, value) for place, text, value in found}

  def _audit(self, full_text: str, value: float) -> records.Audit:
    assert self.generator.certificate is not None
    return records.Audit(
      certificate=self.generator.certificate.fingerprint,
      loss=self.loss.name,
      metric=self.loss.metric_name,
      value=value,
      full_text=full_text,
    )


def _check_full(generator: TextGenerator, full: TextGenerator) -> None:
  """Raises ValueError unless the one is the full model of the other."""
  policy = decoding.describe(decoding.full_model(full.policy), {})
  if decoding.describe(full.policy, {}) != policy or full.bound.weights:
    raise ValueError(
      'full is not the full model in float: load it with weights="float", '
      'policy=exits.NeverExit() and certificate=None'
    )
  ours, theirs = (
    dataclasses.replace(one.context(), policy=None, weights=None)
    for one in (generator, full)
  )
  if breaking := ours.differences(theirs, made='served').breaking:
    raise ValueError(
      f'full is the full model of something else: {"; ".join(breaking)}'
    )
