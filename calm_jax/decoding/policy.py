"""`ComputePolicy`: the seven decisions of adaptive decoding, in one object.

A policy decides, the loops obey. Each slot has a null object as its default, so
that `ComputePolicy()` is the plain full model.
"""

import dataclasses
from typing import Any

from calm_jax import checks
from calm_jax.array_types import Array, PyTree
from calm_jax.decoding.cache_fills import ProjectExitState
from calm_jax.decoding.catch_up import CatchUp
from calm_jax.decoding.encoder_exits import WholeEncoder
from calm_jax.decoding.layer_plans import EveryLayer
from calm_jax.decoding.readouts import FullVocabulary
from calm_jax.decoding.source_plans import WholeSource
from calm_jax.decoding.verification import NeverVerify
from calm_jax.exits import LayerBudget, NeverExit
from calm_jax.interfaces import (
  CacheFill,
  EncoderExit,
  ExitRule,
  LayeredDecoder,
  LayerPlan,
  Readout,
  SourcePlan,
  Verification,
  reads_source,
)
from calm_jax.pytrees import register_pytree


@register_pytree
@dataclasses.dataclass(frozen=True)
class PolicyState:
  """The states of four slots; every leaf leads with the batch axis.

  Attributes:
    layer_plan: state of the layer plan.
    cache_fill: state of the cache fill.
    readout: state of the readout.
    exit_rule: state of the exit rule.
  """

  layer_plan: PyTree
  cache_fill: PyTree
  readout: PyTree
  exit_rule: PyTree


@register_pytree
@dataclasses.dataclass(frozen=True)
class ComputePolicy:
  """Decides how much is computed for each token.

  Attributes:
    layer_plan: before a layer: which sub-layers run?
    cache_fill: before a layer, and for the layers left over: what are its K/V
      made from?
    readout: when logits are needed: over which candidates?
    exit_rule: after a layer: which rows stop?
    verification: after a token: are drafts checked at full depth?
    source_plan: before the first token: which source positions are read?
    encoder_exit: before that: how many layers of the encoder run?
  """

  layer_plan: LayerPlan = EveryLayer()
  cache_fill: CacheFill = ProjectExitState()
  readout: Readout = FullVocabulary()
  exit_rule: ExitRule = NeverExit()
  verification: Verification = NeverVerify()
  source_plan: SourcePlan = WholeSource()
  encoder_exit: EncoderExit = WholeEncoder()

  def check(
    self, decoder: LayeredDecoder, batch_size: int, max_length: int
  ) -> 'ComputePolicy':
    """Returns itself with every slot checked and its numbers as arrays.

    Raises:
      ValueError: naming the bad number and what to give instead.
    """
    size = (decoder, batch_size, max_length)
    return ComputePolicy(
      layer_plan=self.layer_plan.check(*size),
      cache_fill=self.cache_fill.check(*size),
      readout=self.readout.check(*size),
      exit_rule=self.exit_rule.check(*size),
      verification=self.verification.check(*size),
      source_plan=self.source_plan.check(*size),
      encoder_exit=self.encoder_exit.check(*size),
    )

  @property
  def verifies(self) -> bool:
    """Whether drafts are checked, so that outputs are the full model's."""
    return not isinstance(self.verification, NeverVerify)

  @property
  def reads_source(self) -> bool:
    """Whether the exit rule sees the encoded source."""
    return reads_source(self.exit_rule)

  def check_composition(self):
    """Raises ValueError for slots that do not go together.

    Before anything is put around them.
    """
    exact = isinstance(self.cache_fill, CatchUp)
    rule = self.exit_rule
    self._check_plan()
    self._check_source_plan()
    self._check_encoder_exit()
    if not self.verifies:
      return
    verification = type(self.verification).__name__
    if not hasattr(self.verification, 'drafts_ahead'):
      raise ValueError(
        f'the slot verification holds a {verification}, which does not say '
        'when drafts are checked; give decoding.VerifyEvery(), or '
        'decoding.DraftAhead(head) for a draft head'
      )
    if not exact:
      raise ValueError(
        f'{verification} runs positions again from where they left, which '
        f'{type(self.cache_fill).__name__} does not keep; give '
        'cache_fill=decoding.CatchUp()'
      )
    if self.verification.drafts_ahead:
      if not isinstance(rule, NeverExit):
        raise ValueError(
          f'{verification} drafts with its head, and {type(rule).__name__} '
          'would draft with early exits; leave exit_rule=exits.NeverExit(), or '
          'give verification=decoding.VerifyEvery()'
        )
      return
    if isinstance(rule, NeverExit):
      raise ValueError(
        f'{verification} checks tokens that left early, and NeverExit lets '
        'none; give an exit rule, such as exits.FixedExit(2)'
      )
    if isinstance(rule, LayerBudget):
      raise ValueError(
        f'{verification} runs every token to the last layer in the end, so no '
        'LayerBudget can be kept; leave one of them out'
      )

  def _check_plan(self):
    """Raises ValueError for what does not go with the layer plan."""
    plan, rule, fill = self.layer_plan, self.exit_rule, self.cache_fill
    name = type(plan).__name__
    checks.check_no_class(plan, 'layer_plan')
    if not hasattr(plan, 'before'):
      raise ValueError(
        f'the slot layer_plan holds a {name}, which does not say what runs '
        'before a layer; give a plan such as decoding.KeepLayers(6), or '
        'decoding.EveryLayer()'
      )
    if isinstance(plan, EveryLayer):
      return
    if self.verifies:
      raise ValueError(
        f'{type(self.verification).__name__} checks drafts by the full model, '
        f'and the layer plan {name} leaves parts of it out; leave one of them '
        'out'
      )
    if plan.prunes_context and not isinstance(fill, ProjectExitState):
      raise ValueError(
        f'the layer plan {name} gives K/V their places when a position is '
        f'decoded, and {type(fill).__name__} makes them of another state, or '
        'later, when others may lie there; use ProjectExitState() with it'
      )
    if isinstance(fill, CatchUp) and not plan.same_everywhere:
      raise ValueError(
        'CatchUp makes the K/V of positions that ran every layer, and the '
        f'layer plan {name} leaves some out here and there; use '
        'ProjectExitState() with it'
      )
    if isinstance(rule, LayerBudget) and not plan.every_layer:
      raise ValueError(
        f'a LayerBudget counts on every layer, and the layer plan {name} '
        'leaves some out, which is a budget itself; leave one of them out'
      )
    if plan.same_everywhere or plan.every_layer:
      return
    if not isinstance(rule, NeverExit):
      raise ValueError(
        f'{name} leaves out layers below the last one, and '
        f'{type(rule).__name__} those above the exit, whose K/V later '
        'positions would read and nobody made; leave exit_rule=NeverExit(), or '
        'the plan'
      )
    if not isinstance(fill, ProjectExitState):
      raise ValueError(
        f'{name} says itself whose K/V are made, and {type(fill).__name__} '
        'makes others later; use ProjectExitState() with it'
      )

  def _check_source_plan(self):
    """Raises ValueError for what does not go with the source plan."""
    plan = self.source_plan
    name = type(plan).__name__
    checks.check_no_class(plan, 'source_plan')
    if not isinstance(plan, SourcePlan):
      raise ValueError(
        f'the slot source_plan holds a {name}, which does not say which source '
        'positions are read; give a plan such as '
        'decoding.PrunedSource(scorer, 128), or decoding.WholeSource()'
      )
    if self.verifies and not plan.whole:
      raise ValueError(
        f'{type(self.verification).__name__} checks drafts by the full model, '
        f'and the source plan {name} leaves parts of its source out; leave one '
        'of them out'
      )

  def _check_encoder_exit(self):
    """Raises ValueError for what does not go with the encoder's exits."""
    encoder_exit = self.encoder_exit
    name = type(encoder_exit).__name__
    checks.check_no_class(encoder_exit, 'encoder_exit')
    if not isinstance(encoder_exit, EncoderExit):
      raise ValueError(
        f'the slot encoder_exit holds a {name}, which does not encode; give '
        'decoding.StoppedEncoder(rule) for an exit rule, or '
        'decoding.WholeEncoder()'
      )
    if self.verifies and not encoder_exit.whole:
      raise ValueError(
        f'{type(self.verification).__name__} checks drafts by the full model, '
        f'and {name} leaves parts of its encoder out; leave one of them out'
      )

  def init(
    self, decoder: LayeredDecoder, batch_size: int, max_length: int
  ) -> PolicyState:
    """Returns the states of the slots of a policy that was checked."""
    size = (decoder, batch_size, max_length)
    return PolicyState(
      layer_plan=self.layer_plan.init(*size),
      cache_fill=self.cache_fill.init(*size),
      readout=self.readout.init(*size),
      exit_rule=self.exit_rule.init(*size),
    )

  def see_source(
    self, state: PolicyState, pooled: Array, lengths: Array
  ) -> PolicyState:
    """Returns the states of the slots once the exit rule has seen sources.

    Args:
      state: of `init`.
      pooled: float32 [B, D], mean states of the sources.
      lengths: int32 [B], their tokens.
    """
    rule: Any = self.exit_rule
    rule_state = rule.see_source(state.exit_rule, pooled, lengths)
    return dataclasses.replace(state, exit_rule=rule_state)


def at_output_length(policy: ComputePolicy, max_length: int) -> ComputePolicy:
  """Returns the policy for outputs of at most T tokens.

  Numbers that depend on that length and were left open get it: N of a decaying
  threshold (arXiv 2207.07061, Eq. 5), the length and the layers of a budget,
  the length of a schedule; of an encoder's rule it is 1. A
  decode does so by itself; a job does it once, so that the policy says the same
  in every decode of a run, whatever length that one is given.

  Args:
    policy: the policy.
    max_length: T, EOS included.
  """
  for name in ('layer_plan', 'exit_rule', 'encoder_exit'):
    slot: Any = getattr(policy, name)
    if hasattr(slot, 'at_output_length'):
      slot = slot.at_output_length(max_length)
      policy = dataclasses.replace(policy, **{name: slot})
  return policy


def as_policy(policy: ComputePolicy | ExitRule | None) -> ComputePolicy:
  """Returns a policy, of whatever stands for one.

  Args:
    policy: a policy; an exit rule alone, which is put into its slot; None for
      the full model.

  Raises:
    TypeError: for anything else, saying what to write.
  """
  if policy is None:
    return ComputePolicy()
  if isinstance(policy, ComputePolicy):
    return policy
  checks.check_no_class(policy, 'policy')
  if isinstance(policy, ExitRule):
    return ComputePolicy(exit_rule=policy)
  name = type(policy).__name__
  if hasattr(policy, 'confidence'):
    raise TypeError(
      f'policy is a confidence measure, {name}, without the threshold it is '
      f'compared with; give exits.ConfidenceExit({name}(...), 0.9)'
    )
  if hasattr(policy, 'step'):
    raise TypeError(
      f'policy is a {name}, which is no exit rule; put it into its slot: '
      f'decoding.ComputePolicy(readout=...), (cache_fill=...) or '
      '(layer_plan=...)'
    )
  raise TypeError(
    f'policy is {policy!r}; give a decoding.ComputePolicy, or an exit rule '
    'such as exits.ConfidenceExit(exits.SoftmaxMargin(), 0.9)'
  )
