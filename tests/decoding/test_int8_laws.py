"""The laws over a model in 8 bits: the table of policies once more.

What is exact, lossless or full depth is so relative to that model, whose own
teacher-forced reference (`model.decode_with_layer_mask` on parameters in 8
bits) every decode is held against. Tokens, exits and all that is computed in
the same shapes agree as in float. What is computed in other shapes differs in a
float's last digits, which now and then move a state to the next of its 255
steps: numbers then differ by such a step, and are compared to within one.
"""

import importlib.util
import sys
import types

import jax
import pytest
from cases import policy_cases
from decoding import test_policy_laws as float_laws

from calm_jax import quantisation

# Long checks, and twins of cheaper ones: for `scripts/test.sh --all`.
pytestmark = pytest.mark.slow


def _copy(module: types.ModuleType, name: str) -> types.ModuleType:
  """Returns a module run once more, with state of its own."""
  spec = importlib.util.spec_from_file_location(name, module.__file__)
  copy = importlib.util.module_from_spec(spec)
  sys.modules[name] = copy
  spec.loader.exec_module(copy)
  return copy


cases = _copy(policy_cases, 'policy_cases_int8')
cases.WEIGHTS = quantisation.Int8Weights(encoder=True)
laws = _copy(float_laws, 'policy_laws_int8')
laws.cases = cases
laws.ROUNDING = 0.05

NAME = 'softmax_margin'
LAWS = ('7',)
LONG = (
  'margin_pruned',
  'full',
  'state_similarity_per_row',
  'classifier',
  'gate_quantile_per_row',
  'maximum_deferred_fill',
  'margin_nucleus_exact',
  'margin_streamed',
  'margin_first_tokens',
  'beams_margin_per_row_exact',
  'margin_prefix_suppressed',
  'budget_margin_per_row',
  'skip_feed_forward',
)


def _marks(name, law):
  fast = name == NAME and law in LAWS
  return [] if fast else [pytest.mark.slow]


@pytest.fixture(autouse=True)
def _highest_precision():
  with jax.default_matmul_precision('highest'):
    yield


@pytest.mark.parametrize(
  ('name', 'law'),
  [
    pytest.param(name, law, marks=_marks(name, law))
    for name in (NAME, *LONG)
    for law in float_laws.LAWS
  ],
)
def test_law(name, law):
  _, check = laws._check_of(law, name)
  check(name)


def test_it_is_another_model():
  """The twin does not decode in float unnoticed."""
  bound = cases.bound()
  dtypes = {leaf.dtype.name for leaf in jax.tree.leaves(bound.params)}
  assert 'int8' in dtypes
  scores = cases.decode('full').scores
  assert abs(scores - policy_cases.decode('full').scores).max() > 1e-3
