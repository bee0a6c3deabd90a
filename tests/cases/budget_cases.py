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
  bound = cases.bound(depth_loop)
  if params is not None:
    bound = decoding.bind(cases.decoder(), params, depth_loop=depth_loop)
  return cases.host(
    decoding.generate(
      bound,
      source,
      policy=decoding.ComputePolicy(exit_rule=rule),
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
