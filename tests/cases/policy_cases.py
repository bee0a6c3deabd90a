"""THE list of policies that must keep the laws, and their decodes.

Every policy runs on one tiny T5 (4 decoder layers) in two programs, compiled
once and shared by all laws: the reference loop on a batch of 4, and the
unrolled loop on one row at a time, with more source padding and a longer output
buffer. Thresholds are moved into a gap between the confidences that are met.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from calm_jax import decoding, exits, model, training
from calm_jax.context_gates import ContextGates
from calm_jax.exit_adapters import ExitAdapters
from calm_jax.exit_layers import ExitLayers
from calm_jax.interfaces import LayerWork, PlansAhead
from calm_jax.model.transformer import Transformer
from calm_jax.pytrees import register_pytree
from calm_jax.small_twins import SmallTwins
from calm_jax.source_scorer import SourceScorer
from calm_jax.token_router import TokenRouter, price_of

B, S, T, V = 4, 6, 8, 40
LONGER_S, LONGER_T = 8, 10
EOS_ID = 4
CONFIG = model.T5Config(
  vocab_size=V,
  embed_dim=16,
  num_heads=2,
  head_dim=8,
  mlp_dim=24,
  num_encoder_layers=1,
  num_decoder_layers=4,
)
L = CONFIG.num_decoder_layers
GAP = 1e-3
KEY = jax.random.key(11)
WHILE = decoding.WhileDepthLoop()
# Of the model that decodes; `twin` makes a copy of this module for others.
WEIGHTS = None


@register_pytree
@dataclasses.dataclass(frozen=True)
class SkipFeedForward(PlansAhead):
  """A layer plan for these tests: no FFN where position + layer is odd.

  Attributes:
    first_position: int [], positions before it run everything.
  """

  first_position: Any = 0

  def check(self, decoder, batch_size, max_length):
    return SkipFeedForward(jnp.asarray(self.first_position, jnp.int32))

  def init(self, decoder, batch_size, max_length):
    return jnp.broadcast_to(self.first_position, (batch_size,))

  def before(self, state, view):
    runs = ((view.positions + view.layer) % 2 == 0) | (view.positions < state)
    return state, LayerWork(feed_forward=runs)


@dataclasses.dataclass(frozen=True)
class Case:
  """One policy of the list.

  Attributes:
    name: how the table calls it.
    policy: from the rows of the batch that are decoded and a threshold to the
      policy.
    threshold: where to look for a threshold, or None if it has none.
    sampler: the sampler.
    options: from the rows of the batch to further arguments of `generate`.
  """

  name: str
  policy: Callable[[np.ndarray, Any], decoding.ComputePolicy]
  threshold: float | None = None
  sampler: Any = decoding.Greedy()
  options: Callable[[np.ndarray], dict[str, Any]] = lambda rows: {}


def _exits(rule, **slots):
  """Returns a `policy` function from one that makes the exit rule."""

  def make(rows, threshold):
    return decoding.ComputePolicy(exit_rule=rule(rows, threshold), **slots)

  return make


def _confident(measure, **options):
  return lambda rows, threshold: exits.ConfidenceExit(
    measure, threshold, **options
  )


def _decaying(kind, measure, **options):
  return lambda rows, threshold: exits.ConfidenceExit(
    measure, kind(threshold, temperature=4.0, max_length=T), **options
  )


_MARGIN = exits.SoftmaxMargin()
_CLASSIFIER = exits.Classifier(
  np.random.default_rng(3).normal(size=CONFIG.embed_dim) / 12.0, 0.1
)
_RANDOM = np.random.default_rng(23)
_D, _U = CONFIG.embed_dim, 8
# One hidden layer, shared, that knows the layer and the state before.
_GATE = exits.Gate(
  layer_bias=_RANDOM.normal(size=(L - 1, _U)),
  bias=np.full((1,), 0.2),
  out=_RANDOM.normal(size=(1, _U)) / 2.0,
  state=_RANDOM.normal(size=(1, _D, _U)) / 3.0,
  previous=_RANDOM.normal(size=(1, _D, _U)) / 3.0,
)
# Linear, one per layer, that reads logits as well.
_GATES_ON_LOGITS = exits.Gate(
  layer_bias=np.zeros((L - 1, 1)),
  bias=np.full((L - 1,), -1.0),
  state=_RANDOM.normal(size=(L - 1, _D, 1)) / 8.0,
  logits=np.tile([[1.0], [3.0], [-1.0]], (L - 1, 1, 1)),
)
_TEMPERED = exits.Tempered(_GATES_ON_LOGITS, (2.0, 1.5, 1.25, 1.0))
# V is no multiple of it.
STREAMED = decoding.StreamedVocabulary(block_size=12)
FIRST = decoding.FirstTokens(30)
PRUNED = decoding.PrunedVocabulary(num_blocks=3, block_size=6)


def _adapters(rank=3):
  """Returns adapters that change much and say nothing in particular."""
  rng = np.random.default_rng(4)
  exits_before, size = CONFIG.num_decoder_layers - 1, CONFIG.embed_dim
  shapes = ((exits_before, size, rank), (exits_before, rank, size))
  down, up = (rng.normal(size=shape) / 4.0 for shape in shapes)
  scale = rng.uniform(0.5, 1.5, (exits_before, size))
  return ExitAdapters(
    *(array.astype(np.float32) for array in (scale, down, up))
  )


def _exit_layers(units=5):
  """Returns exit layers that change much and say nothing in particular."""
  rng = np.random.default_rng(6)
  exits_before, size = CONFIG.num_decoder_layers - 1, CONFIG.embed_dim
  gates = rng.normal(size=(exits_before, size, 2, units)) / 2.0
  out = rng.normal(size=(exits_before, units, size)) / 2.0
  scale = rng.uniform(0.5, 1.5, (exits_before, size))
  return ExitLayers(
    *(array.astype(np.float32) for array in (scale, gates, out))
  )


def _twins(units=5):
  """Returns small twins that add something, and nothing in particular."""
  rng = np.random.default_rng(9)
  gates = rng.normal(size=(L, _D, 2, units)) / 2.0
  out = rng.normal(size=(L, units, _D)) / 2.0
  scale = rng.uniform(0.5, 1.5, (L, _D))
  return SmallTwins(
    *(array.astype(np.float32) for array in (scale, gates, out))
  )


def _router():
  """Returns a router that gives each row of the batch another depth."""
  rng = np.random.default_rng(2)
  return exits.Router(
    bias=np.array([2.5, 1.2, 0.0]),
    state=rng.normal(size=(_D, _U)) / 2.0,
    length_weights=rng.normal(size=(_U,)) / 2.0,
    hidden_bias=rng.normal(size=(_U,)),
    out=rng.normal(size=(_U, 1)) / 2.0,
  )


ROUTER = _router()
ADAPTED = decoding.AdaptedVocabulary(_adapters())
EXIT_LAYERS = decoding.AdaptedVocabulary(_exit_layers())
PREFIXES = np.array([[5, 6, 0], [7, 0, 0], [0, 0, 0], [1, 1, 30]])
SUPPRESSED = (13, 27, 18)
_SCHEDULE = np.array([4, 1, 3, 2, 1, 4, 2, 1, 1, 1])

# Room for 5 of 6 positions, of a padded row for padding, too; closes gates.
SOURCE_PRUNED = decoding.PrunedSource(
  SourceScorer(np.random.default_rng(4).normal(size=_D), 1.0), 5
)


def _context_gates(size=3):
  """Returns gates that shut here and there, early ones among them."""
  rng = np.random.default_rng(4)
  queries, keys = rng.normal(size=(2, L, _D, size)).astype(np.float32) * 0.375
  return ContextGates(queries, keys, np.ones((L,), np.float32))


# As much room as is needed, and less than T.
CONTEXT_PRUNED = decoding.PrunedContext(_context_gates(), slots=6)
KEPT = decoding.KeepLayers(3)
SKIP_DECODE = decoding.SkipDecode(4, 2, length=T)
SATURATED = decoding.SkipSaturatedFeedForward(0.9)
TWINS = decoding.ChosenFeedForward((2, 1, 0, 2), _twins())


def _twin_router():
  """Returns a router whose tokens take all three options in every layer."""
  rng = np.random.default_rng(8)
  weights = rng.normal(size=(L, _D, 3)).astype(np.float32)
  costs = np.array([0.0, 1.0, 5 / CONFIG.mlp_dim], np.float32)
  return TokenRouter(weights, np.zeros((L, 3), np.float32), costs)


ROUTED_TWINS = decoding.RoutedFeedForward(_twin_router(), 0.5, TWINS.twins)

_PROJECTED = (
  Case('full', lambda rows, threshold: decoding.ComputePolicy()),
  Case(
    'fixed_exit',
    _exits(lambda rows, _: exits.FixedExit(np.array([1, 2, 3, 4])[rows])),
  ),
  Case(
    'scheduled_exit', _exits(lambda rows, _: exits.ScheduledExit(_SCHEDULE))
  ),
  Case(
    'oracle', _exits(lambda rows, _: exits.OracleExit(oracle_targets()[rows]))
  ),
  Case('softmax_margin', _exits(_confident(_MARGIN)), 0.3),
  Case(
    'margin_decaying',
    _exits(_decaying(exits.DecayingThreshold, _MARGIN)),
    0.25,
  ),
  Case(
    'maximum_release_decay',
    _exits(
      _decaying(
        exits.ReleaseDecayThreshold,
        exits.SoftmaxMaximum(),
        minimum_exit_layer=2,
        interval=2,
      )
    ),
    0.5,
  ),
  Case(
    'state_similarity_per_row',
    _exits(
      lambda rows, threshold: exits.ConfidenceExit(
        exits.StateSimilarity(),
        threshold + np.array([0.0, 0.05, 0.1, 0.15])[rows] * (threshold < 1.0),
      )
    ),
    0.7,
  ),
  Case('classifier', _exits(_confident(_CLASSIFIER)), 0.5),
  Case('gate', _exits(_confident(_GATE)), 0.5),
  Case('gates_tempered', _exits(_confident(_TEMPERED)), 0.5),
  Case(
    'gate_quantile_per_row',
    _exits(
      lambda rows, threshold: exits.QuantileExit(
        _GATE,
        threshold + np.array([0.0, 0.1, -0.1, 0.05])[rows] * (threshold < 1),
      )
    ),
    0.7,
  ),
  Case(
    'patience_per_row',
    _exits(lambda rows, _: exits.PatienceExit(np.array([1, 2, 1, 3])[rows])),
  ),
  Case(
    'margin_first_exit_fill',
    _exits(_confident(_MARGIN), cache_fill=decoding.ProjectFirstExitState()),
    0.3,
  ),
  Case(
    'maximum_deferred_fill',
    _exits(
      _confident(exits.SoftmaxMaximum()),
      # Blocks smaller than what layers lack.
      cache_fill=decoding.DeferredExitState(block_size=3),
    ),
    0.4,
  ),
  Case(
    'margin_nucleus',
    _exits(_confident(_MARGIN)),
    0.3,
    decoding.Nucleus(0.9, temperature=1.2),
  ),
  Case('margin_pruned', _exits(_confident(_MARGIN), readout=PRUNED), 0.5),
  Case(
    'margin_pruned_full_final',
    _exits(
      _confident(_MARGIN), readout=dataclasses.replace(PRUNED, final='full')
    ),
    0.5,
  ),
  Case('margin_first_tokens', _exits(_confident(_MARGIN), readout=FIRST), 0.3),
  Case(
    'margin_int8_checks',
    _exits(_confident(_MARGIN), readout=decoding.Int8Vocabulary()),
    0.3,
  ),
  Case('margin_streamed', _exits(_confident(_MARGIN), readout=STREAMED), 0.3),
  Case('margin_adapted', _exits(_confident(_MARGIN), readout=ADAPTED), 0.3),
  Case(
    'margin_exit_layers',
    _exits(_confident(_MARGIN), readout=EXIT_LAYERS),
    0.3,
  ),
  Case(
    'margin_adapted_pruned',
    _exits(
      _confident(_MARGIN), readout=dataclasses.replace(ADAPTED, inner=PRUNED)
    ),
    0.5,
  ),
  Case(
    'beams_margin_per_row',
    _exits(
      lambda rows, threshold: exits.ConfidenceExit(
        _MARGIN,
        threshold + np.array([0.0, 0.1, -0.1, 0.15])[rows] * (threshold < 1.0),
      )
    ),
    0.4,
    decoding.BeamSearch(3),
  ),
  Case(
    'margin_prefix_suppressed',
    _exits(_confident(_MARGIN)),
    0.3,
    options=lambda rows: dict(
      forced_prefix=PREFIXES[rows], suppressed_tokens=SUPPRESSED
    ),
  ),
  Case(
    'budget_margin_per_row',
    _exits(
      lambda rows, threshold: exits.LayerBudget(
        exits.ConfidenceExit(_MARGIN, threshold),
        per_request=np.array([12, 14, 20, 16])[rows],
        per_token=np.array([3, 4, 2, 4])[rows],
        max_length=LONGER_T,
      )
    ),
    0.6,
  ),
  Case(
    # It may stop at layer 1, where the rule does not look.
    'budget_similarity',
    _exits(
      lambda rows, threshold: exits.LayerBudget(
        exits.ConfidenceExit(exits.StateSimilarity(), threshold),
        per_request=18,
        max_length=LONGER_T,
      )
    ),
    0.8,
  ),
  Case(
    'router',
    _exits(lambda rows, threshold: exits.RoutedExit(ROUTER, threshold)),
    0.5,
  ),
  Case(
    'pruned_source_margin',
    _exits(_confident(_MARGIN), source_plan=SOURCE_PRUNED),
    0.3,
  ),
  Case(
    'pruned_context_margin',
    _exits(_confident(_MARGIN), layer_plan=CONTEXT_PRUNED),
    0.3,
  ),
  Case(
    'skip_feed_forward',
    lambda rows, threshold: decoding.ComputePolicy(
      layer_plan=SkipFeedForward()
    ),
  ),
  Case(
    'keep_layers_margin',
    _exits(_confident(_MARGIN), layer_plan=KEPT),
    0.3,
  ),
  Case(
    'skip_decode',
    lambda rows, threshold: decoding.ComputePolicy(layer_plan=SKIP_DECODE),
  ),
  Case(
    'skip_saturated',
    lambda rows, threshold: decoding.ComputePolicy(
      layer_plan=dataclasses.replace(SATURATED, threshold=threshold)
    ),
    0.9,
  ),
  Case(
    'twins',
    lambda rows, threshold: decoding.ComputePolicy(layer_plan=TWINS),
  ),
  Case(
    'twin_router_per_row',
    lambda rows, threshold: decoding.ComputePolicy(
      layer_plan=dataclasses.replace(
        ROUTED_TWINS,
        threshold=threshold
        + np.array([0.0, 0.1, -0.1, 0.05])[rows] * (threshold < 1.0),
      )
    ),
    0.5,
  ),
)


def exact(case):
  """Returns the twin of a case whose K/V are exact, `<name>_exact`."""

  def policy(rows, threshold):
    policy = case.policy(rows, threshold)
    # Blocks smaller than what layers lack.
    return dataclasses.replace(policy, cache_fill=decoding.CatchUp((1, 2)))

  return dataclasses.replace(case, name=f'{case.name}_exact', policy=policy)


_TWINS = (
  'gate',
  'gate_quantile_per_row',
  'patience_per_row',
  'state_similarity_per_row',
  'margin_nucleus',
  'beams_margin_per_row',
  'margin_prefix_suppressed',
  'margin_adapted',
  'margin_exit_layers',
  'budget_similarity',
  'keep_layers_margin',
  'router',
)
# FREE (arXiv 2310.05424): exits after layer E and after the last one.
FREE = Case(
  'free_two_exits',
  _exits(
    _confident(_MARGIN, minimum_exit_layer=2, interval=L),
    cache_fill=decoding.CatchUp((1, 2)),
  ),
  0.3,
)
# Exits by the state as it is, tokens read through adapters.
GATE_ADAPTED = Case(
  'gate_adapted', _exits(_confident(_GATE), readout=ADAPTED), 0.5
)
CASES = (
  *_PROJECTED,
  *(exact(case) for case in _PROJECTED if case.name in _TWINS),
  exact(GATE_ADAPTED),
  FREE,
)
NAMES = tuple(case.name for case in CASES)


@functools.cache
def decoder():
  return model.as_layered_decoder(CONFIG)


@functools.cache
def params():
  """Returns random parameters under which confidences spread."""
  shapes = jax.eval_shape(lambda: model.init_params(CONFIG, jax.random.key(0)))
  rng = np.random.default_rng(5)

  def fill(shape):
    if len(shape.shape) == 1:
      return np.ones(shape.shape, np.float32)
    scale = 1.0 / np.sqrt(shape.shape[0]) if shape.shape[0] != V else 1.0
    return (rng.normal(size=shape.shape) * scale).astype(np.float32)

  tree = jax.tree.map(fill, shapes)
  tree['decoder']['logits_dense']['kernel'] *= 2.5
  if WEIGHTS is None:
    return tree
  # Kept, so it must not be of a program that happens to be traced now.
  with jax.ensure_compile_time_eval():
    return decoder().quantise(tree, WEIGHTS)


@functools.cache
def prepared(traced_layers):
  # Kept, so it must not be of a program that happens to be traced now.
  with jax.ensure_compile_time_eval():
    return decoder().prepare(params(), traced_layers=traced_layers)


def bound(depth_loop=WHILE, mesh=None):
  return decoding.bind(
    decoder(),
    prepared(depth_loop.traced_layers),
    depth_loop=depth_loop,
    mesh=mesh,
    weights=WEIGHTS,
  )


@functools.cache
def inputs():
  """Returns [B, S] source tokens, one row padded."""
  tokens = np.random.default_rng(8).integers(2, V, (B, S))
  tokens[1, 4:] = 0
  return tokens


@functools.cache
def oracle_targets():
  """Returns the full model's tokens, [B, LONGER_T]."""
  tokens = np.asarray(decode('full').tokens)
  return np.pad(tokens, ((0, 0), (0, LONGER_T - T)))


@functools.cache
def case(name):
  """Returns the case, its threshold moved into a gap (see `_in_a_gap`)."""
  found = CASES[NAMES.index(name)]
  if found.threshold is None:
    return found
  for offset in range(40):
    threshold = found.threshold + 2 * GAP * offset
    if _in_a_gap(found, threshold):
      return dataclasses.replace(found, threshold=threshold)
  raise AssertionError(f'no gap near {found.threshold} for {name}')


def _in_a_gap(found, threshold):
  """Whether no confidence that is met lies within GAP of the threshold.

  If the decodes at both ends of an interval agree, then no confidence compared
  on the way lies inside it.
  """
  ends = [
    run(dataclasses.replace(found, threshold=threshold + side))
    for side in (-GAP, GAP)
  ]
  return all(
    np.array_equal(getattr(ends[0], field), getattr(ends[1], field))
    for field in ('tokens', 'exit_layers')
  )


@functools.cache
def kept_source(is_pruned):
  """Returns which source positions are read, bool [B, S]; all if not pruned.

  Worked out from the encoder's states in NumPy, whatever `select` does.
  """
  mask = inputs() > 0
  if not is_pruned:
    return mask
  plan, weights = SOURCE_PRUNED, prepared(True)
  states = np.asarray(jax.jit(decoder().encode)(weights, inputs()).hidden)
  sizes = np.sqrt(np.square(states).mean(axis=-1, keepdims=True) + 1e-6)
  scores = (states / sizes) @ plan.scorer.weights + plan.scorer.bias
  scores = np.where(mask, scores, -np.inf)
  least = np.sort(scores, axis=-1)[:, -plan.keep, None]
  best = scores == scores.max(axis=-1, keepdims=True)
  return mask & (scores >= least) & ((scores > 0) | best)


def start(case, *, source=None, rows=None, rng=KEY, **options):
  """Starts a case in the first program, with [B, S] inputs."""
  rows = np.arange(B) if rows is None else rows
  return decoding.start(
    bound(),
    inputs() if source is None else source,
    policy=case.policy(rows, case.threshold),
    sampler=case.sampler,
    max_length=T,
    eos_id=EOS_ID,
    rng=rng,
    **case.options(rows),
    **options,
  )


def run(case, **options):
  """Decodes a case in the first program."""
  return host(decoding.finish(decoding.advance(start(case, **options))))


@functools.cache
def decode(name):
  """Returns the decode of a case in the first program."""
  return run(case(name))


def start_alone(name, row):
  """Starts one row of a case in the second program, [1, LONGER_S] inputs.

  For a search T is no mere buffer: what has not ended by then never will.
  """
  one, rows = case(name), np.array([row])
  searches = isinstance(one.sampler, decoding.Search)
  source = np.pad(inputs()[row : row + 1], ((0, 0), (0, LONGER_S - S)))
  return decoding.start(
    bound(decoding.UnrolledDepthLoop()),
    source,
    policy=one.policy(rows, one.threshold),
    sampler=one.sampler,
    max_length=T if searches else LONGER_T,
    eos_id=EOS_ID,
    rng=request_keys()[row : row + 1],
    **one.options(rows),
  )


@functools.cache
def decode_alone(name, row):
  """Returns the decode of one row of a case in the second program."""
  return host(decoding.finish(decoding.advance(start_alone(name, row))))


def request_keys():
  """Returns the keys that the rows get from KEY."""
  return jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(B))


def host(result):
  """Returns a result as NumPy arrays."""
  return jax.tree.map(np.asarray, result)


def poison(state):
  """Returns a started decode whose empty self-attention cache holds 1e3.

  What a decode must not read before it has written it.
  """
  cache = state.carry.cache
  cache = dataclasses.replace(
    cache,
    self_key=jnp.full_like(cache.self_key, 1e3),
    self_value=jnp.full_like(cache.self_value, 1e3),
  )
  carry = dataclasses.replace(state.carry, cache=cache)
  return dataclasses.replace(state, carry=carry)


@functools.cache
def decode_poisoned(name):
  """Returns result and final (keys, values) of a decode on a poisoned cache."""
  state = decoding.advance(poison(start(case(name))))
  cache = state.carry.cache
  kv = np.asarray(cache.self_key), np.asarray(cache.self_value)
  return host(decoding.finish(state)), kv


def is_exact(name):
  """Whether the K/V of a case are the full model's."""
  return name.endswith('_exact') or name == 'free_two_exits'


def readout_of(name):
  """Returns the readout of a case, without adapters around it, and these."""
  found = case(name)
  readout = found.policy(np.arange(B), found.threshold).readout
  if isinstance(readout, decoding.AdaptedVocabulary):
    return readout.inner, readout.adapters
  return readout, None


def _adapted(adapters, hidden, mask):
  """Returns the states [B, T, D] as they are read after the layers run."""
  if adapters is None:
    return hidden
  layer = jnp.maximum(mask.sum(axis=-1) - 1, 0).reshape(-1)
  flat = hidden.reshape(-1, hidden.shape[-1])
  return adapters(flat, layer).reshape(hidden.shape)


def layer_masks(name):
  """Returns which layers and which FFNs a decode ran, each bool [B, T, L]."""
  result = decode(name)
  mask = np.arange(L) < result.exit_layers[..., None]
  ffn_mask = np.ones((B, T, L), bool)
  if name == 'skip_feed_forward':
    ffn_mask &= (np.arange(T)[:, None] + np.arange(L)) % 2 == 0
  if name == 'skip_saturated':
    # In the middle, from one layer on: so many as were left out.
    left_out = mask.sum(axis=-1) - result.work.feed_forward
    ffn_mask &= np.arange(L) < (L - 1 - left_out)[..., None]
    ffn_mask[..., -1] = True
  if name == 'twins':
    ffn_mask &= np.array(TWINS.choices) == 1
  if name == 'twin_router_per_row':
    ffn_mask &= routed_choices(name) == 1
  return mask & planned_layers(name), ffn_mask


def twin_mask(name):
  """Returns which small twins a decode ran, bool [B, T, L], and these."""
  decoded = (decode(name).exit_layers > 0)[..., None]
  if name == 'twins':
    return decoded & (np.array(TWINS.choices) == 2), TWINS.twins
  if name == 'twin_router_per_row':
    return decoded & (routed_choices(name) == 2), TWINS.twins
  return np.zeros((B, T, L), bool), None


@functools.cache
def routed_choices(name):
  """Returns what a router takes, int [B, T, L], in the model's own pass."""
  found = case(name)
  plan = found.policy(np.arange(B), found.threshold).layer_plan
  router = plan.router.check(decoder(), 3)
  price = price_of(jnp.float32(plan.threshold))[:, None]

  def run(params, batch):
    taken = []

    def route(layer, hidden):
      taken.append(router.choose(router.scores(hidden, layer), price))
      return taken[-1], None

    training.routed_states(CONFIG, params, plan.twins, batch, route)
    return jnp.stack(taken, axis=-1)

  tokens = decoder_input_tokens(name)
  batch = dict(encoder_input_tokens=inputs(), decoder_input_tokens=tokens)
  return np.asarray(jax.jit(run)(params(), batch))


def planned_layers(name):
  """Returns which layers a case's plan has at each position, bool [T, L]."""
  planned = np.ones((T, L), bool)
  if name.startswith('keep_layers'):
    planned[:, 1] = False
  if name == 'skip_decode':
    for position, depth in enumerate(SKIP_DECODE.depths(T)):
      planned[position, 1 : L - depth + 1] = False
  return planned


def decoder_input_tokens(name):
  """Returns the tokens a decode was conditioned on: its own, shifted."""
  return np.pad(decode(name).tokens, ((0, 0), (1, 0)))[:, :-1]


@functools.partial(jax.jit, static_argnames='first_exit')
def _fill_in_parallel(
  source,
  tokens,
  mask,
  ffn_mask,
  adapters=None,
  twins=None,
  kept=True,
  *,
  first_exit,
):
  """Runs all positions at once through the seam, one layer after the other."""
  seam, weights = decoder(), prepared(True)
  encoded = seam.encode(weights, source)
  encoded = dataclasses.replace(encoded, mask=encoded.mask & kept)
  cache = seam.start(weights, encoded, T)
  positions = jnp.arange(T)
  hidden = seam.embed(weights, tokens, positions)
  for layer in range(L):
    runs = mask[..., layer, None]
    if layer == 1:
      first = hidden
    filled_from = hidden
    if first_exit and layer:
      filled_from = jnp.where(runs, hidden, first)
    cache = seam.fill_layer(weights, layer, filled_from, positions, cache)
    attended = seam.attend(weights, layer, hidden, positions, cache)
    fed = seam.feed_forward(weights, layer, attended)
    fed = jnp.where(ffn_mask[..., layer, None], fed, attended)
    if twins is not None:
      small, where = twins[0](attended, layer), twins[1][..., layer, None]
      fed = jnp.where(where, small, fed)
    hidden = jnp.where(runs, fed, hidden)
  hidden = _adapted(adapters, hidden, mask)
  return (cache.self_key, cache.self_value), seam.logits(weights, hidden)


def full_reference(state, planned=True):
  """Returns the full model's K/V [R, L, H, T, K] and logits [R, T, V].

  Teacher forced with the tokens that the rows of a decode hold.

  Args:
    state: of the decode.
    planned: bool [T, L], the layers that the full model has; all.
  """
  tokens = np.pad(state.carry.tokens, ((0, 0), (1, 0)))[:, :-1]
  everything = np.ones((*tokens.shape, L), bool)
  kept = kept_source(not state.policy.source_plan.whole)
  source, kept = (
    np.repeat(array, state.rows_per_request, axis=0)
    for array in (inputs(), kept)
  )
  return host(
    _fill_in_parallel(
      source,
      tokens,
      everything & planned,
      everything,
      kept=kept,
      first_exit=False,
    )
  )


def live_reference(name):
  """Returns K/V of a search's live rows, [R, L, H, T, K], and expected ones.

  Also which positions they were decoded at, bool [R, T].
  """
  state = decoding.advance(poison(start(case(name))))
  carry, cache = host(state.carry), state.carry.cache
  tokens = np.pad(carry.tokens, ((0, 0), (1, 0)))[:, :-1]
  mask = np.arange(L) < carry.exit_layers[..., None]
  source = np.repeat(inputs(), state.rows_per_request, axis=0)
  expected, _ = _fill_in_parallel(
    source, tokens, mask, np.ones_like(mask), first_exit=False
  )
  kv = cache.self_key, cache.self_value
  return host(kv), host(expected), carry.exit_layers > 0


@functools.cache
def parallel_reference(name, first_exit=False):
  """Returns (keys, values) [B, L, H, T, K] and logits [B, T, V] of a decode.

  Teacher forced with the decode's own tokens and exit layers, all positions at
  once. K/V of layers not run come from the exit state, or from the state after
  layer 1 with `first_exit`.
  """
  mask, ffn_mask = layer_masks(name)
  where, twins = twin_mask(name)
  return host(
    _fill_in_parallel(
      inputs(),
      decoder_input_tokens(name),
      mask,
      ffn_mask,
      readout_of(name)[1],
      None if twins is None else (twins, where),
      kept=kept_source(name.startswith('pruned_source')),
      first_exit=first_exit,
    )
  )


@functools.cache
def masked_reference(name, exit_layer=None, weights=None):
  """Returns the model's own masked logits [B, T, V] for a decode.

  After the layers that it used, or after `exit_layer` layers everywhere; with
  suppressed tokens at -inf and forced ones certain; of parameters in 8 bits, if
  told which.
  """
  tree = params()
  if weights is not None:
    tree = decoder().quantise(tree, weights)
  mask, ffn_mask = layer_masks(name)
  if exit_layer is not None:
    mask = np.broadcast_to(np.arange(L) < exit_layer, mask.shape)
  tokens, adapters = decoder_input_tokens(name), readout_of(name)[1]
  where, twins = twin_mask(name)
  if name.startswith('pruned_context'):
    batch = dict(encoder_input_tokens=inputs(), decoder_input_tokens=tokens)
    logits = np.array(context_reference()(tree, batch, mask, 0.0)[0])
  elif twins is not None:
    choices = np.where(where, 2, ffn_mask)
    logits = np.array(_twin_logits()(tree, inputs(), tokens, twins, choices))
  elif is_exact(name):
    planned = np.broadcast_to(planned_layers(name), mask.shape)
    logits = np.array(
      _exit_logits()(tree, inputs(), tokens, mask, adapters, planned)
    )
  elif adapters is not None:
    logits = np.array(_adapted_logits()(tree, inputs(), tokens, mask, adapters))
  else:
    run_masked = _masked_decode()
    kept = kept_source(name.startswith('pruned_source'))
    bias = np.where(kept, 0.0, -1e10).astype(np.float32)
    logits = np.array(
      run_masked(tree, inputs(), tokens, mask, ffn_mask, source_bias=bias)
    )
  options = case(name).options(np.arange(B))
  logits[..., list(options.get('suppressed_tokens', ()))] = -np.inf
  forced = options.get('forced_prefix', np.zeros((B, 0), int))
  for row, position in np.argwhere(forced):
    logits[row, position] = -np.inf
    logits[row, position, forced[row, position]] = 0.0
  return logits


@functools.cache
def _exit_logits():
  """Returns a function to the logits of the full model's states at exits."""

  def run(params, source, tokens, mask, adapters, planned):
    states = model.layer_states(
      CONFIG, params, source, tokens, layer_mask=planned
    )
    last = jnp.where(mask, jnp.arange(L), 0).max(axis=-1)
    hidden = jnp.take_along_axis(states, last[None, ..., None], axis=0)[0]
    hidden = _adapted(adapters, hidden, mask)
    return model.output_logits(CONFIG, params, hidden)

  return jax.jit(run)


@functools.cache
def _twin_logits():
  """Returns the model's own pass, with small twins where they were chosen."""

  def run(params, source, tokens, twins, choices):
    batch = {'encoder_input_tokens': source, 'decoder_input_tokens': tokens}
    states = training.chosen_states(CONFIG, params, twins, batch, choices)
    return model.output_logits(CONFIG, params, states[-1])

  return jax.jit(run)


@functools.cache
def context_reference():
  """Returns the model's own pass with what gates drop masked.

  From parameters, a batch, which layers run, bool [B, T, L], and a shift of the
  gates to logits [B, T, V], states after every layer and keep [L, B, T, T].
  """
  gates = CONTEXT_PRUNED.gates

  def run(params, batch, mask, beta_shift):
    states, keep = training.gated_states(
      CONFIG,
      params,
      gates,
      batch,
      lambda scores: (scores + beta_shift > 0).astype(jnp.float32),
      layer_mask=mask,
    )
    return model.output_logits(CONFIG, params, states[-1]), states, keep

  return jax.jit(run)


def context_keys_and_values(name):
  """Returns K/V [B, L, H, T, K] of a decode whose context was pruned."""
  tokens, (mask, _) = decoder_input_tokens(name), layer_masks(name)
  batch = dict(encoder_input_tokens=inputs(), decoder_input_tokens=tokens)
  _, states, _ = context_reference()(params(), batch, mask, 0.0)
  seam, weights = decoder(), prepared(True)
  cache = seam.start(weights, seam.encode(weights, inputs()), T)
  hidden, positions = seam.embed(weights, tokens, None), jnp.arange(T)
  for layer in range(L):
    cache = seam.fill_layer(weights, layer, hidden, positions, cache)
    hidden = states[layer]
  return cache.self_key, cache.self_value


@functools.cache
def _adapted_logits():
  """Returns `decode_with_layer_mask` with states that are read adapted."""

  def run(params, source, tokens, mask, adapters):
    states = Transformer(CONFIG).apply(
      {'params': params}, source, tokens, mask, None, method='states'
    )
    hidden = _adapted(adapters, states[-1], mask)
    return model.output_logits(CONFIG, params, hidden)

  return jax.jit(run)


@functools.cache
def _masked_decode():
  return jax.jit(functools.partial(model.decode_with_layer_mask, CONFIG))
