"""Which feed-forward block runs in each layer: its own, a small twin, or none.

After Duo-LLM (arXiv 2410.10846), with one choice per layer for all tokens: what
its oracles choose per token saves nothing in a batch whose rows disagree.
Attention runs everywhere, so that no K/V are ever missing.
"""

import dataclasses

import jax.numpy as jnp

from calm_jax import checks
from calm_jax.array_types import PyTree
from calm_jax.interfaces import (
  LayeredDecoder,
  LayerWork,
  PlansAhead,
  PlanView,
  StatelessSlot,
)
from calm_jax.pytrees import register_pytree
from calm_jax.small_twins import OWN, TWIN, SmallTwins, check_choices


@register_pytree
@dataclasses.dataclass(frozen=True)
class ChosenFeedForward(PlansAhead, StatelessSlot):
  """Runs the feed-forward block that is chosen for the layer.

  With 1 everywhere it is the full model, to the bit. Where layers are unrolled,
  a layer's other blocks are not in the program.

  Attributes:
    choices: [L], for each layer 0 for none, 1 for its own, 2 for its twin.
    twins: trained for this model: `runs.load_twins(model_dir)`. None where no
      layer has its twin.
  """

  choices: tuple[int, ...] = dataclasses.field(metadata=dict(static=True))
  twins: SmallTwins | None = None

  def __post_init__(self):
    """Makes a tuple of a list, as which JSON writes it down."""
    if isinstance(self.choices, list):
      object.__setattr__(self, 'choices', tuple(self.choices))

  def check(
    self, decoder: LayeredDecoder, batch_size: int, max_length: int
  ) -> 'ChosenFeedForward':
    """Returns itself, its twins checked.

    Raises:
      ValueError: for choices that there are not, or twins of another decoder.
    """
    del batch_size, max_length
    name = 'choices of ChosenFeedForward'
    check_choices(self.choices, decoder.num_layers, name)
    if self.twins is None:
      if TWIN in self.choices:
        raise ValueError(
          f'{name} {self.choices} has the twin of layer '
          f'{self.choices.index(TWIN)}, and there are no twins; give twins='
          'runs.load_twins(model_dir)'
        )
      return self
    checks.check_no_class(self.twins, 'twins of ChosenFeedForward')
    if not isinstance(self.twins, SmallTwins):
      raise ValueError(
        f'twins of ChosenFeedForward is {self.twins!r}; give SmallTwins, such '
        'as runs.load_twins(model_dir)'
      )
    return dataclasses.replace(self, twins=self.twins.check(decoder))

  def before(self, state: PyTree, view: PlanView) -> tuple[PyTree, LayerWork]:
    """Asks for attention, and for what was chosen for the layer."""
    if set(self.choices) == {OWN}:
      return state, LayerWork()
    if isinstance(view.layer, int):
      choice = self.choices[view.layer]
      return state, LayerWork(feed_forward=None if choice == OWN else choice)
    choice = jnp.array(self.choices, jnp.int32)[view.layer]
    return state, LayerWork(
      feed_forward=jnp.broadcast_to(choice, view.active.shape)
    )
