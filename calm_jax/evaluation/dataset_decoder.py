"""A bound decoder with all that decoding a dataset takes besides a policy."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from calm_jax import decoding, interfaces, records
from calm_jax.evaluation.decode_dataset import (
  Batch,
  PolicyForBatch,
  decode_dataset,
)
from calm_jax.evaluation.decode_store import DecodeStore
from calm_jax.evaluation.decoded_dataset import DecodedDataset
from calm_jax.evaluation.followed_policies import follows_from_full
from calm_jax.evaluation.full_traces import FullTraces
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
    suppressed_tokens: ids that are never said.
    reference: where `bound` has weights in 8 bits, the same model in float:
      what the full model says, which losses are measured against, is decoded
      with it.
    about: fields of `records.DecodingContext` that the decoder cannot know:
      parameters, tokenizer, prefix, how inputs are cut.
    keep_in: a folder; decoded rows are kept there and looked up, so that an
      interrupted job goes on where it was. None decodes everything anew.
    share: the inputs that this process decodes; all by default.
    progress: gets a line to print now and then.
  """

  bound: interfaces.BoundDecoder
  detokenize: Callable[[Sequence[int]], str]
  max_length: int
  eos_id: int = 1
  suppressed_tokens: tuple[int, ...] = ()
  reference: interfaces.BoundDecoder | None = None
  about: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  keep_in: str | None = None
  share: collectives.Share = collectives.Share()
  progress: Callable[[str], None] | None = None

  def __post_init__(self):
    """Raises ValueError if a model in 8 bits has no other to be held against.

    A reference in 8 bits is none.
    """
    if self.bound.weights is not None and self.reference is None:
      raise ValueError(
        'this decoder has weights in 8 bits, and losses are measured against '
        "the float model's outputs: give it as reference="
        'decoding.bind(decoder, params)'
      )
    if self.reference is not None and self.reference.weights is not None:
      raise ValueError('the reference has weights in 8 bits; bind it in float')

  def __call__(
    self,
    batches: Iterable[Batch],
    *,
    policy: decoding.ComputePolicy | None = None,
    policy_for_batch: PolicyForBatch | None = None,
    earlier: DecodedDataset | None = None,
    traces: FullTraces | None = None,
    full_of: FullTraces | None = None,
  ) -> DecodedDataset:
    """Decodes every input of the batches; see `decode_dataset`.

    Args:
      batches: as for `decode_dataset`.
      policy: the policy of every batch.
      policy_for_batch: instead, a policy per batch; such decodes are not kept.
      earlier: a decode of the same batches at higher thresholds of the same
        policy: its rows are taken over where they cannot differ.
      traces: of the same batches (`trace`): what follows from the full model's
        outputs is not decoded.
      full_of: instead, traces that are to learn the full model's outputs, which
        are decoded here.
    """
    store = None
    if policy is not None:
      store = DecodeStore(
        self.keep_in,
        self._key(policy),
        stops_encoder=not policy.encoder_exit.whole,
      )
    if earlier is not None:
      take_over(store, earlier, policy, share=self.share)
    if traces is not None and policy is not None:
      traces.fill(store, policy)
    if full_of is not None:
      full_of.decode_full(store)
    return decode_dataset(
      self.bound,
      batches,
      detokenize=self.detokenize,
      max_length=self.max_length,
      eos_id=self.eos_id,
      suppressed_tokens=self.suppressed_tokens,
      policy=policy,
      policy_for_batch=policy_for_batch,
      share=self.share,
      store=store,
      progress=self.progress,
    )

  def full(
    self,
    batches: Sequence[Batch],
    policy: decoding.ComputePolicy,
    *,
    full_of: FullTraces | None = None,
  ) -> DecodedDataset:
    """Decodes what losses are measured against: the full model, in float.

    Args:
      batches: as for `decode_dataset`.
      policy: the policy, which says how the full model is decoded.
      full_of: as for a decode.
    """
    decode = self
    if self.reference is not None:
      decode = dataclasses.replace(self, bound=self.reference, reference=None)
    full_policy = decoding.full_model(policy)
    return decode(batches, policy=full_policy, full_of=full_of)

  def trace(
    self,
    batches: Sequence[Batch],
    full: DecodedDataset,
    policy: decoding.ComputePolicy,
    coming: Sequence[decoding.ComputePolicy] = (),
  ) -> FullTraces | None:
    """Returns what saves decoding a policy; None if nothing follows for it.

    Args:
      batches: as for `decode_dataset`.
      full: the full model's decode of them.
      policy: the policy, at any threshold.
      coming: it at the settings that will be decoded, in their order.
    """
    traces = self._traces(batches, policy, coming)
    if traces is not None:
      traces.know(full)
    return traces

  def full_and_traces(
    self,
    batches: Sequence[Batch],
    policy: decoding.ComputePolicy,
    coming: Sequence[decoding.ComputePolicy] = (),
  ) -> tuple[DecodedDataset, FullTraces | None]:
    """Decodes the full model, in float, and returns what `trace` does with it.

    Exits are looked at on the way, which is cheaper than looking afterwards.

    Args:
      batches: as for `decode_dataset`.
      policy: the policy, at any threshold.
      coming: as for `trace`.
    """
    traces = self._traces(batches, policy, coming)
    full = self.full(batches, policy, full_of=traces)
    if traces is not None:
      traces.know(full)
    return full, traces

  def _traces(self, batches, policy, coming) -> FullTraces | None:
    """Returns traces of nothing yet."""
    if not follows_from_full(self.bound, policy):
      return None
    return FullTraces(
      self.bound,
      batches,
      policy,
      max_length=self.max_length,
      eos_id=self.eos_id,
      suppressed_tokens=self.suppressed_tokens,
      coming=coming,
      share=self.share,
      progress=self.progress,
    )

  def context(
    self, policy: decoding.ComputePolicy, setting: Any = None
  ) -> records.DecodingContext:
    """Returns the context of decodes under a policy.

    Args:
      policy: the policy.
      setting: whose values are left out of it; the threshold if None.
    """
    return records.DecodingContext(
      policy=decoding.describe(policy, setting),
      sampler=decoding.describe(decoding.Greedy()),
      max_length=self.max_length,
      suppressed_tokens=self.suppressed_tokens,
      versions=provenance.versions(*provenance.LIBRARIES),
      **{**decoding.describe_computation(self.bound), **self.about},
    )

  def _key(self, policy: decoding.ComputePolicy) -> dict[str, Any]:
    """Returns what decoded rows depend on but their inputs."""
    mesh = self.bound.mesh
    return {
      # With the setting in it.
      **self.context(policy, {}).write(),
      # Rows that lie otherwise may round otherwise.
      **({} if mesh is None else {'mesh': dict(mesh.shape)}),
    }
