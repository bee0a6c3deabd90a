"""Decoding: the token loop, the depth loops and most of the policy's slots.

`generate` is the whole of it; `start`, `advance` and `finish` are its parts. A
`ComputePolicy` says how much each token computes, a sampler which token is
chosen, and a depth loop how the program walks the layers. What goes into the
slot `exit_rule`, when to stop, is `calm_jax.exits`.
"""

from collections.abc import Sequence

from calm_jax.decoding.adapted_vocabulary import AdaptedVocabulary
from calm_jax.decoding.beam_search import BeamSearch
from calm_jax.decoding.binding import bind, default_depth_loop
from calm_jax.decoding.cache_fills import (
  ProjectExitState,
  ProjectFirstExitState,
)
from calm_jax.decoding.catch_up import CatchUp
from calm_jax.decoding.chosen_feed_forward import ChosenFeedForward
from calm_jax.decoding.compacting_depth_loop import CompactingDepthLoop
from calm_jax.decoding.compiling import CompiledDecode, compile_decode
from calm_jax.decoding.context_places import ContextUse, context_use
from calm_jax.decoding.deferred_fill import DeferredExitState
from calm_jax.decoding.depth_loops import UnrolledDepthLoop, WhileDepthLoop
from calm_jax.decoding.draft_ahead import DraftAhead
from calm_jax.decoding.drafters import FirstLayers
from calm_jax.decoding.encoder_exits import StoppedEncoder, WholeEncoder
from calm_jax.decoding.exit_traces import Trace, trace
from calm_jax.decoding.extending import extend
from calm_jax.decoding.failures import describe_failure
from calm_jax.decoding.first_tokens import FirstTokens
from calm_jax.decoding.int8_vocabulary import Int8Vocabulary
from calm_jax.decoding.layer_plans import EveryLayer, KeepLayers
from calm_jax.decoding.policy import (
  ComputePolicy,
  as_policy,
  at_output_length,
)
from calm_jax.decoding.pruned_context import PrunedContext
from calm_jax.decoding.readouts import FullVocabulary
from calm_jax.decoding.refilling import decode_queue, refill
from calm_jax.decoding.routed_feed_forward import RoutedFeedForward
from calm_jax.decoding.routing import routed_depths
from calm_jax.decoding.sampling import (
  Greedy,
  Nucleus,
  Sampler,
  Temperature,
  TopK,
  as_sampler,
)
from calm_jax.decoding.saturated_feed_forward import SkipSaturatedFeedForward
from calm_jax.decoding.settings import (
  describe,
  describe_computation,
  full_model,
  full_within_budget,
  is_full_at_one,
  rule_of_threshold,
  setting_paths,
  threshold_of,
  threshold_path,
  with_setting,
)
from calm_jax.decoding.shrinking_batch import ShrinkingBatch
from calm_jax.decoding.skip_decode import SkipDecode
from calm_jax.decoding.source_plans import PrunedSource, WholeSource
from calm_jax.decoding.starting import start
from calm_jax.decoding.states import DecodeResult, DecodeState, Search
from calm_jax.decoding.token_loop import advance, finish, generate
from calm_jax.decoding.verification import (
  NeverVerify,
  VerifyAdaptively,
  VerifyEvery,
)
from calm_jax.decoding.vocabulary_pruning import PrunedVocabulary
from calm_jax.decoding.vocabulary_streaming import StreamedVocabulary
from calm_jax.encoding.input_checks import check_inputs
from calm_jax.interfaces import DepthLoop

# What command lines and tables call them.
DEPTH_LOOPS = {
  'while': WhileDepthLoop(),
  'unrolled': UnrolledDepthLoop(),
  'compacting': CompactingDepthLoop(),
  'shrinking': ShrinkingBatch(),
}
# Those of them that do nothing for a row alone.
FOR_BATCHES = frozenset({'compacting', 'shrinking'})


def name_of_depth_loop(depth_loop: DepthLoop) -> str:
  """Returns its key in `DEPTH_LOOPS`; the name of its type if it has none."""
  for name, known in DEPTH_LOOPS.items():
    if depth_loop == known:
      return name
  return type(depth_loop).__name__


def is_for_batches(depth_loop: DepthLoop) -> bool:
  """Whether a depth loop is another program for each size of a batch.

  It does nothing for a row alone.
  """
  return isinstance(
    depth_loop, tuple(type(DEPTH_LOOPS[n]) for n in FOR_BATCHES)
  )


def check_depth_loops(names: Sequence[str]) -> tuple[str, ...]:
  """Returns keys of `DEPTH_LOOPS`, checked.

  Raises:
    ValueError: for a name that is none.
  """
  for name in names:
    if name not in DEPTH_LOOPS:
      raise ValueError(
        f'depth loop {name!r} is none of {", ".join(DEPTH_LOOPS)}'
      )
  return tuple(names)


__all__ = [
  'DEPTH_LOOPS',
  'FOR_BATCHES',
  'AdaptedVocabulary',
  'BeamSearch',
  'CatchUp',
  'ChosenFeedForward',
  'CompactingDepthLoop',
  'CompiledDecode',
  'ComputePolicy',
  'ContextUse',
  'DecodeResult',
  'DecodeState',
  'DeferredExitState',
  'DraftAhead',
  'EveryLayer',
  'FirstLayers',
  'FirstTokens',
  'FullVocabulary',
  'Greedy',
  'Int8Vocabulary',
  'KeepLayers',
  'NeverVerify',
  'Nucleus',
  'ProjectExitState',
  'ProjectFirstExitState',
  'PrunedContext',
  'PrunedSource',
  'PrunedVocabulary',
  'RoutedFeedForward',
  'Sampler',
  'Search',
  'ShrinkingBatch',
  'SkipDecode',
  'SkipSaturatedFeedForward',
  'StoppedEncoder',
  'StreamedVocabulary',
  'Temperature',
  'TopK',
  'Trace',
  'UnrolledDepthLoop',
  'VerifyAdaptively',
  'VerifyEvery',
  'WhileDepthLoop',
  'WholeEncoder',
  'WholeSource',
  'advance',
  'as_policy',
  'as_sampler',
  'at_output_length',
  'bind',
  'check_depth_loops',
  'check_inputs',
  'compile_decode',
  'context_use',
  'decode_queue',
  'default_depth_loop',
  'describe',
  'describe_computation',
  'describe_failure',
  'extend',
  'finish',
  'full_model',
  'full_within_budget',
  'generate',
  'is_for_batches',
  'is_full_at_one',
  'name_of_depth_loop',
  'refill',
  'routed_depths',
  'rule_of_threshold',
  'setting_paths',
  'start',
  'threshold_of',
  'threshold_path',
  'trace',
  'with_setting',
]
