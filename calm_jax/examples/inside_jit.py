"""Calls the decoder inside another jitted JAX program.

  python -m calm_jax.examples.inside_jit

One program decodes the same inputs at several thresholds and returns how deep
each went and how many tokens it shares with the full model: the curve that
calibration looks at, without leaving the device. Thresholds are data, so the
decoder is compiled once for all of them. Weights are random here, so the
numbers mean nothing.
"""

import functools

import jax
import jax.numpy as jnp

from calm_jax import decoding, exits, model

CONFIG = model.T5Config(
  vocab_size=64,
  embed_dim=32,
  num_heads=2,
  head_dim=16,
  mlp_dim=64,
  num_encoder_layers=1,
  num_decoder_layers=4,
)
MAX_LENGTH = 8


@jax.jit
def depth_and_agreement(bound, inputs, thresholds):
  """Returns two float32 [J]: layers per token and the share of equal tokens.

  Args:
    bound: of `decoding.bind`; its parameters are data, like the inputs.
    inputs: int32 [B, S].
    thresholds: float32 [J], in [0, 1]; the first, 1, is the full model.
  """

  def decode(threshold):
    rule = exits.ConfidenceExit(exits.SoftmaxMargin(), threshold)
    return decoding.generate(
      bound,
      inputs,
      policy=decoding.ComputePolicy(exit_rule=rule),
      max_length=MAX_LENGTH,
    )

  results = jax.lax.map(decode, thresholds)  # every leaf leads with J
  decoded = results.exit_layers > 0
  equal = results.tokens == results.tokens[0]
  mean = functools.partial(jnp.mean, axis=(1, 2), where=decoded)
  return mean(results.exit_layers), mean(equal)


def main():
  """Decodes inside a jitted function and prints what came out."""
  params = model.init_params(CONFIG, jax.random.key(0))
  # Random weights are never sure of a token; larger ones are.
  params['decoder']['logits_dense']['kernel'] *= 10.0
  bound = decoding.bind(
    model.as_layered_decoder(CONFIG),
    params,
    depth_loop=decoding.WhileDepthLoop(),  # the quickest to compile
  )
  inputs = jax.random.randint(jax.random.key(1), (4, 10), 2, CONFIG.vocab_size)
  thresholds = jnp.array([1.0, 0.6, 0.3, 0.0])
  depths, agreements = depth_and_agreement(bound, inputs, thresholds)
  for row in zip(thresholds, depths, agreements, strict=True):
    print('threshold {:.1f}: {:.2f} layers, {:.0%} equal tokens'.format(*row))


if __name__ == '__main__':
  main()
