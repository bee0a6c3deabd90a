"""Decoding metrics while training, as a callable for the training loop.

Teacher-forced loss says little about free-running text, and nothing about where
tokens would leave. Every few evaluations the validation split is decoded: by
the full model, and by a chosen early-exit policy.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from calm_jax import decoding, evaluation, model
from calm_jax.evaluation import corpus_metrics
from calm_jax.tokenizer import Tokenizer
from calm_jax.training.evaluators import Evaluator


def decoding_evaluator(
  config: model.T5Config,
  batches_fn: Callable[[], Iterable[Mapping[str, Any]]],
  *,
  tokenizer: Tokenizer,
  policies: Mapping[str, decoding.ComputePolicy],
  metrics: Sequence[str],
  max_length: int,
) -> Evaluator:
  """Returns an evaluator `(params, step) -> metrics` that decodes.

  It returns `<policy>_<metric>` in percent and `<policy>_mean_exit_layer` for
  every policy, and `<policy>_mean_encoder_layer` where sources may leave early.

  Args:
    config: the model.
    batches_fn: returns the batches of `data.eval_batches` each time.
    tokenizer: turns tokens into texts.
    policies: what to decode with, by the name that metrics get.
    metrics: names in `corpus_metrics.CORPUS_METRICS`.
    max_length: the most tokens of an output.

  Raises:
    ValueError: if a metric is unknown or there are no policies.
  """
  unknown = sorted(set(metrics) - set(corpus_metrics.CORPUS_METRICS))
  if unknown:
    raise ValueError(
      f'unknown metrics {unknown}; known: '
      f'{sorted(corpus_metrics.CORPUS_METRICS)}'
    )
  if not policies:
    raise ValueError('there are no policies to decode with')
  decoder = model.as_layered_decoder(config)

  def evaluate(params, step):
    del step
    bound = decoding.bind(decoder, params)
    batches = list(batches_fn())
    values = {}
    for name, policy in policies.items():
      decoded = evaluation.decode_dataset(
        bound,
        batches,
        detokenize=tokenizer.decode,
        max_length=max_length,
        eos_id=tokenizer.eos_id,
        policy=policy,
      )
      for metric in metrics:
        values[f'{name}_{metric}'] = corpus_metrics.corpus_score(
          metric, decoded.texts, decoded.references
        )
      values[f'{name}_mean_exit_layer'] = decoded.mean_exit_layer
      if decoded.encoder_exit_layers is not None:
        values[f'{name}_mean_encoder_layer'] = decoded.mean_encoder_layer
    return values

  return evaluate


def every(steps: int, evaluator: Evaluator, *, last_step: int) -> Evaluator:
  """Returns an evaluator that works at multiples of `steps` and at the end.

  In between it returns nothing, and takes no time.
  """

  def evaluate(params, step):
    if step % steps and step != last_step:
      return {}
    return evaluator(params, step)

  return evaluate


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodingPlan:
  """Decoding the validation split while training.

  Attributes:
    every: steps between decodes, a multiple of the steps between evaluations,
      of which it is part; there is one at the last step as well. None for
      never.
    policy: an early-exit policy to decode with besides the full model.
    threshold: the policy's threshold, in [0, 1]: nothing is certified yet.
    metrics: names in `corpus_metrics.CORPUS_METRICS`.
    max_examples: validation examples decoded.
  """

  every: int | None = None
  policy: decoding.ComputePolicy | None = None
  threshold: float = 0.9
  metrics: Sequence[str] = ('bleu',)
  max_examples: int = 200

  def __post_init__(self):
    for name in ('every', 'max_examples'):
      value = getattr(self, name)
      if value is not None and value < 1:
        raise ValueError(f'{name} must be 1 or more, got {value!r}')

  def check(self, *, eval_every: int, best_metric: str) -> None:
    """Checks that decodes fall on evaluations, and can pick the best one.

    Raises:
      ValueError: if they do not.
    """
    if self.every is None:
      return
    if self.every % eval_every:
      raise ValueError(
        f'decoding every {self.every} steps never meets the evaluations, which '
        f'come every {eval_every}: give a multiple'
      )
    is_ours = best_metric.startswith(('full_', 'early_'))
    if is_ours and self.every != eval_every:
      raise ValueError(
        f'best_metric {best_metric!r} comes every {self.every} steps and '
        f'evaluations every {eval_every}: make the two equal'
      )

  def evaluator(self, config, batches, *, last_step, **arguments):
    """Returns the evaluator for `training.train`.

    Args:
      config: the model.
      batches: `data.eval_batches` of the split, but for max_examples.
      last_step: the step of the last evaluation.
      **arguments: the tokenizer and max_length of `decoding_evaluator`.
    """
    policies = {'full': decoding.ComputePolicy()}
    if self.policy is not None:
      policies['early'] = decoding.with_setting(self.policy, self.threshold)
    evaluator = decoding_evaluator(
      config,
      functools.partial(batches, max_examples=self.max_examples),
      policies=policies,
      metrics=self.metrics,
      **arguments,
    )
    return every(self.every, evaluator, last_step=last_step)
