"""Served requests, of which some are decoded at full depth as well.

Which ones follows from a key and the number of a request, never from what it
says, so that their mean loss is, but for chance, that of all.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from calm_jax import records
from calm_jax.evaluation import losses
from calm_jax.pipeline import auditable
from calm_jax.pipeline.requests import RequestBatch
from calm_jax.pipeline.text_generator import TextGenerator


@dataclasses.dataclass(frozen=True)
class Auditor:
  """Decodes some requests at full depth, and says how far the served text is.

  Attributes:
    generator: what serves, by its certificate.
    full: the full model in float.
    loss: the textual loss that the certificate promises.
    fraction: of the requests that are audited, in (0, 1].
    seed: which ones; a request's number decides the rest.
    among: what the numbers count, such as the file that rows go to: of files
      of equally many lines others are drawn.
  """

  generator: TextGenerator
  full: TextGenerator
  loss: losses.ConsistencyLoss
  fraction: float
  seed: int = 0
  among: str = ''

  @classmethod
  def of(
    cls,
    generator: TextGenerator,
    *,
    fraction: float,
    seed: int = 0,
    among: str = '',
    metric: str | Callable | None = None,
    full: TextGenerator | None = None,
  ) -> 'Auditor':
    """Returns the auditor of a generator with a certificate.

    Args:
      generator: what serves.
      fraction: of the requests, in (0, 1].
      seed: which ones.
      among: what the numbers of requests count.
      metric: see `auditable.promised_loss`.
      full: the full model in float, where the generator has weights in 8 bits.

    Raises:
      ValueError: if there is nothing to audit or to audit with, saying why.
    """
    auditable.check_fraction(fraction)
    certificate = auditable.certificate_of(generator)
    loss = auditable.promised_loss(certificate, metric)
    full = auditable.full_of(generator, full)
    return cls(generator, full, loss, fraction, seed, among)

  def describe(self) -> dict[str, Any]:
    """Returns what audits depend on besides the generator."""
    return {
      'fraction': self.fraction,
      'seed': self.seed,
      'among': self.among,
      'metric': self.loss.metric_name,
    }

  def draws(self, number: int) -> bool:
    """Says whether the request of this number, from 0, is audited."""
    key = f'audit {self.seed} {number} {self.among}'
    drawn = hashlib.sha256(key.encode()).digest()
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
    # What a loss remembers is for a grid of settings, not for a server's life.
    loss = dataclasses.replace(self.loss, scores={})
    values = loss.of_texts([texts[place] for place in places], full_texts)
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
