"""Budgets on the policies' tiny T5: how tests decode with them."""

import numpy as np
from cases import policy_cases as cases

from calm_jax import decoding, exits

B, T, L = cases.B, cases.T, cases.L
SIZE = (cases.decoder(), B, T)
MARGIN = exits.ConfidenceExit(exits.SoftmaxMargin(), 0.5)


def decode(rule, *, source=None, params=None, loop='while', **options):
  options = {'max_length': T, 'eos_id': -1, **options}
  source = cases.inputs() if source is None else source
  depth_loop = decoding.DEPTH_LOOPS[loop]
  if params is None:
    params = cases.prepared(depth_loop.traced_layers)
  return cases.host(
    decoding.generate(
      cases.decoder(),
      params,
      source,
      policy=decoding.ComputePolicy(exit_rule=rule),
      depth_loop=depth_loop,
      **options,
    )
  )


def used(result):
  return np.maximum(result.exit_layers, 0).sum(axis=-1)


RULES = {
  'margin': lambda threshold: exits.ConfidenceExit(MARGIN.measure, threshold),
  'margin, every other layer': lambda threshold: exits.ConfidenceExit(
    MARGIN.measure, threshold, minimum_exit_layer=2, interval=2
  ),
  'similarity': lambda threshold: exits.ConfidenceExit(
    exits.StateSimilarity(), threshold
  ),
  'never': lambda threshold: exits.NeverExit(),
}
