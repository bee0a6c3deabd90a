"""The loss of one exit from its logits, and its gradient by them.

Written out by hand, because the gradient that JAX would derive keeps several
arrays of the size of the logits, the largest ones of the whole program. The
definition is T5X's (its `losses.compute_weighted_cross_entropy`): soft targets,
the smoothed distribution's entropy taken off, and z-loss.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from calm_jax.array_types import Array
from calm_jax.training.teacher import Mixture


@dataclasses.dataclass(frozen=True)
class LossSettings:
  """The static part of the loss.

  Attributes:
    layer_weights: one weight per decoder layer, as `check_layer_weights`
      gives.
    z_loss: coefficient of log(Z)^2, which keeps logits from drifting (T5X).
    label_smoothing: probability mass taken from the target, in [0, 1).
    loss_normalizer: what the sum over target tokens is divided by. None: the
      number of target tokens of the batch. A number > 0 weighs every token
      alike, however full its batch is; 233472 = 2048 x 114 goes with the public
      T5 checkpoints (T5X's LOSS_NORMALIZING_FACTOR).
  """

  layer_weights: tuple[float, ...]
  z_loss: float = 1e-4
  label_smoothing: float = 0.0
  loss_normalizer: float | None = None

  def __post_init__(self):
    if not (np.isfinite(self.z_loss) and self.z_loss >= 0):
      raise ValueError(f'z_loss must be finite and >= 0, got {self.z_loss!r}')
    if not 0 <= self.label_smoothing < 1:
      raise ValueError(
        f'label_smoothing must lie in [0, 1), got {self.label_smoothing!r}'
      )
    normalizer = self.loss_normalizer
    if normalizer is not None and not (
      isinstance(normalizer, (int, float))
      and not isinstance(normalizer, bool)
      and np.isfinite(normalizer)
      and normalizer > 0
    ):
      raise ValueError(
        'loss_normalizer must be a finite number > 0, or None for the number '
        f'of target tokens of each batch; got {normalizer!r}'
      )


@dataclasses.dataclass(frozen=True)
class TokenLoss:
  """The loss of one exit and what its gradient needs again.

  Attributes:
    loss: scalar, with z-loss and smoothing.
    cross_entropy: scalar, without.
    accuracy: scalar.
    log_normalizer: [N], log(Z) of the softmax.
    mixed: what was given, for the gradient.
  """

  loss: Array
  cross_entropy: Array
  accuracy: Array
  log_normalizer: Array
  mixed: Mixture | None = None


def token_loss(
  logits: Array,
  targets: Array,
  token_weights: Array,
  settings: LossSettings,
  *,
  mixed: Mixture | None = None,
) -> TokenLoss:
  """Computes the loss of one exit, a weighted sum over N positions.

  With a teacher q and its share s it is (1 - s) times the cross-entropy of the
  targets plus s KL(q || p); z-loss is the same.

  Args:
    logits: float32 [N, V].
    targets: int32 [N].
    token_weights: float32 [N].
    settings: z-loss and label smoothing.
    mixed: a teacher and its share; None for the targets alone.
  """
  highest = logits.max(-1)
  log_normalizer = highest + jnp.log(
    jnp.exp(logits - highest[..., None]).sum(-1)
  )
  target_logit = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
  cross_entropy = log_normalizer - target_logit
  loss = cross_entropy
  if settings.label_smoothing:
    # sum_v p_v (log Z - logit_v) for the smoothed p, less its entropy.
    vocab_size = logits.shape[-1]
    target, others, entropy = _smoothing(settings, vocab_size)
    sum_all = vocab_size * log_normalizer - logits.sum(-1)
    loss = (target - others) * cross_entropy + others * sum_all - entropy
  if mixed is not None:
    distance = mixed.teacher.distance(logits, log_normalizer)
    loss = (1.0 - mixed.share) * loss + mixed.share * distance
  loss = loss + settings.z_loss * jnp.square(log_normalizer)
  # A tie with the highest logit counts as right; argmax would cost a pass.
  correct = (target_logit >= highest).astype(jnp.float32)
  return TokenLoss(
    loss=(loss * token_weights).sum(),
    cross_entropy=(cross_entropy * token_weights).sum(),
    accuracy=(correct * token_weights).sum(),
    log_normalizer=log_normalizer,
    mixed=mixed,
  )


def logits_gradient(
  logits: Array,
  targets: Array,
  token_weights: Array,
  parts: TokenLoss,
  settings: LossSettings,
) -> Array:
  """The gradient of `token_loss(...).loss` by the logits, [N, V].

  Args:
    logits: float32 [N, V].
    targets: int32 [N].
    token_weights: float32 [N].
    parts: what `token_loss` returned for these arguments.
    settings: the same settings.
  """
  target, others, _ = _smoothing(settings, logits.shape[-1])
  log_normalizer = parts.log_normalizer[..., None]
  probabilities = jnp.exp(logits - log_normalizer)
  # A comparison fuses into this one pass over the logits; the gradient of a
  # gather would be a scatter into zeros of their size. The barrier ties it to
  # this exit: XLA would compute it once for all and keep an array of that size.
  targets, _ = jax.lax.optimization_barrier((targets, parts.log_normalizer))
  columns = jax.lax.broadcasted_iota(targets.dtype, logits.shape, 1)
  wanted = jnp.where(columns == targets[:, None], target, others)
  if (mixed := parts.mixed) is not None:
    # The gradient of KL(q || p) by the logits is p - q.
    wanted = (
      1.0 - mixed.share
    ) * wanted + mixed.share * mixed.teacher.probabilities
  gradient = (
    probabilities * (1.0 + 2.0 * settings.z_loss * log_normalizer) - wanted
  )
  return gradient * token_weights[..., None]


def _smoothing(settings: LossSettings, vocab_size: int):
  """Returns the target's probability, that of others, and the entropy."""
  others = settings.label_smoothing / max(vocab_size - 1, 1)
  target = 1.0 - settings.label_smoothing
  entropy = -(
    target * np.log(target)
    + (vocab_size - 1) * others * np.log(max(others, 1e-20))
  )
  return target, others, float(entropy)
