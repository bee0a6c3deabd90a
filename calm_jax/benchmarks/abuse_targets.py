"""What delaying inputs are aimed at: the exits of tokens, or of an encoder."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from calm_jax import decoding, evaluation, exits, interfaces
from calm_jax.benchmarks.abuse_batches import (
  Sources,
  batches_of,
  filled,
  gradients_of,
)
from calm_jax.evaluation import encoder_passes, text_metrics


class Target(Protocol):
  """What decodes inputs under an exit rule, and says which way to turn them."""

  @property
  def metric(self) -> text_metrics.Metric:
    """How alike two of its outputs are, in [0, 1]."""
    ...

  def decode(
    self, inputs: Sources, rule: interfaces.ExitRule
  ) -> evaluation.DecodedDataset:
    """Returns the outputs of inputs, and where they left."""
    ...

  def gradients(self, climbs: Sequence[evaluation.Climb]) -> Sources:
    """Returns float [S, D] for the best input of each search."""
    ...

  def table(self) -> np.ndarray:
    """Returns how the encoder embeds tokens, float [V, D]."""
    ...


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class TokenExits:
  """A decoder whose tokens leave early.

  Attributes:
    bound: the decoder with its parameters.
    source_length: S, what inputs are padded to.
    max_length: T, the most tokens of an output.
    batch_size: B.
    detokenize: ids without padding and without EOS -> text.
    loss: what searches by gradients make small.
  """

  bound: interfaces.BoundDecoder
  source_length: int
  max_length: int
  batch_size: int
  detokenize: Callable[[Sequence[int]], str]
  loss: evaluation.DelayLoss = evaluation.DelayLoss()

  metric = staticmethod(text_metrics.token_f1)

  def __post_init__(self):
    """Raises ValueError for a loss that makes no sense."""
    self.loss.check()

  def decode(
    self, inputs: Sources, rule: interfaces.ExitRule
  ) -> evaluation.DecodedDataset:
    """Decodes inputs.

    Args:
      inputs: int [S] each.
      rule: when tokens leave.
    """
    return evaluation.decode_dataset(
      self.bound,
      batches_of(inputs, self.batch_size, self.source_length),
      detokenize=self.detokenize,
      max_length=self.max_length,
      policy=decoding.ComputePolicy(exit_rule=rule),
    )

  def gradients(self, climbs: Sequence[evaluation.Climb]) -> Sources:
    """Returns the gradients by each embedded input, given its output.

    Args:
      climbs: how far each search has come.
    """

    def of_batch(inputs, part):
      outputs, exit_layers = (
        filled([getattr(one, name) for one in part], len(inputs), nothing)
        for name, nothing in (('tokens', 0), ('exit_layers', -1))
      )
      return evaluation.token_exit_gradients(
        self.bound, inputs, outputs, exit_layers, self.loss
      )

    return gradients_of(climbs, of_batch, self.batch_size, self.source_length)

  def table(self) -> np.ndarray:
    """Returns how the encoder embeds tokens, float [V, D]."""
    encoder: Any = self.bound.decoder.encoder
    return np.asarray(evaluation.embedding_table(encoder, self.bound.params))


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class EncoderExits:
  """A classifier whose inputs leave its encoder early.

  Attributes:
    classifier: the encoder, its parameters and its heads.
    source_length: S, what inputs are padded to.
    batch_size: B.
    loss: what searches by gradients make small.
  """

  classifier: evaluation.DatasetClassifier
  source_length: int
  batch_size: int
  loss: evaluation.DelayLoss = evaluation.DelayLoss()

  metric = staticmethod(text_metrics.same_text)

  def __post_init__(self):
    """Raises ValueError for a loss that makes no sense."""
    self.loss.check()

  def decode(
    self, inputs: Sources, rule: interfaces.ExitRule
  ) -> evaluation.DecodedDataset:
    """Classifies inputs, of which the first layer that is sure says the class.

    Args:
      inputs: int [S] each.
      rule: when inputs leave.
    """
    own = self.classifier
    found = encoder_passes.EncoderPass.run(
      own.encoder,
      own.params,
      own.heads,
      [*batches_of(inputs, self.batch_size, self.source_length)],
    )
    return found.under(own.encoder, rule, own.class_texts)

  def gradients(self, climbs: Sequence[evaluation.Climb]) -> Sources:
    """Returns the gradients by each embedded input.

    Args:
      climbs: how far each search has come.
    """
    own = self.classifier

    def of_batch(inputs, part):
      exit_layers = [one.exit_layers for one in part]
      return evaluation.encoder_exit_gradients(
        own.encoder,
        own.params,
        own.heads,
        inputs,
        filled(exit_layers, len(inputs), -1)[:, 0],
        self.loss,
      )

    return gradients_of(climbs, of_batch, self.batch_size, self.source_length)

  def table(self) -> np.ndarray:
    """Returns how the encoder embeds tokens, float [V, D]."""
    own = self.classifier
    return np.asarray(evaluation.embedding_table(own.encoder, own.params))


def full_outputs(target: Target, inputs: Sources) -> tuple[str, ...]:
  """Returns what a target says of inputs where nothing leaves early."""
  return target.decode(inputs, exits.NeverExit()).texts
