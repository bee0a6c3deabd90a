"""A gate: a small trained network that says whether a token may stop.

It reads the state and not the vocabulary, so that a check costs a small matrix
instead of the largest one of the model. Its weights are trained by
`training.gate_stage` for one frozen model; here are only they and their answer,
the same code in training and decoding.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from calm_jax import checks
from calm_jax.array_types import Array
from calm_jax.exits.logit_features import NUM_FEATURES, logit_features
from calm_jax.interfaces import LayeredDecoder, LayerView
from calm_jax.pytrees import register_pytree

_EPSILON = 1e-6
_REMEDY = 'give the gate trained with this model'


@register_pytree
@dataclasses.dataclass(frozen=True)
class Gate:
  """High when a trained network expects the last layer's token already.

  confidence = sigmoid(score), and with norm(x) = x / rms(x), in float32,

    inner = norm(hidden) . state + norm(previous_hidden) . previous
            + features . logits + layer_bias
    score = gelu(inner) . out + bias, or inner + bias of a linear gate.

  What it reads is told by which arrays there are. Shared by the exits (E = 1)
  or one for each (E = L - 1); U hidden units, 1 in a linear gate.

  Attributes:
    layer_bias: [1, U], or [L-1, U] where the layer is an input as well.
    bias: [E].
    out: [E, U]; None in a linear gate.
    state: [E, D, U], of the state after the layer; None if it is not read.
    previous: [E, D, U], of the state that entered the layer, or None.
    logits: [E, 3, U] or [E, 4, U], of as many `logit_features`, or None. With
      them a check multiplies by the output matrix.
  """

  layer_bias: Array
  bias: Array
  out: Array | None = None
  state: Array | None = None
  previous: Array | None = None
  logits: Array | None = None

  minimum_exit_layer = 1
  # It says how likely the token is the last layer's: at 0.95, one token in
  # twenty may differ, too many for whole outputs.
  usual_thresholds: ClassVar[tuple[float, ...]] = (
    *(0.9999, 0.9995, 0.999, 0.998, 0.996, 0.993, 0.99),
    *(0.985, 0.98, 0.97, 0.95, 0.9, 0.8, 0.7),
  )

  @property
  def needs_logits(self) -> bool:
    """Whether it reads logit features."""
    return self.logits is not None

  def check(self, decoder: LayeredDecoder, batch_size: int, max_length: int):
    """Returns itself in float32; raises ValueError on wrong shapes."""
    del batch_size, max_length
    units = np.shape(self.layer_bias)[-1:]
    if not units or (self.out is None and units != (1,)):
      raise ValueError(
        f'the gate has layer_bias {list(np.shape(self.layer_bias))} and '
        f'{"no" if self.out is None else "an"} out; wanted [E, U], and U = 1 '
        f'where there is no hidden layer: {_REMEDY}'
      )
    if all(part is None for part in (self.state, self.previous, self.logits)):
      raise ValueError(
        'the gate reads nothing: state, previous and logits are all None; '
        f'{_REMEDY}'
      )
    size = decoder.embed_dim
    inner = {
      'layer_bias': units,
      'bias': (),
      'out': units,
      'state': (size, *units),
      'previous': (size, *units),
      'logits': (self._num_features, *units),
    }
    exits = decoder.num_layers - 1
    checked = {}
    for name, shape in inner.items():
      array = getattr(self, name)
      if array is not None:
        checked[name] = checks.checked_array(
          array,
          f'{name} of the gate',
          shapes=((1, *shape), (exits, *shape)),
          remedy=f'{_REMEDY} (width {size}, {exits} exits before the last)',
        )
    return Gate(**checked)

  @property
  def _num_features(self) -> int:
    """How many features of logits it reads; as many as there are if none."""
    counts = () if self.logits is None else np.shape(self.logits)[1:2]
    return counts[0] if counts and counts[0] in NUM_FEATURES else 3

  def confidence(self, view: LayerView) -> Array:
    """Returns float32 [B] in [0, 1]."""
    features = None
    if self.needs_logits:
      features = logit_features(view, self._num_features)
    score = self.score(view.layer, view.hidden, view.previous_hidden, features)
    return jax.nn.sigmoid(score)

  def score(
    self,
    layer: Array | int,
    hidden: Array,
    previous_hidden: Array | None = None,
    features: Array | None = None,
  ) -> Array:
    """Returns log(confidence / (1 - confidence)), float32 [...].

    Args:
      layer: int scalar, 0..L-1; the last one is judged as the one before.
      hidden: [..., D], the states after it.
      previous_hidden: [..., D], those that entered it, if they are read.
      features: of the logits, if they are read, [..., 3 or 4].
    """
    inner = _at(self.layer_bias, layer)
    if self.state is not None:
      inner = inner + _product(_norm(hidden), _at(self.state, layer))
    if self.previous is not None:
      inner = inner + _product(
        _norm(previous_hidden), _at(self.previous, layer)
      )
    if self.logits is not None:
      read = _given(features)[..., : self._num_features]
      inner = inner + _product(read, _at(self.logits, layer))
    bias = _at(self.bias, layer)
    if self.out is None:
      return inner[..., 0] + bias
    return (jax.nn.gelu(inner) * _at(self.out, layer)).sum(axis=-1) + bias

  def scores(
    self,
    hidden: Array,
    previous_hidden: Array | None = None,
    features: Array | None = None,
  ) -> Array:
    """Returns the scores of all exits but the last, float32 [L-1, ...].

    Args:
      hidden: [L-1, ..., D], the states after each layer but the last.
      previous_hidden: [L-1, ..., D], those that entered it.
      features: [L-1, ..., 3 or 4].
    """
    layers = jnp.arange(hidden.shape[0])
    inputs = (layers, hidden, previous_hidden, features)
    axes = tuple(None if part is None else 0 for part in inputs)
    return jax.vmap(self.score, axes)(*inputs)


def _at(array: Array, layer: Array | int) -> Array:
  """Returns the weights of an exit, of [1, ...] or [L-1, ...]."""
  last = array.shape[0] - 1
  # Shared weights are not looked up anew at every layer.
  return array[jnp.minimum(layer, last)] if last else array[0]


def _product(states: Array, kernel: Array) -> Array:
  """Returns states . kernel in full float32 on every backend."""
  return jnp.matmul(states, kernel, precision=jax.lax.Precision.HIGHEST)


def _given(array: Array | None) -> Array:
  """Returns what a gate reads; raises ValueError if it is not there."""
  if array is None:
    raise ValueError(
      'the gate reads more than it was given; give previous_hidden to one that '
      'has previous, and features to one that has logits'
    )
  return array


def _norm(states: Array | None) -> Array:
  """Returns states over their root mean square, float32."""
  states = _given(states).astype(jnp.float32)
  squares = jnp.mean(jnp.square(states), axis=-1, keepdims=True)
  return states * jax.lax.rsqrt(squares + _EPSILON)
