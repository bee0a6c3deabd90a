"""When drafted tokens are checked at full depth: the slot `verification`.

A token that left early is a draft. After some of them, the positions that they
were drafted at run the layers they lack in one block, as companions of the
present position (`CatchUp`), and the full model's own tokens are chosen there:
drafts that agree stay, the first that does not is replaced, and what was built
on it is dropped. So what comes out is what the full model says, to the token;
how early the drafts leave decides the speed alone.

That is self-speculative decoding as LayerSkip (arXiv 2404.16710), Kangaroo
(arXiv 2404.18911) and Draft & Verify (arXiv 2309.08168) do it, with any exit
rule of CALM's kind as the drafter and each token at its own depth.
"""

import dataclasses

import jax.numpy as jnp

from calm_jax import checks
from calm_jax.array_types import Array, PyTree
from calm_jax.interfaces import LayeredDecoder, StatelessSlot
from calm_jax.pytrees import register_pytree


class _Unlearning(StatelessSlot):
  """What learns nothing from checks."""

  def observe(
    self, state: PyTree, checked: Array, accepted: Array, rejected: Array
  ) -> PyTree:
    """Returns the state as it is."""
    del checked, accepted, rejected
    return state


@register_pytree
@dataclasses.dataclass(frozen=True)
class NeverVerify(_Unlearning):
  """Takes early tokens for what they are: CALM. The null object."""

  drafts_ahead = False

  @property
  def tokens(self) -> int:
    """Returns 0."""
    return 0

  def due(self, state: PyTree, drafts: Array, confidences: Array) -> Array:
    """Returns no row."""
    del state, confidences
    return jnp.zeros(drafts.shape, bool)


@register_pytree
@dataclasses.dataclass(frozen=True)
class VerifyEvery(_Unlearning):
  """Checks drafts once there are so many, or once one is doubtful.

  A token that runs all layers by itself checks those before it on the way.

  Attributes:
    tokens: the most drafts between two checks, at least 1.
    stop_below: float32 [], in [0, 1]: a draft of lower confidence is the last
      before a check; 0 for none. For drafters of fixed depth, which do not go
      deeper where they are in doubt.
  """

  tokens: int = dataclasses.field(default=8, metadata=dict(static=True))
  stop_below: Array | float = 0.0

  drafts_ahead = False

  def check(self, decoder: LayeredDecoder, batch_size: int, max_length: int):
    """Returns itself with a float32 leaf; raises ValueError on bad numbers."""
    del decoder, batch_size, max_length
    return VerifyEvery(*_checked_limits(self))

  def due(self, state: PyTree, drafts: Array, confidences: Array) -> Array:
    """Returns the rows with enough drafts, or a doubtful one: bool [B]."""
    del state
    return (drafts >= self.tokens) | (confidences < self.stop_below)


@register_pytree
@dataclasses.dataclass(frozen=True)
class Acceptance:
  """What a row has seen of its drafts, older checks weighing less.

  Attributes:
    accepted: float32 [B], drafts that the full model agreed with.
    judged: float32 [B], those and the ones that it replaced.
  """

  accepted: Array
  judged: Array


@register_pytree
@dataclasses.dataclass(frozen=True)
class VerifyAdaptively:
  """Checks drafts once there are as many as pay, by what was accepted so far.

  DEL (arXiv 2504.05598), with the exit rule in charge of the depth: a row keeps
  the share a of its drafts that were accepted, and drafts d tokens, where the
  expected tokens per cost, (1 - a^(d+1)) / (1 - a) / (1 + c d), are most.

  Attributes:
    tokens: the most drafts between two checks, at least 1.
    draft_cost: c, float32 [], in (0, 1]: what a draft costs, and adds to its
      check, in tokens of full depth: E/L of one that leaves after layer E.
    stop_below: as for `VerifyEvery`.
    memory: float32 [], in [0, 1): what earlier drafts weigh after a check.
    first: float32 [], in (0, 1): a before the first check, which counts as much
      as two drafts.
  """

  tokens: int = dataclasses.field(default=8, metadata=dict(static=True))
  draft_cost: Array | float = 0.25
  stop_below: Array | float = 0.0
  memory: Array | float = 0.9
  first: Array | float = 0.7

  drafts_ahead = False

  def check(self, decoder: LayeredDecoder, batch_size: int, max_length: int):
    """Returns itself with float32 leaves; raises ValueError on bad numbers."""
    del decoder, batch_size, max_length
    tokens, stop_below = _checked_limits(self)
    least = 1e-6
    bounds = dict(
      draft_cost=(least, 1.0, 'the cost of a draft in tokens of full depth'),
      memory=(0.0, 1.0 - least, 'what earlier drafts weigh'),
      first=(least, 1.0 - least, 'a share of drafts that are accepted'),
    )
    numbers = {
      name: checks.checked_array(
        getattr(self, name),
        f'{name} of VerifyAdaptively',
        low=low,
        high=high,
        remedy=f'give {what}, between 0 and 1',
      )
      for name, (low, high, what) in bounds.items()
    }
    return VerifyAdaptively(tokens, stop_below=stop_below, **numbers)

  def init(
    self, decoder: LayeredDecoder, batch_size: int, max_length: int
  ) -> Acceptance:
    """Returns what is believed before the first check."""
    del decoder, max_length
    judged = jnp.full((batch_size,), 2.0, jnp.float32)
    return Acceptance(accepted=judged * self.first, judged=judged)

  def due(self, state: Acceptance, drafts: Array, confidences: Array) -> Array:
    """Returns the rows with as many drafts as pay, or a doubtful one."""
    return (drafts >= self.best_lengths(state)) | (
      confidences < self.stop_below
    )

  def best_lengths(self, state: Acceptance) -> Array:
    """Returns how many drafts pay most, int32 [B], in 1..tokens."""
    lengths = jnp.arange(1, self.tokens + 1)
    share = (state.accepted / state.judged)[:, None]
    # 1 + a + ... + a^d, also where a is 1.
    kept = 1.0 + jnp.cumsum(share ** lengths.astype(jnp.float32), axis=1)
    return 1 + jnp.argmax(kept / (1.0 + self.draft_cost * lengths), axis=1)

  def observe(
    self, state: Acceptance, checked: Array, accepted: Array, rejected: Array
  ) -> Acceptance:
    """Returns what is known after a check of some rows."""
    judged = accepted + rejected
    return Acceptance(
      accepted=jnp.where(
        checked, self.memory * state.accepted + accepted, state.accepted
      ),
      judged=jnp.where(
        checked, self.memory * state.judged + judged, state.judged
      ),
    )


def _checked_limits(
  verification: VerifyEvery | VerifyAdaptively,
) -> tuple[int, Array]:
  """Returns `tokens` and `stop_below` of one; raises ValueError on bad ones."""
  name = type(verification).__name__
  checks.check_whole(verification.tokens, f'tokens of {name}', low=1)
  stop_below = checks.checked_array(
    verification.stop_below,
    f'stop_below of {name}',
    low=0.0,
    high=1.0,
    remedy='give a confidence in [0, 1], 0 for no such limit',
  )
  return verification.tokens, stop_below
