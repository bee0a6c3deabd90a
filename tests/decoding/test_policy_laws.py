"""The laws every policy keeps: one list of policies, one battery.

The laws are those of the project's architecture (section 4); the policies are
in `policy_cases`. Where a law does not apply, `EXCEPTIONS` gives the reason and
`law_N__<policy>` asserts what holds instead. `test_print_the_table` shows it
all. Everything is float32 at highest matmul precision.
"""

import contextlib
import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import policy_cases as cases

from calm_jax import decoding, exits, model, quantisation
from calm_jax.decoding import token_loop

# How far numbers may lie apart that were computed in other shapes, beyond a
# float's last digits: `test_int8_laws` says why there is that in 8 bits.
ROUNDING = 0.0
EXCEPTIONS = {
  (2, 'fixed_exit'): 'no threshold; the same rule at L is the full model',
  (2, 'scheduled_exit'): 'no threshold; the same rule at L is the full model',
  (2, 'oracle'): 'no threshold; an early exit always says its target',
  (
    2,
    'patience_per_row',
  ): 'no threshold; patience without end is the full model',
  (2, 'patience_per_row_exact'): 'no threshold; patience without end is it',
  (2, 'margin_pruned'): 'says candidates only; with all kept it is unpruned',
  (2, 'margin_adapted_pruned'): 'says candidates only, as margin_pruned does',
  (2, 'margin_first_tokens'): 'says those alone; with all of them it is',
  (2, 'budget_margin_per_row'): 'capped; with a budget for all layers it is',
  (2, 'budget_similarity'): 'capped; with a budget for all layers it is',
  (2, 'skip_feed_forward'): 'not the full model; with nothing skipped it is',
  (2, 'keep_layers_margin'): 'not the full model; with all layers kept it is',
  (2, 'keep_layers_margin_exact'): 'likewise',
  (2, 'pruned_source_margin'): 'reads a part; with all kept it is unpruned',
  (
    2,
    'pruned_context_margin',
  ): 'drops some; with none dropped it is unpruned',
  (2, 'skip_decode'): 'not the full model; with no depth below L it is',
  (2, 'twins'): 'not the full model; with own blocks everywhere it is',
  (3, 'margin_first_exit_fill'): 'its K/V are of the state after layer 1',
  (3, 'margin_pruned'): 'all is over the candidates of the first check',
  (3, 'margin_pruned_full_final'): 'so are its confidences, not its tokens',
  (3, 'margin_adapted_pruned'): 'all is over the candidates of its first check',
  (3, 'margin_first_tokens'): 'all is over the first tokens',
  (3, 'margin_int8_checks'): 'its confidences are in 8 bits, not its tokens',
  (4, 'margin_first_exit_fill'): 'its K/V are of the state after layer 1',
  (4, 'beams_margin_per_row'): 'its cache is that of the live hypotheses',
  (4, 'pruned_context_margin'): 'its K/V lie in places that are reused',
  (4, 'maximum_deferred_fill'): 'K/V that nobody reads are not made',
  **{
    (4, name): 'its K/V are of no exit state: law 10'
    for name in cases.NAMES
    if name.endswith('_exact')
  },
  (4, 'free_two_exits'): 'its K/V are of no exit state: law 10',
  (2, 'budget_similarity_exact'): 'capped; with a budget for all layers it is',
  **{
    (9, name): 'draws nothing; a key changes nothing'
    for name in cases.NAMES
    if not name.startswith('margin_nucleus')
  },
  (6, 'keep_layers_margin'): 'once per check of a layer that is kept',
  (6, 'keep_layers_margin_exact'): 'once per check of a layer that is kept',
  (6, 'skip_decode'): 'once in the program of each depth',
  (6, 'margin_first_tokens'): 'never multiplies all of it',
  (6, 'margin_streamed'): 'reads blocks; a loop over blocks counts as one',
}


@pytest.fixture(autouse=True)
def _highest_precision():
  with jax.default_matmul_precision('highest'):
    yield


def same(one, other, *, rows=slice(None), atol=0.0):
  """Asserts that results agree in some rows: to the bit, if not told else."""
  leaves = jax.tree.leaves_with_path(one)
  for (path, leaf), expected in zip(
    leaves, jax.tree.leaves(other), strict=True
  ):
    np.testing.assert_allclose(
      leaf[rows],
      expected[rows],
      rtol=0.0,
      atol=atol,
      err_msg=jax.tree_util.keystr(path),
    )


def same_kv(array, reference):
  """Asserts that keys or values agree.

  In 8 bits nearly all of them to a float's last digits, and the rest to within
  a step.
  """
  np.testing.assert_allclose(array, reference, atol=1e-4 + ROUNDING)
  apart = ~np.isclose(array, reference, rtol=1e-7, atol=1e-4)
  assert apart.mean() <= (0.1 if ROUNDING else 0.0)


def law_1a(name):
  """Same shapes, other batch mates: the same bits.

  Of eager fills; how many positions catch up together is up to all rows, so
  exact ones agree as they do in other shapes (1b).
  """
  exact = cases.is_exact(name)
  agree = functools.partial(same, atol=1e-5) if exact else same
  reference = cases.decode(name)
  others = np.random.default_rng(1).integers(2, cases.V, (cases.B, cases.S))
  for kept in ([0, 1], [2, 3], [1]):
    source = others.copy()
    source[kept] = cases.inputs()[kept]
    agree(cases.run(cases.case(name), source=source), reference, rows=kept)


def law_1b(name):
  """Alone, more padding, a longer buffer (and the unrolled loop: law 7)."""
  together = cases.decode(name)
  for row in range(cases.B):
    alone = cases.decode_alone(name, row)
    length = together.lengths[row]
    for field in ('tokens', 'exit_layers'):
      np.testing.assert_array_equal(
        getattr(alone, field)[0, :length],
        getattr(together, field)[row, :length],
        err_msg=f'{field} of row {row}',
      )
    np.testing.assert_allclose(
      alone.confidences[0, :length],
      together.confidences[row, :length],
      atol=1e-5 + ROUNDING,
    )
    if together.tokens[row, length - 1] == cases.EOS_ID:
      assert alone.lengths[0] == length
      np.testing.assert_allclose(
        alone.scores[0], together.scores[row], atol=1e-4 + ROUNDING
      )


def law_2(name):
  """A threshold of 1 never exits and says the full model's tokens."""
  case = dataclasses.replace(cases.case(name), threshold=1.0)
  result = cases.run(case)
  full = dataclasses.replace(
    cases.case('full'), sampler=case.sampler, options=case.options
  )
  expected = cases.run(full)
  np.testing.assert_array_equal(result.tokens, expected.tokens)
  np.testing.assert_array_equal(result.exit_layers, expected.exit_layers)
  assert set(np.unique(result.exit_layers)) <= {-1, cases.L}


def law_2__fixed_exit(name):
  case = dataclasses.replace(
    cases.case(name),
    policy=lambda rows, _: decoding.ComputePolicy(
      exit_rule=exits.FixedExit(np.full((cases.B,), cases.L))
    ),
  )
  same_tokens_as_full(cases.run(case))


def law_2__scheduled_exit(name):
  case = dataclasses.replace(
    cases.case(name),
    policy=lambda rows, _: decoding.ComputePolicy(
      exit_rule=exits.ScheduledExit(np.full((cases.LONGER_T,), cases.L))
    ),
  )
  same_tokens_as_full(cases.run(case))


def law_2__oracle(name):
  result = cases.decode(name)
  early = (result.exit_layers > 0) & (result.exit_layers < cases.L)
  targets = cases.oracle_targets()[:, : cases.T]
  assert early.any()
  np.testing.assert_array_equal(result.tokens[early], targets[early])


def law_2__patience_per_row(name):
  case = dataclasses.replace(
    cases.case(name),
    policy=lambda rows, _: decoding.ComputePolicy(
      exit_rule=exits.PatienceExit(np.full((cases.B,), cases.L))
    ),
  )
  same_tokens_as_full(cases.run(case))


def law_2__patience_per_row_exact(name):
  law_2__patience_per_row(name)


def law_2__skip_feed_forward(name):
  case = dataclasses.replace(
    cases.case(name),
    policy=lambda rows, _: decoding.ComputePolicy(
      layer_plan=cases.SkipFeedForward(first_position=cases.T)
    ),
  )
  same_tokens_as_full(cases.run(case))


def law_2__keep_layers_margin(name):
  plan = decoding.KeepLayers(cases.L)
  policy = decoding.ComputePolicy(layer_plan=plan)
  case = dataclasses.replace(cases.case(name), policy=lambda *_: policy)
  same(cases.run(case), cases.decode('full'))


def law_2__keep_layers_margin_exact(name):
  law_2__keep_layers_margin(name)


def law_2__skip_decode(name):
  policy = decoding.ComputePolicy(layer_plan=decoding.SkipDecode(4, 4))
  case = dataclasses.replace(cases.case(name), policy=lambda *_: policy)
  same(cases.run(case), cases.decode('full'))


def law_2__twins(name):
  own = dataclasses.replace(cases.TWINS, choices=(1,) * cases.L)
  policy = decoding.ComputePolicy(layer_plan=own)
  case = dataclasses.replace(cases.case(name), policy=lambda *_: policy)
  same(cases.run(case), cases.decode('full'))


def law_2__pruned_source_margin(name):
  """With room for all and no gate closed it is unpruned, to the bit."""
  plan = dataclasses.replace(
    cases.SOURCE_PRUNED, keep=cases.S + 3, beta_shift=np.inf
  )
  unpruned = cases.case('softmax_margin')

  def policy(rows, threshold):
    policy = unpruned.policy(rows, threshold)
    return dataclasses.replace(policy, source_plan=plan)

  all_kept = dataclasses.replace(unpruned, policy=policy)
  same(cases.run(all_kept), cases.decode('softmax_margin'))
  same_tokens_as_full(cases.run(dataclasses.replace(all_kept, threshold=1.0)))
  at_one = cases.run(dataclasses.replace(cases.case(name), threshold=1.0))
  assert set(np.unique(at_one.exit_layers)) <= {-1, cases.L}
  assert (at_one.tokens != cases.decode('full').tokens).any()


def law_2__pruned_context_margin(name):
  """With room for all and nothing dropped it is unpruned, to the bit."""
  plan = dataclasses.replace(
    cases.CONTEXT_PRUNED, slots=None, beta_shift=np.inf
  )
  unpruned = cases.case('softmax_margin')

  def policy(rows, threshold):
    policy = unpruned.policy(rows, threshold)
    return dataclasses.replace(policy, layer_plan=plan)

  all_kept = cases.run(dataclasses.replace(unpruned, policy=policy))
  expected = cases.decode('softmax_margin')
  assert (all_kept.work.extra_products > 0).any()
  work = dataclasses.replace(
    all_kept.work, extra_products=expected.work.extra_products
  )
  same(dataclasses.replace(all_kept, work=work), expected)
  at_one = cases.run(dataclasses.replace(cases.case(name), threshold=1.0))
  assert set(np.unique(at_one.exit_layers)) <= {-1, cases.L}
  assert (at_one.tokens != cases.decode('full').tokens).any()


def law_2__budget_margin_per_row(name):
  """Full depth needs a budget for it; a threshold of 1 keeps within less."""
  case = dataclasses.replace(cases.case(name), threshold=1.0)
  budget = case.policy(np.arange(cases.B), 1.0).exit_rule
  capped = cases.run(case)
  sums = np.maximum(capped.exit_layers, 0).sum(axis=1)
  assert (sums <= budget.per_request).all() and (sums < cases.L * cases.T).all()
  enough = dataclasses.replace(
    budget,
    per_request=0 * budget.per_request + cases.L * cases.LONGER_T,
    per_token=np.full((cases.B,), cases.L),
  )
  policy = decoding.ComputePolicy(exit_rule=enough)
  same_tokens_as_full(
    cases.run(dataclasses.replace(case, policy=lambda rows, _: policy))
  )


def law_2__budget_similarity(name):
  law_2__budget_margin_per_row(name)


def law_2__budget_similarity_exact(name):
  law_2__budget_margin_per_row(name)


def law_2__margin_pruned(name):
  num_blocks = -(-cases.V // cases.PRUNED.block_size)
  over_all_is_unpruned(
    name, dataclasses.replace(cases.PRUNED, num_blocks=num_blocks)
  )


def law_2__margin_adapted_pruned(name):
  num_blocks = -(-cases.V // cases.PRUNED.block_size)
  pruned = dataclasses.replace(cases.PRUNED, num_blocks=num_blocks)
  over_all_is_unpruned(
    name,
    dataclasses.replace(cases.ADAPTED, inner=pruned),
    unpruned='margin_adapted',
  )


def law_2__margin_first_tokens(name):
  over_all_is_unpruned(name, decoding.FirstTokens(cases.V))


def over_all_is_unpruned(name, readout, unpruned='softmax_margin'):
  """A readout of candidates that are all of V is none of candidates."""
  expected, unpruned = cases.decode(unpruned), cases.case(unpruned)

  def policy(rows, threshold):
    policy = unpruned.policy(rows, threshold)
    return dataclasses.replace(policy, readout=readout)

  all_kept = dataclasses.replace(unpruned, policy=policy)
  same_tokens_as_full(cases.run(dataclasses.replace(all_kept, threshold=1.0)))
  result = cases.run(all_kept)
  for field in ('tokens', 'exit_layers', 'lengths'):
    np.testing.assert_array_equal(
      getattr(result, field), getattr(expected, field)
    )
  for field in ('confidences', 'rejected_confidences', 'scores'):
    np.testing.assert_allclose(
      getattr(result, field), getattr(expected, field), atol=1e-5 + ROUNDING
    )
  never = cases.run(dataclasses.replace(cases.case(name), threshold=1.0))
  assert set(np.unique(never.exit_layers)) <= {-1, cases.L}


def same_tokens_as_full(result):
  np.testing.assert_array_equal(result.tokens, cases.decode('full').tokens)


def law_3(name):
  """A decode, on a poisoned cache, equals the masked parallel decoder."""
  result, _ = cases.decode_poisoned(name)
  same(result, cases.decode(name))
  agrees_with_logits(name, cases.masked_reference(name))


def law_3__margin_first_exit_fill(name):
  result, _ = cases.decode_poisoned(name)
  same(result, cases.decode(name))
  agrees_with_logits(name, cases.parallel_reference(name, first_exit=True)[1])
  with pytest.raises(AssertionError):
    agrees_with_logits(name, cases.masked_reference(name))


def law_3__margin_pruned(name):
  result, _ = cases.decode_poisoned(name)
  same(result, cases.decode(name))
  logits = cases.masked_reference(name)
  agrees_with_logits(name, over_candidates(name, logits))
  with pytest.raises(AssertionError):
    agrees_with_logits(name, logits)


def law_3__margin_adapted_pruned(name):
  law_3__margin_pruned(name)


def law_3__margin_pruned_full_final(name):
  result, _ = cases.decode_poisoned(name)
  same(result, cases.decode(name))
  logits = cases.masked_reference(name)
  seen = over_candidates(name, logits)
  agrees_with_logits(name, logits, seen=seen)
  with pytest.raises(AssertionError):
    agrees_with_logits(name, logits)


def law_3__margin_first_tokens(name):
  result, _ = cases.decode_poisoned(name)
  same(result, cases.decode(name))
  logits = cases.masked_reference(name)
  first = np.arange(cases.V) < cases.FIRST.count
  agrees_with_logits(name, np.where(first, logits, -np.inf))
  with pytest.raises(AssertionError):
    agrees_with_logits(name, logits)


def law_3__margin_int8_checks(name):
  result, _ = cases.decode_poisoned(name)
  same(result, cases.decode(name))
  logits = cases.masked_reference(name)
  only_output = quantisation.Int8Weights(keep=(r'.*/layers_\d+/.*',))
  seen = cases.masked_reference(name, weights=only_output)
  agrees_with_logits(name, logits, seen=seen)
  with pytest.raises(AssertionError):
    agrees_with_logits(name, logits)


def over_candidates(name, logits):
  """Returns logits with -inf outside the best blocks of the first check."""
  size = cases.PRUNED.block_size
  first = cases.masked_reference(name, exit_layer=1)
  starts = np.arange(0, cases.V, size)
  maxima = np.maximum.reduceat(first, starts, axis=-1)
  least = np.sort(maxima, axis=-1)[..., -cases.PRUNED.num_blocks, None]
  kept = np.repeat(maxima >= least, size, axis=-1)[..., : cases.V]
  assert (kept.sum(axis=-1) <= cases.PRUNED.num_blocks * size).all()
  return np.where(kept, logits, -np.inf)


def agrees_with_logits(name, logits, *, seen=None):
  """Asserts tokens, scores and softmax confidences of a decode on logits.

  Confidences are those of the logits `seen`, if other ones.
  """
  result, case = cases.decode(name), cases.case(name)
  decoded = result.exit_layers > 0
  if isinstance(case.sampler, decoding.Greedy):
    best = logits.argmax(axis=-1)
    np.testing.assert_array_equal(best[decoded], result.tokens[decoded])
  sampled = jax.vmap(case.sampler.check(cases.V).transform)(logits)
  log_probabilities = np.take_along_axis(
    np.asarray(jax.nn.log_softmax(sampled)), result.tokens[..., None], axis=-1
  )[..., 0]
  scores = np.where(decoded, log_probabilities, 0.0).sum(axis=-1)
  np.testing.assert_allclose(result.scores, scores, atol=1e-4 + ROUNDING)
  rule = case.policy(np.arange(cases.B), case.threshold).exit_rule
  measure = getattr(rule, 'measure', None)
  seen = logits if seen is None else seen
  top = np.sort(np.asarray(jax.nn.softmax(seen)), axis=-1)[..., -2:]
  if isinstance(measure, exits.SoftmaxMargin):
    confidences = top[..., 1] - top[..., 0]
  elif isinstance(measure, exits.SoftmaxMaximum):
    confidences = top[..., 1]
  else:
    return
  looks = np.array([bool(rule.looks(layer)) for layer in range(cases.L)])
  looked = result.is_chosen & looks[result.exit_layers - 1]
  np.testing.assert_allclose(
    result.confidences[looked], confidences[looked], atol=1e-5 + ROUNDING
  )
  assert np.isnan(result.confidences[result.is_chosen & ~looked]).all()


def law_4(name):
  """K/V of every layer, run or skipped, are those of the row's exit state."""
  has_kv_of(name, cases.parallel_reference(name)[0])


def law_4__margin_first_exit_fill(name):
  has_kv_of(name, cases.parallel_reference(name, first_exit=True)[0])
  with pytest.raises(AssertionError):
    has_kv_of(name, cases.parallel_reference(name)[0])


def law_4__beams_margin_per_row(name):
  kv, expected, decoded = cases.live_reference(name)
  where = np.broadcast_to(decoded[:, None, None, :, None], kv[0].shape)
  for array, reference in zip(kv, expected, strict=True):
    same_kv(array[where], reference[where])
    assert (array[~where] == 1e3).all(), 'wrote what nobody reads'


def law_4__pruned_context_margin(name):
  """Each place holds the K/V of the position that it was last given to."""
  state = decoding.advance(cases.poison(cases.start(cases.case(name))))
  use = decoding.context_use(state)
  assert use.most.max() == cases.CONTEXT_PRUNED.slots < cases.T
  assert not use.overflow.any(), 'no dense reference then'
  held = np.asarray(state.carry.policy.layer_plan.positions)
  expected = cases.context_keys_and_values(name)
  cache = state.carry.cache
  ever = (np.asarray(cache.self_key) != 1e3).all(axis=(2, 4))
  assert ever[held >= 0].all() and not ever.all()
  assert (held < 0)[ever].any(), 'nothing was ever dropped'
  for array, reference in zip(
    (cache.self_key, cache.self_value), expected, strict=True
  ):
    places = np.maximum(held, 0)[:, :, None, :, None]
    wanted = np.take_along_axis(np.asarray(reference), places, axis=3)
    where = np.broadcast_to((held >= 0)[:, :, None, :, None], wanted.shape)
    same_kv(np.asarray(array)[where], wanted[where])
    never = np.broadcast_to(~ever[:, :, None, :, None], wanted.shape)
    assert (np.asarray(array)[never] == 1e3).all(), 'wrote what nobody reads'


def law_4__maximum_deferred_fill(name):
  """Layers have K/V up to the last position that runs them, and no further."""
  mask, _ = cases.layer_masks(name)
  run = np.moveaxis(mask, 2, 1)
  read = np.flip(np.logical_or.accumulate(np.flip(run, -1), -1), -1)
  assert (read & ~run).any(), 'no layer was ever filled late'
  has_kv_of(name, cases.parallel_reference(name)[0], read)


def law_4__exact(name):
  if name != 'beams_margin_per_row_exact':
    with pytest.raises(AssertionError):
      has_kv_of(name, cases.parallel_reference(name)[0])
  law_10(name)


def has_kv_of(name, expected, written=None):
  """Asserts keys and values where `written`, and nothing anywhere else.

  Args:
    name: of the case.
    expected: keys and values, [B, L, H, T, K] each.
    written: bool [B, L, T]; every layer of decoded positions if None.
  """
  _, kv = cases.decode_poisoned(name)
  if written is None:
    decoded = cases.decode(name).exit_layers > 0
    # Law 13: what a plan leaves out for good is neither made nor read.
    written = decoded[:, None] & cases.planned_layers(name).T
  where = np.broadcast_to(written[:, :, None, :, None], kv[0].shape)
  for array, reference in zip(kv, expected, strict=True):
    same_kv(array[where], reference[where])
    assert (array[~where] == 1e3).all(), 'wrote what nobody reads'


def law_5(name):
  """New numbers and a second, equal decoder compile nothing."""
  case = cases.case(name)
  cases.decode(name)
  twin = model.T5Config(**dataclasses.asdict(cases.CONFIG))
  assert model.as_layered_decoder(twin) == cases.decoder()
  with counted_compilations() as events:
    changed = case
    if case.threshold is not None:
      changed = dataclasses.replace(case, threshold=0.123)
    started = cases.start(changed)
    before = jax.tree.map(jnp.shape, started.carry)
    dtypes = jax.tree.map(lambda leaf: leaf.dtype, started.carry)
    advanced = decoding.advance(started, 3)
  assert not events, events
  assert jax.tree.map(jnp.shape, advanced.carry) == before
  assert jax.tree.map(lambda leaf: leaf.dtype, advanced.carry) == dtypes
  # In pieces or in one go, the same decode.
  pieces = decoding.advance(decoding.advance(cases.start(case), 3))
  same(cases.host(decoding.finish(pieces)), cases.decode(name))


_COMPILATIONS = []
jax.monitoring.register_event_duration_secs_listener(
  lambda event, _, **__: (
    _COMPILATIONS.append(event)
    if event.endswith('backend_compile_duration')
    else None
  )
)


@contextlib.contextmanager
def counted_compilations():
  """Yields the list of XLA compilations that happen inside."""
  _COMPILATIONS.clear()
  yield _COMPILATIONS


def law_6(name):
  """The output matrix is multiplied once, or once per check.

  Pruned, at the first check alone; once more where exit states are read again.
  """
  state = cases.start(cases.case(name))
  rule, readout = state.policy.exit_rule, state.policy.readout
  again = rule.needs_logits and readout.reads_exit_states
  # One is in the body of the loop over layers.
  assert output_matmuls(state) == 1 + again
  state = cases.start_alone(name, 0)
  checks = [
    layer
    for layer in range(cases.L)
    # The end of the last layer is a check whatever the rule says.
    if rule.looks(layer) or layer == cases.L - 1
  ]
  pruned = isinstance(cases.readout_of(name)[0], decoding.PrunedVocabulary)
  expected = len(checks) if rule.needs_logits and not pruned else 1
  assert output_matmuls(state) == expected + again


def law_6__keep_layers_margin(name):
  kept = cases.planned_layers(name)[0].sum()
  assert output_matmuls(cases.start(cases.case(name))) == 1
  assert output_matmuls(cases.start_alone(name, 0)) == kept < cases.L


def law_6__keep_layers_margin_exact(name):
  law_6__keep_layers_margin(name)


def law_6__skip_decode(name):
  depths = len(set(cases.SKIP_DECODE.depths(cases.T)))
  assert output_matmuls(cases.start(cases.case(name))) == depths
  assert output_matmuls(cases.start_alone(name, 0)) == depths


def law_6__margin_first_tokens(name):
  reads_parts(name, cases.FIRST.count)


def law_6__margin_streamed(name):
  reads_parts(name, cases.STREAMED.block_size)


def reads_parts(name, size):
  """Every check multiplies so many rows, and none all of them."""
  state = cases.start(cases.case(name))
  assert output_matmuls(state) == 0, 'holds all of [B, V]'
  assert output_matmuls(state, width=size) == 1
  state = cases.start_alone(name, 0)
  assert output_matmuls(state) == 0
  assert output_matmuls(state, width=size) == cases.L


def output_matmuls(state, *, width=cases.V):
  """Counts matmuls with `width` output rows in the lowered token loop."""
  text = token_loop.lower_advance(state).as_text()
  bodies = dict(
    re.findall(r'func\.func \w+ @([\w.]+)\((.*?)\n  }', text, re.DOTALL)
  )

  def count(function):
    total = 0
    for line in bodies[function].splitlines():
      if 'dot_general' in line and re.search(rf'[<x]{width}x', line):
        total += 1
      if called := re.search(r'\bcall @([\w.]+)\(', line):
        total += count(called[1])
    return total

  return count('main')


def law_7(name):
  """The unrolled loop agrees with the reference: asserted by law 1b."""
  depth_loop = cases.start_alone(name, 0).bound.depth_loop
  assert depth_loop == decoding.UnrolledDepthLoop()
  law_1b(name)


def law_8(name):
  """Exit layers lie in 1..L where decoded, -1 elsewhere; and what follows."""
  result = cases.decode(name)
  decoded = np.arange(cases.T) < result.lengths[:, None]
  layers = result.exit_layers
  assert ((layers >= 1) & (layers <= cases.L))[decoded].all()
  assert (layers[~decoded] == -1).all()
  assert (result.tokens[~decoded] == 0).all()
  assert np.isnan(result.confidences[~decoded]).all()
  # What it went on at was seen before the exit, and below any that it met.
  rejected = result.rejected_confidences
  assert (rejected[~decoded | (layers == 1)] == -np.inf).all()
  seen = result.confidences[decoded]
  seen = seen[~np.isnan(seen)]
  assert ((seen >= 0.0) & (seen <= 1.0)).all()
  assert (layers[decoded & ~result.is_chosen] == cases.L).all()
  is_eos = result.tokens == cases.EOS_ID
  for row, length in enumerate(result.lengths):
    assert length == cases.T or is_eos[row, length - 1]
    assert not is_eos[row, : length - 1].any()


def law_9(name):
  """The noise follows the request's key, not its slot, batch or shard."""
  case, keys = cases.case(name), cases.request_keys()
  reference = cases.decode(name)
  same(cases.run(case, rng=keys), reference)
  same(cases.run(case, rng=jax.random.key_data(keys)), reference)
  order = np.array([2, 0, 3, 1])
  shuffled = cases.run(case, source=cases.inputs()[order], rng=keys[order])
  same(shuffled, jax.tree.map(lambda array: array[order], reference))
  other = cases.run(case, rng=jax.random.key(12))
  assert (other.tokens != reference.tokens).any()
  law_1b(name)  # alone, with its own key


def law_9__greedy(name):
  same(cases.run(cases.case(name), rng=None), cases.decode(name))


def law_10(name):
  """K/V are the full model's wherever a layer has run, and nowhere else.

  Of exact ones; of others the alternative holds: their twins' are.
  """
  case, rows = cases.case(name), np.arange(cases.B)
  policy = case.policy(rows, 1.0)
  plan = policy.layer_plan
  if not plan.same_everywhere:
    with pytest.raises(ValueError, match=f'layer plan {type(plan).__name__}'):
      cases.start(cases.exact(case))
    return
  exact = isinstance(policy.cache_fill, decoding.CatchUp)
  assert exact == cases.is_exact(name)
  if not exact:
    case = cases.exact(case)
  state = decoding.advance(cases.poison(cases.start(case)))
  carry, cache = state.carry, state.carry.cache
  ran = np.asarray(carry.policy.cache_fill.ran)
  where = np.arange(cases.T) < ran[..., None]
  where = np.broadcast_to(where[:, :, None, :, None], cache.self_key.shape)
  planned = cases.planned_layers(name)
  expected, logits = cases.full_reference(state, planned)
  exit_layers = np.asarray(carry.exit_layers)
  for array, reference in zip(
    (cache.self_key, cache.self_value), expected, strict=True
  ):
    array = np.asarray(array)
    same_kv(array[where], reference[where])
    assert (array[~where] == 1e3).all(), 'wrote what nobody reads'
  np.testing.assert_array_equal(ran, run_up_to(exit_layers) * planned[0])
  # What ran all layers says what the full model says after the same tokens.
  plain = isinstance(case.sampler, decoding.Greedy)
  plain &= policy.readout.chooses_from_all and not case.options(rows)
  if plain:
    full = exit_layers == cases.L
    tokens = np.asarray(carry.tokens)
    np.testing.assert_array_equal(tokens[full], logits.argmax(axis=-1)[full])


def run_up_to(exit_layers):
  """Returns the positions up to the last that ran each layer, [R, L]."""
  deeper = exit_layers[:, None] > np.arange(cases.L)[:, None]
  last = deeper.shape[-1] - np.argmax(deeper[..., ::-1], axis=-1)
  return np.where(deeper.any(axis=-1), last, 0)


def law_12(name):
  """The ledger's sums are those of what was run."""
  result, case = cases.decode(name), cases.case(name)
  policy = case.policy(np.arange(cases.B), case.threshold)
  work, decoded = result.work, result.exit_layers > 0
  mask, ffn_mask = cases.layer_masks(name)
  np.testing.assert_array_equal(work.attention, mask.sum(axis=-1))
  np.testing.assert_array_equal(
    work.feed_forward, (mask & ffn_mask).sum(axis=-1)
  )
  for column in dataclasses.fields(work):
    assert (getattr(work, column.name)[~decoded] == 0).all(), column.name
  rule = policy.exit_rule
  looks = [rule.needs_logits and bool(rule.looks(n)) for n in range(cases.L)]
  looks[-1] = rule.needs_logits
  checks = (mask & np.array(looks)).sum(axis=-1)
  checks += decoded * (not rule.needs_logits)
  if rule.needs_logits and policy.readout.reads_exit_states:
    checks += decoded
  np.testing.assert_array_equal(work.checks, checks)
  readout, adapters = cases.readout_of(name)
  first = isinstance(readout, decoding.FirstTokens)
  read_out = work.checks * (cases.FIRST.count if first else cases.V)
  if not isinstance(readout, decoding.PrunedVocabulary):
    np.testing.assert_array_equal(work.outputs, read_out)
  # States of early layers alone are adapted, wherever they are read.
  early = (mask & np.array(looks))[..., :-1].sum(axis=-1)
  if not rule.needs_logits:
    early += decoded & (result.exit_layers < cases.L)
  products = 0 if adapters is None else adapters.products
  where, twins = cases.twin_mask(name)
  small = 0 if twins is None else 3 * twins.hidden_units * where.sum(axis=-1)
  # Gates of the context see a state in every layer, run or left over.
  plan = decoded * cases.L * policy.layer_plan.products
  np.testing.assert_array_equal(
    work.extra_products, products * early + small + plan
  )
  planned = cases.planned_layers(name)
  ran = (run_up_to(result.exit_layers) * planned[0]).sum()
  late = isinstance(
    policy.cache_fill, decoding.CatchUp | decoding.DeferredExitState
  )
  filled = decoded * planned.sum(axis=-1)
  made = ran if late else filled.sum()
  assert work.projections.sum() == made
  caught_up = ran - work.attention.sum() if cases.is_exact(name) else 0
  assert work.caught_up.sum() == caught_up
  np.testing.assert_array_equal(work.fills, work.attention if late else filled)


LAWS = {
  '1a': law_1a,
  '1b': law_1b,
  '2': law_2,
  '3': law_3,
  '4': law_4,
  '5': law_5,
  '6': law_6,
  '7': law_7,
  '8': law_8,
  '9': law_9,
  '10': law_10,
  '12': law_12,
}


def _check_of(law, name):
  """Returns the reason why a law does not apply, if so, and what to check."""
  number = int(law.rstrip('ab'))
  if (number, name) not in EXCEPTIONS:
    return None, LAWS[law]
  kind = 'greedy' if number == 9 else name
  kind = 'exact' if number == 4 and cases.is_exact(name) else kind
  return EXCEPTIONS[number, name], globals()[f'law_{number}__{kind}']


# Twins of rules that others stand for.
_LONG = (
  'margin_nucleus',
  'margin_streamed',
  'scheduled_exit',
  'state_similarity_per_row',
  'fixed_exit',
  'gate_quantile_per_row',
  'margin_decaying',
  'margin_first_exit_fill',
  'margin_first_tokens',
  'margin_prefix_suppressed',
  'margin_pruned_full_final',
  'oracle',
  'margin_adapted',
  'margin_adapted_exact',
  'margin_adapted_pruned',
  'keep_layers_margin_exact',
  'skip_saturated',
  'margin_exit_layers',
  'margin_exit_layers_exact',
  'gate',
  'gate_exact',
  'gate_adapted_exact',
  'gate_quantile_per_row_exact',
  'free_two_exits',
  'gates_tempered',
  'patience_per_row',
  'patience_per_row_exact',
  'budget_similarity',
  'budget_similarity_exact',
  'margin_int8_checks',
  'margin_prefix_suppressed_exact',
  'beams_margin_per_row_exact',
  'margin_nucleus_exact',
  'maximum_release_decay',
  'state_similarity_per_row_exact',
  'router_exact',
  'twins',
  'twin_router_per_row',
  'pruned_source_margin',
  'pruned_context_margin',
)


# Their second program, of one row at a time, is compiled in long runs.
_SECOND_IS_LONG = (
  'router',
  'skip_decode',
  'beams_margin_per_row',
  'keep_layers_margin',
)


def _marks(name, law):
  # A program of its own for each twin that is not in the list.
  alone = law == '10' and not cases.is_exact(name)
  alone |= law in ('1b', '7') and name in _SECOND_IS_LONG
  return [pytest.mark.slow] if alone or name in _LONG else []


@pytest.mark.parametrize(
  ('name', 'law'),
  [
    pytest.param(name, law, marks=_marks(name, law))
    for name in cases.NAMES
    for law in LAWS
  ],
)
def test_law(name, law):
  _, check = _check_of(law, name)
  check(name)


@pytest.mark.parametrize(
  'name', [pytest.param(name, marks=_marks(name, '2')) for name in cases.NAMES]
)
def test_what_says_the_full_model_keeps_law_2(name):
  """Nobody calls a threshold of 1 the full model where it is not."""
  policy = cases.case(name).policy(np.arange(cases.B), 1.0)
  assert decoding.is_full_at_one(policy) == ((2, name) not in EXCEPTIONS)


def test_print_the_table():
  for law in LAWS:
    for name in cases.NAMES:
      reason, check = _check_of(law, name)
      assert callable(check)
      verdict = f'does not apply: {reason}' if reason else 'holds'
      print(f'law {law:2} {name:25} {verdict}')


@pytest.mark.slow
def test_the_list_can_fail_the_laws():
  """Rows stop at every layer, some end early, and policies differ."""
  names = [name for name in cases.NAMES if not cases.is_exact(name)]
  results = [cases.decode(name) for name in names]
  layers = np.stack([result.exit_layers for result in results])
  assert set(np.unique(layers)) == {-1, 1, 2, 3, 4}
  tokens = {result.tokens.tobytes() for result in results}
  # Streaming says what the margin over all of V says.
  assert len(tokens) == len(results) - 1
