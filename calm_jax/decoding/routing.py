"""The depth that a router gives each request, before anything is decoded."""

from typing import Any

import jax
import jax.numpy as jnp
from numpy.typing import ArrayLike

from calm_jax import sharding
from calm_jax.array_types import Array
from calm_jax.decoding import binding, starting
from calm_jax.decoding.policy import ComputePolicy, as_policy
from calm_jax.encoding import input_checks
from calm_jax.exits import LayerBudget, RoutedExit
from calm_jax.interfaces import BoundDecoder, EncoderExit, ExitRule


def routed_depths(
  bound: BoundDecoder, inputs: ArrayLike, policy: ComputePolicy | ExitRule
) -> Array:
  """Returns how many layers every token of each request will run, int32 [B].

  The encoder runs for it, as it does again when the requests are decoded. So
  requests of one depth can be put into one batch
  (`evaluation.batches_by_depth`). A budget around the rule may stop them
  earlier. Layers that a plan such as `KeepLayers` leaves out do not count.

  Args:
    bound: the decoder with its parameters.
    inputs: int [B, S], 0 = padding.
    policy: its exit rule is a `RoutedExit`, or a budget around one.

  Raises:
    ValueError: for another exit rule, or as `generate`.
  """
  binding.check_bound(bound)
  inputs = input_checks.check_inputs(inputs, bound.vocab_size)
  policy = as_policy(policy)
  rule: Any = policy.exit_rule
  while isinstance(rule, LayerBudget):
    rule = rule.rule
  if not isinstance(rule, RoutedExit):
    raise ValueError(
      f'{type(rule).__name__} gives requests no depth before they are decoded; '
      'give an exits.RoutedExit'
    )
  size = (bound.decoder, len(inputs), 1)
  policy.check_composition()
  depths = _depths(
    inputs, bound, rule.check(*size), policy.encoder_exit.check(*size)
  )
  plan = policy.layer_plan
  if not plan.same_everywhere or plan.every_layer:
    return depths
  # A row leaves after the first layer of the plan that reaches its depth.
  (segment,) = plan.check(*size).segments(bound.num_layers, 1)
  ran = jnp.searchsorted(jnp.array(segment.layers), depths - 1) + 1
  return jnp.minimum(ran, len(segment.layers)).astype(jnp.int32)


@jax.jit
def _depths(
  inputs: Array,
  bound: BoundDecoder,
  rule: RoutedExit,
  encoder_exit: EncoderExit,
) -> Array:
  def pool(of_rows, bound, encoder_exit):
    inputs, state = of_rows
    encoded, _ = starting.encode_sources(bound, inputs, encoder_exit, state)
    return bound.pool_source(encoded)

  of_rows = (inputs, encoder_exit.init(bound.decoder, inputs.shape[0], 1))
  pooled = sharding.map_rows(pool, bound.mesh)(of_rows, bound, encoder_exit)
  return rule.depths(*pooled)
