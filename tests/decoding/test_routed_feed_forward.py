"""A router of small twins in decoding: its knob, and what is refused.

The laws of all policies are in `test_policy_laws`.
"""

import dataclasses

import numpy as np
import pytest
from cases import policy_cases as cases

from calm_jax import decoding

PLAN = cases.ROUTED_TWINS


def policy(plan, **slots):
  return decoding.ComputePolicy(layer_plan=plan, **slots)


def started(plan, **slots):
  return decoding.start(
    cases.bound(cases.WHILE),
    cases.inputs(),
    policy=policy(plan, **slots),
    max_length=cases.T,
    eos_id=cases.EOS_ID,
  )


def test_the_threshold_is_the_setting():
  """What a certificate is about, written down and made again without it."""
  given = policy(PLAN)
  assert decoding.threshold_path(given) == 'layer_plan.threshold'
  assert decoding.with_setting(given, 0.25).layer_plan.threshold == 0.25
  assert decoding.is_full_at_one(given)
  described = decoding.describe(given)['layer_plan']
  assert described['threshold'] is None
  assert described['router']['type'] == 'TokenRouter'
  assert described['twins']['type'] == 'SmallTwins'
  assert decoding.full_model(given).layer_plan == decoding.EveryLayer()


@pytest.mark.slow
def test_a_lower_threshold_runs_less():
  """The same tokens forced, so that states differ by what ran alone."""
  tokens = np.asarray(cases.decode('full').tokens)

  def units(threshold):
    found = decoding.generate(
      cases.bound(cases.WHILE),
      cases.inputs(),
      policy=policy(dataclasses.replace(PLAN, threshold=threshold)),
      max_length=cases.T,
      forced_prefix=tokens,
    )
    own = np.asarray(found.work.feed_forward).sum()
    small = np.asarray(found.work.extra_products).sum()
    return own * 3 * cases.CONFIG.mlp_dim + small

  spent = [units(threshold) for threshold in (1.0, 0.7, 0.5, 0.3, 0.0)]
  assert spent == sorted(spent, reverse=True) and len(set(spent)) == 5


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: started(dataclasses.replace(PLAN, threshold=1.5)), '1.5 is outs'),
    (
      lambda: started(dataclasses.replace(PLAN, threshold=float('nan'))),
      'threshold of RoutedFeedForward nan',
    ),
    (
      lambda: started(dataclasses.replace(PLAN, threshold=np.ones((3,)))),
      r'has shape \[3\], wanted \[\] or \[4\]',
    ),
    (
      lambda: started(dataclasses.replace(PLAN, router=None)),
      'router of RoutedFeedForward is None; give TokenRouter, such as runs.lo',
    ),
    (
      lambda: started(dataclasses.replace(PLAN, twins='small_twins')),
      "twins of RoutedFeedForward is 'small_twins'; give SmallTwins",
    ),
    (
      lambda: started(PLAN, cache_fill=decoding.CatchUp()),
      'the layer plan RoutedFeedForward leaves some out',
    ),
  ],
)
def test_what_makes_no_sense_is_refused(make, message):
  with pytest.raises(ValueError, match=message):
    make()


def test_a_class_is_no_object():
  with pytest.raises(TypeError, match='the class TokenRouter'):
    started(dataclasses.replace(PLAN, router=type(PLAN.router)))
