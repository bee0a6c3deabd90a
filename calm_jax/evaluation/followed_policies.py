"""Which policies' outputs follow from the full model's."""

import jax
import jax.numpy as jnp

from calm_jax import decoding, exits, interfaces


def follows_from_full(
  bound: interfaces.BoundDecoder, policy: decoding.ComputePolicy
) -> bool:
  """Whether greedy outputs under a policy follow from the full model's.

  They do where K/V are exact, every layer runs, in the encoder as well, all of
  the source is read, the exit rule compares a measure of the present state with
  a threshold, the same for all rows, and logits are over the whole vocabulary,
  of states or of adapted ones; no draft is checked. Numbers must be those of
  float32, too: otherwise a block of positions and one position after the other
  say different tokens too often. (In 8 bits a last digit may move a state to
  the next step.)

  Args:
    bound: the decoder with its parameters.
    policy: the policy, at any threshold.
  """
  rule, readout = policy.exit_rule, policy.readout
  if isinstance(readout, decoding.AdaptedVocabulary):
    readout = readout.inner
  return (
    isinstance(policy.cache_fill, decoding.CatchUp)
    and isinstance(policy.layer_plan, decoding.EveryLayer)
    and policy.source_plan.whole
    and policy.encoder_exit.whole
    and isinstance(readout, decoding.FullVocabulary)
    and not policy.verifies
    and isinstance(rule, exits.ConfidenceExit)
    and not any(map(jnp.ndim, jax.tree.leaves(rule.threshold)))
    and bound.weights is None
    and _is_float32(bound)
  )


def _is_float32(bound: interfaces.BoundDecoder) -> bool:
  """Whether products of matrices have the digits of float32."""
  precision = str(jax.config.jax_default_matmul_precision or '')
  exact = precision in ('highest', 'float32')
  on_cpu = jax.default_backend() == 'cpu' and precision in ('', 'default')
  return jnp.finfo(bound.decoder.dtype).bits >= 32 and (exact or on_cpu)
