"""Beam search written down plainly: Python lists, teacher forcing, no cache.

Nothing is shared with `calm_jax.decoding`. Hypotheses are lists of tokens with
the layers that each took; what follows one is found by running the whole masked
decoder on it, once per layer until the margin of its softmax is high enough.
The search goes on to the last position and keeps all that ended.
"""

import dataclasses
import functools

import jax
import numpy as np

from calm_jax import model


@dataclasses.dataclass(frozen=True)
class Hypothesis:
  """An output, perhaps unfinished."""

  score: float = 0.0
  tokens: tuple[int, ...] = ()
  exit_layers: tuple[int, ...] = ()

  def rank(self, length_penalty):
    return self.score / ((5 + len(self.tokens)) / 6) ** length_penalty


class Reference:
  """A model, an input and when its tokens stop.

  Args:
    config: of the model.
    params: its parameters.
    source: int [S].
    max_length: T.
    threshold: of the softmax margin, None for the full model.
    suppressed: ids that are never said.
    prefix: tokens that outputs begin with, at full depth.
  """

  def __init__(
    self,
    config,
    params,
    source,
    *,
    max_length,
    threshold=None,
    suppressed=(),
    prefix=(),
  ):
    self.config, self.params, self.source = config, params, np.array([source])
    self.max_length, self.threshold = max_length, threshold
    self.suppressed, self.prefix = list(suppressed), tuple(prefix)
    self.margins = []

  def logits(self, hypothesis, layers):
    """Returns logits [V] at the next position, read after `layers` layers."""
    place = len(hypothesis.tokens)
    tokens = np.zeros((1, self.max_length), np.int32)
    tokens[0, 1 : place + 1] = hypothesis.tokens[: self.max_length - 1]
    depths = np.full(self.max_length, layers)
    depths[:place] = hypothesis.exit_layers
    mask = np.arange(self.config.num_decoder_layers) < depths[:, None]
    run = _masked_decoder(self.config)
    logits = run(self.params, self.source, tokens, mask[None])
    logits = np.array(logits[0, place], np.float64)
    logits[self.suppressed] = -np.inf
    return logits

  def next(self, hypothesis):
    """Returns log-probabilities [V] of the next token and its exit layer."""
    num_layers, place = self.config.num_decoder_layers, len(hypothesis.tokens)
    if place < len(self.prefix):
      log_probabilities = np.full(self.config.vocab_size, -np.inf)
      log_probabilities[self.prefix[place]] = 0.0
      return log_probabilities, num_layers
    first = num_layers if self.threshold is None else 1
    for layers in range(first, num_layers + 1):
      logits = self.logits(hypothesis, layers)
      probabilities = np.exp(logits - logits.max())
      probabilities /= probabilities.sum()
      if layers < num_layers:
        margin = np.diff(np.sort(probabilities)[-2:])[0]
        self.margins.append(margin)
        if margin >= self.threshold:
          break
    with np.errstate(divide='ignore'):
      return np.log(probabilities), layers

  def search(self, num_beams, length_penalty, eos_id):
    """Returns finished and live hypotheses, each best first."""
    live, finished = [Hypothesis()], []
    for _ in range(self.max_length):
      continuations = []
      for hypothesis in live:
        log_probabilities, layers = self.next(hypothesis)
        for token in np.flatnonzero(np.isfinite(log_probabilities)):
          continuations.append(
            Hypothesis(
              hypothesis.score + log_probabilities[token],
              (*hypothesis.tokens, int(token)),
              (*hypothesis.exit_layers, layers),
            )
          )
      continuations.sort(key=lambda one: -one.score)
      best = continuations[: 2 * num_beams]
      finished += [one for one in best if one.tokens[-1] == eos_id]
      live = [one for one in best if one.tokens[-1] != eos_id][:num_beams]
    return tuple(
      sorted(some, key=lambda one: -one.rank(length_penalty))
      for some in (finished, live)
    )


@functools.cache
def _masked_decoder(config):
  return jax.jit(functools.partial(model.decode_with_layer_mask, config))
