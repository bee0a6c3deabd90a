"""An encoder with heads, as what a calibration decodes data sets with.

Its outputs are names of classes, one token long. All settings of all exit rules
follow from one pass over all layers: a row that leaves an encoder changes
nothing before, so that nothing is run again.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from calm_jax import decoding, encoding, exits, interfaces, records
from calm_jax.array_types import PyTree
from calm_jax.encoder_heads import EncoderHeads
from calm_jax.evaluation.candidates import Candidates, as_space
from calm_jax.evaluation.decode_dataset import Batch
from calm_jax.evaluation.decoded_dataset import DecodedDataset
from calm_jax.evaluation.encoder_passes import EncoderPass, content_of
from calm_jax.processes import collectives
from calm_jax.records import provenance
from calm_jax.source_heads import SourceHeads

# In the place of a sampler: what says the names of classes.
CLASSES = 'ClassesOfHeads'


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DatasetClassifier:
  """Classifies the same batches under one exit rule after the other.

  Attributes:
    encoder: the encoder.
    params: its parameters, laid out or not.
    heads: of its layers.
    class_texts: C names of classes, all different.
    about: fields of `records.DecodingContext` that it cannot know: parameters,
      tokenizer, prefix, how inputs are cut.
    progress: gets a line to print now and then.
  """

  encoder: interfaces.LayeredEncoder
  params: PyTree
  heads: EncoderHeads | SourceHeads
  class_texts: Sequence[str]
  about: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  progress: Any = None
  _passes: dict[str, EncoderPass] = dataclasses.field(
    default_factory=dict, repr=False
  )

  bound: ClassVar[Any] = None
  max_length = 1
  share = collectives.Share()

  def __post_init__(self):
    """Raises ValueError for heads that do not go with encoder and names."""
    object.__setattr__(self, 'heads', self.heads.check(self.encoder))
    # As `same_text` compares them: spaces around a name are nothing.
    names = {text.strip() for text in self.class_texts}
    if not len(self.class_texts) == len(names) == self.heads.num_classes:
      raise ValueError(
        f'there are {len(names)} different names for the '
        f'{self.heads.num_classes} classes of the heads; give those that they '
        'were trained for (runs.load_class_labels)'
      )

  def __call__(
    self,
    batches: Sequence[Batch],
    *,
    policy: decoding.ComputePolicy,
    earlier: DecodedDataset | None = None,
    traces: None = None,
  ) -> DecodedDataset:
    """Returns what the policy's exit rule makes of every input.

    Args:
      batches: as for `decode_dataset`.
      policy: one of `policy`, or the full model.
      earlier: not used: nothing is run here that another decode would save.
      traces: not used.

    Raises:
      ValueError: for a policy that does anything else, of which nothing would
        be seen here, or with other heads.
    """
    del earlier, traces
    self._check(policy)
    stops: Any = policy.encoder_exit
    rule = exits.NeverExit() if stops.whole else stops.rule
    return self._pass(batches).under(self.encoder, rule, self.class_texts)

  def full(
    self, batches: Sequence[Batch], policy: decoding.ComputePolicy
  ) -> DecodedDataset:
    """Returns what the last layer says.

    Args:
      batches: as for `decode_dataset`.
      policy: not looked at.
    """
    found, _ = self.full_and_traces(batches, policy)
    return found

  def trace(self, *arguments: Any) -> None:
    """Returns no traces: one pass says all."""
    del arguments

  def full_and_traces(
    self,
    batches: Sequence[Batch],
    policy: decoding.ComputePolicy,
    coming: Sequence[decoding.ComputePolicy] = (),
  ) -> tuple[DecodedDataset, None]:
    """Returns what the last layer says, and no traces.

    Args:
      batches: as for `decode_dataset`.
      policy: not looked at: its full model is all layers.
      coming: not used.
    """
    del coming
    found = self(batches, policy=decoding.full_model(policy))
    seconds = np.full(
      len(found.texts), self._pass(batches).seconds / len(found.texts)
    )
    return dataclasses.replace(found, seconds=seconds), None

  def policy(
    self,
    exit_rule: interfaces.ExitRule,
    loop: encoding.LayerLoop | None = None,
  ) -> decoding.ComputePolicy:
    """Returns the policy by which inputs leave by an exit rule, and no other.

    Args:
      exit_rule: the rule.
      loop: how layers are looped over; `encoding.UnrolledLayers()` if None.
    """
    loop = encoding.UnrolledLayers() if loop is None else loop
    stops = decoding.StoppedEncoder(exit_rule, heads=self.heads, loop=loop)
    return decoding.ComputePolicy(encoder_exit=stops)

  def space(
    self, space: Sequence[Candidates], *, batch_size: int
  ) -> tuple[Candidates, ...]:
    """Returns a space of exit rules, for a tuning, with the heads in them.

    Args:
      space: policies that let sources leave the encoder, and do nothing else.
      batch_size: inputs that are classified together; of several the rows that
        are left are gathered (`encoding.CompactedLayers`).

    Raises:
      ValueError: for a policy that classifies nothing, by its name.
    """
    loop = encoding.CompactedLayers() if batch_size > 1 else None
    return tuple(
      dataclasses.replace(one, policy=self.policy(_rule_of(one), loop))
      for one in as_space(space)
    )

  def context(
    self, policy: decoding.ComputePolicy, setting: Any = None
  ) -> records.DecodingContext:
    """Returns the context of what is classified under a policy.

    Names of classes stand in the place of a sampler, so that no certificate of
    a classifier holds for decoding, nor the other way round.

    Args:
      policy: the policy.
      setting: whose values are left out of it; the threshold if None.
    """
    computation = decoding.describe_computation()
    return records.DecodingContext(
      policy=decoding.describe(policy, setting),
      sampler={'type': CLASSES, 'names': list(self.class_texts)},
      max_length=1,
      weights='float',
      versions=provenance.versions(*provenance.LIBRARIES),
      **{**computation, **self.about},
    )

  def _check(self, policy: decoding.ComputePolicy) -> None:
    """Raises ValueError for what is not of classes by these heads."""
    if not _only_stops(policy):
      raise ValueError(
        'the policy does something besides encoder_exit, and classes come of '
        'encoder layers alone, so that it would be certified unseen; give '
        "the classifier's policy(rule)"
      )
    stops: Any = policy.encoder_exit
    if stops.whole or stops.heads is self.heads:
      return
    if decoding.describe(stops.heads) != decoding.describe(self.heads):
      raise ValueError(
        "the policy's heads are others than those that classify, which its "
        "certificate would not name; give the classifier's policy(rule)"
      )

  def _pass(self, batches: Sequence[Batch]) -> EncoderPass:
    """Returns all layers of the inputs, run once."""
    key = content_of(batches)
    if key not in self._passes:
      self._passes[key] = EncoderPass.run(
        self.encoder, self.params, self.heads, batches
      )
    return self._passes[key]


def _only_stops(policy: decoding.ComputePolicy) -> bool:
  """Whether a policy is the full model but for its encoder exit."""
  rest = dataclasses.replace(policy, encoder_exit=decoding.WholeEncoder())
  full = decoding.full_model(policy)
  return decoding.describe(rest, {}) == decoding.describe(full, {})


def _rule_of(candidates: Candidates) -> interfaces.ExitRule:
  """Returns the rule by which inputs leave, of a policy that does only this."""
  policy = decoding.as_policy(candidates.policy)
  stops: Any = policy.encoder_exit
  if stops.whole or candidates.weights is not None:
    what = 'weights in 8 bits' if candidates.weights else 'no encoder exit'
  elif not _only_stops(policy):
    what = 'slots besides encoder_exit'
  else:
    return stops.rule
  raise ValueError(
    f'policy {candidates.name!r} of the space has {what}, and classes come of '
    'encoder layers in float alone; give decoding.ComputePolicy(encoder_exit='
    'decoding.StoppedEncoder(rule))'
  )
