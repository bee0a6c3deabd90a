"""A temperature per exit (The Right Tool for the Job, arXiv 2004.07453)."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from calm_jax import checks
from calm_jax.array_types import Array
from calm_jax.exits.candidates import logits_of
from calm_jax.exits.measured_exit import check_measure
from calm_jax.exits.measures import Measure
from calm_jax.interfaces import LayeredDecoder, LayerView
from calm_jax.pytrees import register_pytree

_SMALLEST = float(np.finfo(np.float32).tiny)
_LARGEST = float(np.finfo(np.float32).max)


@register_pytree
@dataclasses.dataclass(frozen=True)
class Tempered:
  """Another measure, of logits over a temperature of their exit.

  Exits that are over-confident to different degrees become comparable, so that
  one threshold serves all. The best token, and what is said, stay the same.

  Attributes:
    measure: a measure that reads logits.
    temperatures: [L] positive numbers, or a tuple of L, which a certificate
      writes down; `training.fit_temperatures` finds them. 1 changes nothing.
  """

  measure: Measure
  temperatures: Any

  @property
  def needs_logits(self) -> bool:
    """True: measures of anything else are refused by `check`."""
    return self.measure.needs_logits

  @property
  def minimum_exit_layer(self) -> int:
    """The other measure's."""
    return self.measure.minimum_exit_layer

  def check(self, decoder: LayeredDecoder, batch_size: int, max_length: int):
    """Returns itself in float32.

    Raises:
      ValueError: for a measure that reads no logits, another number of
        temperatures, or one that is not positive and finite.
    """
    check_measure(self.measure)
    if not self.measure.needs_logits:
      raise ValueError(
        f'{type(self.measure).__name__} reads no logits, so that temperatures '
        'would change nothing; give SoftmaxMargin() or SoftmaxMaximum()'
      )
    limits: dict[str, Any] = dict(
      low=_SMALLEST,
      high=_LARGEST,
      remedy=(
        'give one positive, finite temperature for each of the '
        f'{decoder.num_layers} layers; 1 leaves logits as they are'
      ),
    )
    temperatures = self.temperatures
    if isinstance(temperatures, (list, tuple)):
      # In one piece: an array for each would take as long as a layer does.
      if temperatures and all(isinstance(one, float) for one in temperatures):
        temperatures = np.asarray(temperatures)
      else:
        checked = [
          checks.checked_array(one, 'temperature', **limits)
          for one in temperatures
        ]
        temperatures = jnp.stack(checked) if checked else jnp.zeros(0)
    return Tempered(
      measure=self.measure.check(decoder, batch_size, max_length),
      temperatures=checks.checked_array(
        temperatures,
        'temperature',
        shapes=((decoder.num_layers,),),
        **limits,
      ),
    )

  def confidence(self, view: LayerView) -> Array:
    """Returns float32 [B] in [0, 1].

    Raises:
      ValueError: for a readout that hands on some logits and the total of all.
    """
    logits = logits_of(view)
    if view.log_total is not None:
      raise ValueError(
        'a total over more than the candidates has no temperature: the readout '
        'hands on the best logits and the total of all; give '
        'readout=decoding.FullVocabulary(), or the measure without Tempered'
      )
    temperature = self.temperatures[view.layer]
    tempered = logits.astype(jnp.float32) / temperature
    return self.measure.confidence(dataclasses.replace(view, logits=tempered))
