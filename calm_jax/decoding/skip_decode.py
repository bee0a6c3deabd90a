"""SkipDecode: fewer layers for later tokens, the same for all rows of a batch.

A token that exits early saves nothing while another row of its batch goes on,
and its layers' K/V must be made from something. Here (arXiv 2307.02628) depth
is a matter of the position alone, and never rises, so that batches agree and
nothing is ever missing: the first layers run always, then the TOP ones, and
what runs at a position has run at all positions before it.
"""

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np

from calm_jax import checks
from calm_jax.array_types import PyTree
from calm_jax.interfaces import (
  LayeredDecoder,
  LayerWork,
  PlansAhead,
  PlanView,
  Segment,
  StatelessSlot,
)
from calm_jax.pytrees import register_pytree


@register_pytree
@dataclasses.dataclass(frozen=True)
class SkipDecode(PlansAhead, StatelessSlot):
  """Runs `max_layers` at the first position, ever fewer, then `min_layers`.

  Linear in between (arXiv 2307.02628). Position t runs the first w layers and
  the last e_t - w ones. The model has to be trained for it
  (`training.ScheduledDepths`). Rows that share their positions run a program of
  their own for each depth, with no other layer in it; where they do not, as in
  `decode_queue`, the program of the row that is behind runs, and the others sit
  out what they need not.

  Attributes:
    max_layers: layers at the first position, 1..L.
    min_layers: layers from position `length` - 1 on, 1..`max_layers`.
    warmup_layers: w, first layers that always run, 0..`min_layers`.
    length: positions that the schedule is spread over; T of the decode if None.
    segmented: whether every depth has a program of its own. False makes one
      program for all, with a branch around every layer.
  """

  max_layers: int = dataclasses.field(metadata=dict(static=True))
  min_layers: int = dataclasses.field(metadata=dict(static=True))
  warmup_layers: int = dataclasses.field(default=1, metadata=dict(static=True))
  length: int | None = dataclasses.field(
    default=None, metadata=dict(static=True)
  )
  segmented: bool = dataclasses.field(default=True, metadata=dict(static=True))

  every_layer = False

  def __post_init__(self):
    """Raises ValueError for a schedule that rises, or is none."""
    for name in ('max_layers', 'min_layers'):
      checks.check_whole(getattr(self, name), f'{name} of SkipDecode', low=1)
    checks.check_whole(self.warmup_layers, 'warmup_layers', low=0)
    if self.length is not None:
      checks.check_whole(self.length, 'length of SkipDecode', low=1)
    if self.min_layers > self.max_layers:
      raise ValueError(
        f'min_layers {self.min_layers} is more than max_layers '
        f'{self.max_layers}: depth would rise, and layers that join later lack '
        'the keys and values of earlier positions; exchange them'
      )
    if self.warmup_layers > self.min_layers:
      raise ValueError(
        f'warmup_layers {self.warmup_layers} are more than min_layers '
        f'{self.min_layers}, which they are part of; give fewer'
      )

  @property
  def may_skip_for_all(self) -> bool:
    """Whether layers are in the program that no row may want."""
    return not self.segmented

  def check(
    self, decoder: LayeredDecoder, batch_size: int, max_length: int
  ) -> 'SkipDecode':
    """Returns itself with its length; raises ValueError for too many layers."""
    del batch_size
    checks.check_whole(
      self.max_layers,
      'max_layers of SkipDecode',
      low=1,
      high=decoder.num_layers,
    )
    return self.at_output_length(max_length)

  def at_output_length(self, max_length: int) -> 'SkipDecode':
    """Returns the same for outputs of T tokens, if no length was given."""
    if self.length is not None:
      return self
    return dataclasses.replace(self, length=max_length)

  def depths(self, max_length: int) -> tuple[int, ...]:
    """Returns e_t, how many layers run at each position up to T.

    >>> SkipDecode(6, 2, length=5).depths(7)
    (6, 5, 4, 3, 2, 2, 2)
    """
    positions = np.arange(max_length)
    length = self.length or max_length
    share = np.clip(positions / max(length - 1, 1), 0.0, 1.0)
    depths = self.max_layers - (self.max_layers - self.min_layers) * share
    return tuple(int(depth) for depth in np.floor(depths + 0.5))

  def segments(self, num_layers: int, max_length: int) -> tuple[Segment, ...]:
    """Returns the runs of positions that have the same depth."""
    if not self.segmented:
      return super().segments(num_layers, max_length)
    depths = self.depths(max_length)
    found, end = [], 0
    for depth, same in itertools.groupby(depths):
      end += len(list(same))
      found.append(Segment(end, self._layers(depth, num_layers)))
    return tuple(found)

  def _layers(self, depth: int, num_layers: int) -> tuple[int, ...]:
    """Returns the layers that run at a depth."""
    checks.check_whole(
      depth, 'the number of layers that run', low=1, high=num_layers
    )
    first = self.warmup_layers
    top = range(num_layers - (depth - first), num_layers)
    return (*range(first), *top)

  def init(
    self, decoder: LayeredDecoder, batch_size: int, max_length: int
  ) -> PyTree:
    """Returns bool [B, T, L], which layers run at each position."""
    depths = self.depths(max_length)
    runs = np.zeros((max_length, decoder.num_layers), bool)
    for position, depth in enumerate(depths):
      runs[position, list(self._layers(depth, decoder.num_layers))] = True
    return jnp.broadcast_to(runs, (batch_size, *runs.shape))

  def before(self, state: PyTree, view: PlanView) -> tuple[PyTree, LayerWork]:
    """Asks for the layer where it runs, and for K/V nowhere else."""
    rows = jnp.arange(state.shape[0])
    runs = state[rows, view.positions, view.layer]
    return state, LayerWork(attention=runs, feed_forward=runs, fill=runs)
