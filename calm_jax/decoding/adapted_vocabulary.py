"""States read through an adapter per exit: a `readout` around any other.

For a model that is not to be touched: its early layers are read through small
maps trained to make them say what the last layer says (`exit_adapters`). Only
what is read is adapted. The residual stream goes on as it was, and keys and
values are made from it, so that the model is the same with them and without.
"""

import dataclasses

import jax.numpy as jnp

from calm_jax import checks
from calm_jax.array_types import Array, PyTree
from calm_jax.decoding.readouts import FullVocabulary
from calm_jax.exit_adapters import AdaptsExits
from calm_jax.interfaces import BoundDecoder, LayeredDecoder, Reading, Readout
from calm_jax.pytrees import register_pytree


@register_pytree
@dataclasses.dataclass(frozen=True)
class AdaptedVocabulary:
  """Reads like another readout, states adapted to what the head reads.

  States of the last layer are read as they are, to the bit, so that a threshold
  of 1 is the full model where it is with the other readout, and checked drafts
  are the full model's. Measures of logits see adapted ones; those of the state
  alone (`StateSimilarity`, `Classifier`) see the raw state.

  Attributes:
    adapters: trained for this model: `runs.load_exit_adapters(model_dir)`.
    inner: the other readout.
  """

  adapters: AdaptsExits
  inner: Readout = FullVocabulary()

  @property
  def reads_exit_states(self) -> bool:
    """Whether the other readout reads exit states once more."""
    return self.inner.reads_exit_states

  @property
  def needs_whole_matrix(self) -> bool:
    """What the other readout says."""
    return self.inner.needs_whole_matrix

  @property
  def chooses_from_all(self) -> bool:
    """What the other readout says."""
    return self.inner.chooses_from_all

  def keep_rows(self, bound: BoundDecoder) -> 'AdaptedVocabulary':
    """Returns itself with the rows that the other readout keeps."""
    return dataclasses.replace(self, inner=self.inner.keep_rows(bound))

  def over_all(self) -> Readout:
    """Returns that of the other readout: what is checked ran all layers."""
    return self.inner.over_all()

  def num_outputs(
    self, vocab_size: int, *, layer: Array | int, first: Array | bool
  ) -> Array | int:
    """Returns what the other readout says."""
    return self.inner.num_outputs(vocab_size, layer=layer, first=first)

  def extra_products(self, layer: Array | int) -> Array | int:
    """Returns those of the adapter, where there is one, and the other's."""
    is_early = jnp.asarray(layer) < self.adapters.num_layers - 1
    own = self.adapters.products * is_early
    return own + self.inner.extra_products(layer)

  def check(
    self, decoder: LayeredDecoder, batch_size: int, max_length: int
  ) -> 'AdaptedVocabulary':
    """Returns itself, checked.

    Raises:
      ValueError: for adapters of another decoder, or adapters around adapters.
      TypeError: for a class where an object of it is wanted.
    """
    checks.check_no_class(self.adapters, 'adapters of AdaptedVocabulary')
    checks.check_no_class(self.inner, 'inner of AdaptedVocabulary')
    if not isinstance(self.adapters, AdaptsExits):
      raise ValueError(
        f'adapters of AdaptedVocabulary is {self.adapters!r}; give '
        'ExitAdapters, such as runs.load_exit_adapters(model_dir)'
      )
    if isinstance(self.inner, AdaptedVocabulary):
      raise ValueError(
        'inner of AdaptedVocabulary is an AdaptedVocabulary itself, and states '
        'are adapted once; give the readout that it is around, such as '
        'FullVocabulary()'
      )
    return AdaptedVocabulary(
      self.adapters.check(decoder),
      self.inner.check(decoder, batch_size, max_length),
    )

  def init(
    self, decoder: LayeredDecoder, batch_size: int, max_length: int
  ) -> PyTree:
    """Returns the other readout's state."""
    return self.inner.init(decoder, batch_size, max_length)

  def step(
    self,
    state: PyTree,
    bound: BoundDecoder,
    *,
    hidden: Array,
    layer: Array | int,
    first: Array | bool,
    active: Array,
  ) -> tuple[PyTree, Reading]:
    """Returns state, and what the other readout reads of adapted states."""
    return self.inner.step(
      state,
      bound,
      hidden=self.adapters(hidden, layer),
      layer=layer,
      first=first,
      active=active,
    )
