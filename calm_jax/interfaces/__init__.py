"""The seam: what a decoder must offer and what a policy may decide.

`LayeredDecoder` is the model side, pure functions over P positions and one
layer at a time. The protocols of the seven slots are the policy side: a
policy decides, the loops in `calm_jax.decoding` obey, the model knows nothing
of exits. Anyone with another JAX model supplies a `LayeredDecoder`, which
`check_decoder` tries function by function; anyone with another adaptive-compute
method supplies one of the seven slots.

Conventions. `layer` counts from 0 and is a Python int or a traced int32 scalar;
`exit_layer` is the number of layers used, 1..L. Positions are int32 [P] (shared
by the rows) or [B, P], in [0, T), the P positions of a row one after the other.
Every leaf of a cache and of a policy state leads with the batch axis, so that
loops can gather, shard and reorder rows without knowing what is inside.
"""

from calm_jax.interfaces.bound_decoder import BoundDecoder, DepthLoop
from calm_jax.interfaces.cache_fill_slot import CacheFill, NoCompanions
from calm_jax.interfaces.conformance import check_decoder
from calm_jax.interfaces.encoder_exit_slot import EncoderExit
from calm_jax.interfaces.layered_decoder import LayeredDecoder
from calm_jax.interfaces.layered_encoder import LayeredEncoder
from calm_jax.interfaces.ledger import FillWork, Work
from calm_jax.interfaces.policy_slots import (
  ExitRule,
  FeedForwardTwins,
  LayerPlan,
  PlansAhead,
  PolicySlot,
  SourceRule,
  StatelessSlot,
  Verification,
  reads_source,
)
from calm_jax.interfaces.readout_slot import AddsNothing, Readout, ReadsAll
from calm_jax.interfaces.slot_views import (
  CachedPositions,
  Companions,
  LayerView,
  LayerWork,
  PlanView,
  Reading,
  Segment,
)
from calm_jax.interfaces.source_plan_slot import SourcePlan

__all__ = [
  'AddsNothing',
  'BoundDecoder',
  'CacheFill',
  'CachedPositions',
  'Companions',
  'DepthLoop',
  'EncoderExit',
  'ExitRule',
  'FeedForwardTwins',
  'FillWork',
  'LayerPlan',
  'LayerView',
  'LayerWork',
  'LayeredDecoder',
  'LayeredEncoder',
  'NoCompanions',
  'PlanView',
  'PlansAhead',
  'PolicySlot',
  'Reading',
  'Readout',
  'ReadsAll',
  'Segment',
  'SourcePlan',
  'SourceRule',
  'StatelessSlot',
  'Verification',
  'Work',
  'check_decoder',
  'reads_source',
]
