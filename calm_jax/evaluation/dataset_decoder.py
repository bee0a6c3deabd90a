"""A bound decoder with all that decoding a dataset takes besides a policy."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax

from calm_jax import decoding, interfaces
from calm_jax.evaluation.decode_dataset import (
  Batch,
  PolicyForBatch,
  decode_dataset,
)
from calm_jax.evaluation.decode_store import DecodeStore
from calm_jax.evaluation.decoded_dataset import DecodedDataset
from calm_jax.evaluation.threshold_reuse import take_over
from calm_jax.processes import collectives
from calm_jax.records import provenance


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DatasetDecoder:
  """Decodes the same batches under one policy after the other, greedily.

  Attributes:
    bound: the decoder with its parameters. Its mesh is of this process's
      devices, if there are several processes.
    detokenize: ids without padding and without EOS -> text.
    max_length: T, the most tokens to decode, EOS included.
    eos_id: the id that ends a sequence.
    about: what names parameters and tokenizer, such as their fingerprints.
    keep_in: a folder; decoded rows are kept there and looked up, so that an
      interrupted job goes on where it was. None decodes everything anew.
    share: the inputs that this process decodes; all by default.
    progress: gets a line to print now and then.
  """

  bound: interfaces.BoundDecoder
  detokenize: Callable[[Sequence[int]], str]
  max_length: int
  eos_id: int = 1
  about: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  keep_in: str | None = None
  share: collectives.Share = collectives.Share()
  progress: Callable[[str], None] | None = None

  def __call__(
    self,
    batches: Iterable[Batch],
    *,
    policy: decoding.ComputePolicy | None = None,
    policy_for_batch: PolicyForBatch | None = None,
    earlier: DecodedDataset | None = None,
  ) -> DecodedDataset:
    """Decodes every input of the batches; see `decode_dataset`.

    Args:
      batches: as for `decode_dataset`.
      policy: the policy of every batch.
      policy_for_batch: instead, a policy per batch; such decodes are not kept.
      earlier: a decode of the same batches at higher thresholds of the same
        policy: its rows are taken over where they cannot differ.
    """
    store = None
    if policy is not None:
      about = {**self._about(), **_described(policy)}
      store = DecodeStore(self.keep_in, about)
    if earlier is not None:
      take_over(store, earlier, policy, share=self.share)
    return decode_dataset(
      self.bound,
      batches,
      detokenize=self.detokenize,
      max_length=self.max_length,
      eos_id=self.eos_id,
      policy=policy,
      policy_for_batch=policy_for_batch,
      share=self.share,
      store=store,
      progress=self.progress,
    )

  def _about(self) -> dict[str, Any]:
    """Returns what decoded rows depend on but their inputs and the policy."""
    mesh = self.bound.mesh
    return {
      **self.about,
      **self.describe(),
      'versions': provenance.versions(*provenance.LIBRARIES),
      # Rows that lie otherwise may round otherwise.
      **({} if mesh is None else {'mesh': dict(mesh.shape)}),
    }

  def describe(self) -> dict[str, Any]:
    """Returns length, dtype and depth loop, as certificates note them."""
    return {
      'max_length': self.max_length,
      'dtype': jax.numpy.dtype(self.bound.decoder.dtype).name,
      'backend': jax.default_backend(),
      'depth_loop': type(self.bound.depth_loop).__name__,
    }


def _described(policy: decoding.ComputePolicy) -> dict[str, Any]:
  """Returns a policy and its threshold, which `describe` leaves out, if any."""
  described = {'policy': decoding.describe(policy)}
  threshold = getattr(policy.exit_rule, 'threshold', None)
  if threshold is not None:
    described['threshold'] = float(getattr(threshold, 'value', threshold))
  return described
