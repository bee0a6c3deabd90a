"""Types are part of a tree's structure, so no program serves two of them."""

import dataclasses
import itertools
import pathlib

import jax
import numpy as np
import pytest

from calm_jax import decoding, exits, pytrees
from calm_jax.draft_heads import DraftHead

PACKAGE = pathlib.Path(pytrees.__file__).parent


def _make(register, name, fields=('value',), static=()):
  specs = [(field, object) for field in fields]
  specs += [
    (field, object, dataclasses.field(metadata=dict(static=True)))
    for field in static
  ]
  return register(dataclasses.make_dataclass(name, specs, frozen=True))


@pytest.mark.parametrize(
  ('fields', 'static'),
  [((), ()), (('value',), ()), (('value',), ('kind',)), ((), ('kind',))],
)
def test_like_fields_of_two_types_are_two_structures(fields, static):
  first, second = (
    _make(pytrees.register_pytree, name, fields, static)
    for name in ('First', 'Second')
  )
  arguments = dict.fromkeys((*fields, *static), 1)
  structures = [jax.tree.structure(c(**arguments)) for c in (first, second)]
  assert structures[0] != structures[1]
  assert structures[0] == jax.tree.structure(first(**arguments))


@pytest.mark.slow
def test_jitted_functions_never_confuse_types():
  """With JAX's own registration about one pair in sixty does.

  Their structures, which JAX finds compiled functions by, differ always; that
  is the test above.
  """
  for _ in range(600):
    first, second = (
      _make(pytrees.register_pytree, name, ()) for name in ('First', 'Second')
    )
    which = jax.jit(lambda tree, first=first: 1 if type(tree) is first else 2)
    assert (int(which(first())), int(which(second()))) == (1, 2)


def test_parts_of_policies_differ_in_structure():
  structures = {
    name: jax.tree.structure(policy)
    for name, policy in {
      **{
        type(measure).__name__: exits.ConfidenceExit(measure, 0.5)
        for measure in (
          exits.SoftmaxMargin(),
          exits.SoftmaxMaximum(),
          exits.StateSimilarity(),
        )
      },
      'constant': exits.ConstantThreshold(0.5),
      'never': exits.NeverExit(),
      'fixed': exits.FixedExit(1),
      'scheduled': exits.ScheduledExit(1),
      'oracle': exits.OracleExit(1),
      'projected': decoding.ProjectExitState(),
      'deferred': decoding.DeferredExitState(),
      'exact': decoding.CatchUp(),
      'verified': decoding.VerifyEvery(4),
      'drafted ahead': decoding.DraftAhead(
        DraftHead(*np.ones((3, 1))), decoding.VerifyEvery(4)
      ),
      'verified later': decoding.VerifyEvery(8),
      'every layer': decoding.EveryLayer(),
      'first tokens': decoding.FirstTokens(8),
      'more first tokens': decoding.FirstTokens(9),
      'full vocabulary': decoding.FullVocabulary(),
      'pruned vocabulary': decoding.PrunedVocabulary(),
      'pruned, full final': decoding.PrunedVocabulary(final='full'),
      'greedy': decoding.Greedy(),
      'temperature': decoding.Temperature(1.0),
    }.items()
  }
  for first, second in itertools.combinations(structures, 2):
    assert structures[first] != structures[second], (first, second)


def test_static_fields_belong_to_the_structure_and_numbers_do_not():
  tree = _make(pytrees.register_pytree, 'Tree', ('value',), ('kind',))
  structure = jax.tree.structure(tree(1.0, 'a'))
  assert structure == jax.tree.structure(tree(2.0, 'a'))
  assert structure != jax.tree.structure(tree(1.0, 'b'))
  assert jax.tree.map(lambda leaf: leaf + 1, tree(1.0, 'a')) == tree(2.0, 'a')
  ((path, leaf),) = jax.tree_util.tree_leaves_with_path(tree(1.0, 'a'))
  assert (jax.tree_util.keystr(path), leaf) == ('.value', 1.0)


def test_nothing_here_is_registered_the_other_way():
  tests = pathlib.Path(__file__).parent
  for path in [*PACKAGE.rglob('*.py'), *tests.rglob('*.py')]:
    if path.name not in ('pytrees.py', 'test_pytrees.py'):
      assert 'register_dataclass' not in path.read_text(encoding='utf-8'), path
