"""How good outputs are, against references and against the full model's."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from calm_jax import evaluation, records, runs
from calm_jax.benchmarks import token_inputs
from calm_jax.benchmarks.text_inputs import Inputs
from calm_jax.evaluation import text_metrics


class OutputScores:
  """Scores the outputs of one run's inputs."""

  def __init__(self, run: runs.LoadedRun, inputs: Inputs):
    """Takes the run that speaks, and what was asked of it."""
    self._run, self._inputs = run, inputs
    self._references = [[one] for one in inputs.references]

  def texts(self, tokens: np.ndarray) -> list[str]:
    """Returns outputs, int [N or more, T], as N texts."""
    rows = tokens[: len(self._inputs.sources)]
    decode = self._run.tokenizer.decode
    return [decode(token_inputs.without_padding(row)) for row in rows]

  def distance(self, texts: Sequence[str], full: Sequence[str]) -> float:
    """Returns the mean textual loss against the full model's texts."""
    return float(self._losses(texts, full, 'textual', '').mean())

  def quality(self, texts: Sequence[str]) -> float:
    """Returns the mean similarity to the references, in points of 100."""
    metric = text_metrics.get_metric(self._inputs.metric)
    pairs = zip(texts, self._references, strict=True)
    return 100 * float(
      np.mean([metric(text, wanted) for text, wanted in pairs])
    )

  def outcomes(
    self,
    promises: Sequence[records.PromisedLoss],
    texts: Sequence[str],
    full: Sequence[str],
  ) -> tuple[records.PromiseOutcome, ...]:
    """Returns what came of promises on these inputs."""
    found = []
    for one in promises:
      losses = self._losses(texts, full, one.loss, one.metric)
      found.append(
        records.PromiseOutcome(
          **dataclasses.asdict(one),
          mean=float(losses.mean()),
          standard_error=float(losses.std(ddof=1) / math.sqrt(len(losses))),
        )
      )
    return tuple(found)

  def _losses(self, texts, full, loss: str, metric: str) -> np.ndarray:
    """Returns the loss of every output, float [N]."""
    return evaluation.get_loss(loss, metric or self._inputs.metric).of_texts(
      texts, full, self._references
    )
