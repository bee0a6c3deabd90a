"""Rules that remember earlier layers of a token, and temperatures."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes.toy_decoder import toy_decoder

from calm_jax import exits
from calm_jax.interfaces import LayerView
from calm_jax.pytrees import register_pytree

L, B, T = 6, 5, 3
SIZE = (toy_decoder(L), B, T)


@register_pytree
@dataclasses.dataclass(frozen=True)
class Given:
  """Reads its confidence from the state."""

  needs_logits: ClassVar[bool] = False
  minimum_exit_layer: ClassVar[int] = 1

  def check(self, decoder, batch_size, max_length):
    return self

  def confidence(self, view):
    return view.hidden[:, 0]


def view(layer, *, hidden=None, logits=None, token_ids=None, log_total=None):
  return LayerView(
    layer=layer,
    positions=jnp.zeros((B,), jnp.int32),
    hidden=hidden,
    previous_hidden=hidden,
    logits=logits,
    token_ids=token_ids,
    log_total=log_total,
    active=jnp.ones((B,), bool),
  )


def exit_layers(rule, views):
  """Returns where rows stop, token after token, and all confidences."""
  rule = rule.check(*SIZE)
  state = rule.init(*SIZE)
  found, said = [], []
  for views_of_token in views:
    left = np.full(B, L)
    for layer, seen in enumerate(views_of_token):
      if not rule.looks(layer):
        continue
      # As the depth loop: rows that have stopped are not asked.
      asked = left == L
      new, stops, confidence = rule.step(state, seen)
      state = jax_where(asked, new, state)
      left = np.where(asked & np.asarray(stops), layer + 1, left)
      said.append(np.asarray(confidence))
    found.append(left)
  return np.array(found), np.array(said)


def jax_where(asked, new, old):
  return jax.tree.map(lambda a, b: jnp.where(asked, a, b), new, old)


def gates(seed=0, tokens=T):
  random = np.random.default_rng(seed)
  chances = random.uniform(0.05, 0.6, (tokens, L, B)).astype(np.float32)
  views = [
    [view(i, hidden=jnp.asarray(of_token[i])[:, None]) for i in range(L)]
    for of_token in chances
  ]
  return chances, views


def expected_layers(chances, q, looked_at):
  """Q-exit by hand, for every token by itself."""
  expected = np.full((len(chances), B), L)
  for token, of_token in enumerate(chances):
    for row in range(B):
      staying = 1.0
      for layer in looked_at:
        staying *= 1.0 - of_token[layer - 1, row]
        if 1.0 - staying > q:
          expected[token, row] = layer
          break
  return expected


@pytest.mark.parametrize(
  ('options', 'looked_at'),
  [
    ({}, [1, 2, 3, 4, 5, 6]),
    ({'interval': 2}, [1, 3, 5]),
    ({'minimum_exit_layer': 2, 'interval': 2}, [2, 4, 6]),
    ({'minimum_exit_layer': 3}, [3, 4, 5, 6]),
  ],
)
def test_q_exit_accumulates_over_the_layers_it_looks_at(options, looked_at):
  chances, views = gates()
  for q in (0.3, 0.5, 0.8):
    found, said = exit_layers(exits.QuantileExit(Given(), q, **options), views)
    expected = expected_layers(chances, q, looked_at)
    np.testing.assert_array_equal(found, expected)
    assert (said >= 0).all() and (said <= 1).all()
  assert len(np.unique(found)) > 1


def test_a_new_token_begins_anew():
  """The state of the token before changes nothing."""
  _, views = gates()
  rule = exits.QuantileExit(Given(), 0.5)
  found, _ = exit_layers(rule, views)
  alone = [exit_layers(rule, [one])[0][0] for one in views]
  np.testing.assert_array_equal(found, alone)


def test_q_is_monotone_from_the_first_layer_to_the_last():
  _, views = gates(seed=1)
  layers = [
    exit_layers(exits.QuantileExit(Given(), q), views)[0]
    for q in np.linspace(0.0, 1.0, 21)
  ]
  assert (layers[0] == 1).all() and (layers[-1] == L).all()
  assert (np.diff(layers, axis=0) >= 0).all()


def test_q_of_one_holds_a_gate_that_is_certain():
  certain = [[view(i, hidden=jnp.ones((B, 1))) for i in range(L)]]
  assert (exit_layers(exits.QuantileExit(Given(), 1.0), certain)[0] == L).all()
  # Strictly: a probability of exactly q is not above it.
  half = [[view(i, hidden=jnp.full((B, 1), 0.5)) for i in range(L)]]
  layers = exit_layers(exits.QuantileExit(Given(), 0.5), half)[0]
  assert (layers == 2).all()


def test_q_of_zero_holds_what_is_lost_in_rounding():
  for confidence, layer in ((0.0, L), (1e-9, L), (1e-7, 1)):
    views = [[view(i, hidden=jnp.full((B, 1), confidence)) for i in range(L)]]
    layers = exit_layers(exits.QuantileExit(Given(), 0.0), views)[0]
    assert (layers == layer).all()


# Patience.

# The best tokens of each row at layers 1..6.
TOKENS = np.array(
  [
    [3, 3, 3, 3, 3, 3],
    [0, 1, 1, 2, 2, 2],
    [1, 2, 1, 2, 1, 2],
    [0, 0, 5, 5, 5, 5],
    [4, 3, 2, 1, 1, 1],
  ]
)


def said(tokens, ids=None):
  logits = 2.0 * np.eye(7)[tokens]
  return [
    view(i, logits=jnp.asarray(logits[:, i]), token_ids=ids)
    for i in range(tokens.shape[1])
  ]


@pytest.mark.parametrize(
  ('options', 'patience', 'expected'),
  [
    ({}, 1, [2, 3, 6, 2, 5]),
    ({}, 2, [3, 6, 6, 5, 6]),
    ({}, [1, 2, 1, 3, 2], [2, 6, 6, 6, 6]),
    ({}, 9, [6, 6, 6, 6, 6]),
    ({'interval': 2}, 1, [3, 6, 3, 5, 6]),
    ({'minimum_exit_layer': 3}, 1, [4, 5, 6, 4, 5]),
  ],
)
def test_patience_counts_looks_at_the_same_token(options, patience, expected):
  rule = exits.PatienceExit(np.array(patience), **options)
  found, confidences = exit_layers(rule, [said(TOKENS), said(TOKENS)])
  # The second token is the first once more: nothing is left of it.
  np.testing.assert_array_equal(found, [expected, expected])
  assert (confidences >= 0).all() and (confidences <= 1).all()


def test_patience_compares_ids_and_not_places():
  """Candidates in another order are the same token."""
  first = said(np.zeros((B, 1), int), ids=jnp.tile(jnp.arange(7), (B, 1)))[0]
  turned = jnp.tile(jnp.arange(7)[::-1], (B, 1))
  same = said(np.full((B, 2), 6), ids=turned)[1]
  other = said(np.zeros((B, 2), int), ids=turned)[1]
  rule = exits.PatienceExit(1)
  assert (exit_layers(rule, [[first, same]])[0] == 2).all()
  assert (exit_layers(rule, [[first, other]])[0] == L).all()


@pytest.mark.parametrize(
  ('patience', 'message'),
  [(0, r'patience 0 .*1 or more'), (1.5, 'not a whole'), ([1, 2], 'shape')],
)
def test_bad_patience_is_refused(patience, message):
  with pytest.raises(ValueError, match=message):
    exits.PatienceExit(patience).check(*SIZE)


# Temperatures.

TEMPERATURES = (0.5, 1.0, 2.0, 4.0, 1.0, 3.0)


def test_a_temperature_is_one_of_the_layer():
  logits = jnp.asarray(np.random.default_rng(2).normal(size=(B, 7), scale=2.0))
  for measure in (exits.SoftmaxMargin(), exits.SoftmaxMaximum()):
    tempered = exits.Tempered(measure, TEMPERATURES).check(*SIZE)
    for layer, temperature in enumerate(TEMPERATURES):
      found = tempered.confidence(view(layer, logits=logits))
      expected = measure.confidence(view(layer, logits=logits / temperature))
      np.testing.assert_allclose(found, expected, atol=1e-6)
      assert (found > 0).all(), 'the best token stays ahead'
    assert tempered.needs_logits


@pytest.mark.parametrize(
  ('temperatures', 'message'),
  [
    ((1.0, 0.0, 1.0, 1.0, 1.0, 1.0), r'temperature 0.0 .*positive, finite'),
    ((1.0, -1.0, 1.0, 1.0, 1.0, 1.0), 'temperature -1.0'),
    ((1.0, np.nan, 1.0, 1.0, 1.0, 1.0), 'temperature nan'),
    ((1.0, np.inf, 1.0, 1.0, 1.0, 1.0), 'temperature inf'),
    ((1.0, 1.0), r'shape \[2\], wanted \[6\]'),
    ((), r'shape \[0\], wanted \[6\]; give one positive'),
    (('a', 1, 1, 1, 1, 1), "temperature 'a' is not a number; give one"),
    ((None, 1, 1, 1, 1, 1), 'temperature None is not a number; give one'),
    (((1, 2), 1, 1, 1, 1, 1), r'shape \[2\], wanted \[\]; give one positive'),
    (2.0, r'shape \[\], wanted \[6\]'),
  ],
)
def test_bad_temperatures_are_refused(temperatures, message):
  measure = exits.Tempered(exits.SoftmaxMargin(), temperatures)
  with pytest.raises(ValueError, match=message):
    measure.check(*SIZE)


def test_what_has_no_temperature_is_refused():
  with pytest.raises(ValueError, match='StateSimilarity reads no logits'):
    exits.Tempered(exits.StateSimilarity(), TEMPERATURES).check(*SIZE)
  tempered = exits.Tempered(exits.SoftmaxMargin(), TEMPERATURES).check(*SIZE)
  logits = jnp.zeros((B, 2))
  with pytest.raises(ValueError, match='more than the candidates has no temp'):
    tempered.confidence(view(0, logits=logits, log_total=jnp.ones((B,))))
  with pytest.raises(ValueError, match='measure 3 is not a confidence'):
    exits.Tempered(3, TEMPERATURES).check(*SIZE)
