"""A batch that shrinks as its rows end.

Rows of a batch end at different tokens, and until the last one has every step
computes them all. Here, once few enough go on, they do so as a smaller batch of
their own, in the same program: what is static is how small, not when.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from calm_jax import checks
from calm_jax.decoding.depth_loops import UnrolledDepthLoop
from calm_jax.decoding.states import Carry
from calm_jax.interfaces import BoundDecoder, DepthLoop


@dataclasses.dataclass(frozen=True)
class ShrinkingBatch:
  """A depth loop, in batches that leave rows behind that have ended.

  A batch of B rows goes on as one of B // shrink_by once no more are alive, and
  that one again, down to `smallest` rows. Outputs are those of the other depth
  loop. Rows are gathered once per size, with their caches, and put back at the
  end; programs are as many times larger as there are sizes, so that it is for
  batches whose outputs differ in length. Beams, which leave nothing of a
  request behind, decode as by the other loop.

  Attributes:
    loop: the other depth loop.
    shrink_by: at least 2.
    smallest: the smallest batch that a larger one shrinks to, at least 1.
  """

  loop: DepthLoop = UnrolledDepthLoop()
  shrink_by: int = 4
  smallest: int = 1

  def __post_init__(self):
    """Raises ValueError or TypeError for bad numbers and for no depth loop."""
    checks.check_whole(self.shrink_by, 'shrink_by', low=2)
    checks.check_whole(self.smallest, 'smallest', low=1)
    if isinstance(self.loop, type) or not hasattr(self.loop, 'traced_layers'):
      raise TypeError(
        f'loop is {self.loop!r}; give a depth loop such as '
        'decoding.UnrolledDepthLoop()'
      )

  @property
  def traced_layers(self) -> bool:
    """Which layout of the parameters the other loop wants."""
    return self.loop.traced_layers

  def __call__(self, layers: Any, rows: Any, memory: Any) -> tuple[Any, Any]:
    """Runs the layers of one position by the other loop."""
    return self.loop(layers, rows, memory)

  def smaller(self, batch_size: int) -> int:
    """Returns the rows of the batch that one shrinks to; 0 if it does not.

    >>> [ShrinkingBatch().smaller(rows) for rows in (64, 16, 15, 3)]
    [16, 4, 3, 0]
    """
    size = batch_size // self.shrink_by
    return size if size >= self.smallest else 0


def run_rows(
  carry: Carry,
  number: jax.Array,
  bound: BoundDecoder,
  run_until: Callable[[jax.Array, Carry, int], tuple[jax.Array, Carry]],
) -> tuple[jax.Array, Carry]:
  """Runs a token loop in batches that shrink, where the depth loop says so.

  Args:
    carry: the decode so far, of R rows.
    number: int32, steps so far.
    bound: the decoder with its depth loop.
    run_until: runs (number, carry) until its loop is done, or until no more
      than so many rows are alive.

  Returns:
    The number of steps and the carry after them.
  """
  smaller = getattr(bound.depth_loop, 'smaller', None)
  few = 0
  if smaller is not None and carry.search is None:
    few = smaller(carry.alive.shape[0])
  number, carry = run_until(number, carry, few)
  if not few:
    return number, carry
  # Where the loop ended with more of them alive, it is done for the few, too.
  chosen = jnp.argsort(~carry.alive, stable=True)[:few]
  done = carry.alive.sum() > few
  part = carry.take_rows(chosen, bound.decoder)
  alive = part.alive
  part = dataclasses.replace(part, alive=alive & ~done)
  number, part = run_rows(part, number, bound, run_until)
  part = dataclasses.replace(part, alive=jnp.where(done, alive, part.alive))
  return number, jax.tree.map(
    lambda leaf, new: leaf.at[chosen].set(new, unique_indices=True), carry, part
  )
