"""Scores of the outputs that a model's routes give, kept on disk.

A route is decoded as the smaller model of its layers (`model.truncate`), which
says what the whole one says where the same layers run for every token. Programs
are shared by all routes of as many layers.
"""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from calm_jax import decoding, evaluation, model, runs
from calm_jax.benchmarks import token_inputs, whole_outputs
from calm_jax.benchmarks.kept_scores import KeptScores
from calm_jax.benchmarks.routes import Route
from calm_jax.benchmarks.text_inputs import Inputs

# What is known of each output.
SCORES = ('quality', 'consistency')


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How the outputs are drawn that repeat a score.

  Attributes:
    num_samples: K, outputs of each route and input; 0 for none.
    temperature: of their softmax.
    seed: of the draws; no two routes share one.
  """

  num_samples: int
  temperature: float
  seed: int

  @property
  def sampler(self) -> decoding.Sampler:
    """Draws them."""
    return decoding.Temperature(self.temperature)

  def key(self, route: Route) -> jax.Array:
    """Returns the key of a route's draws."""
    return functools.reduce(
      jax.random.fold_in, route, jax.random.key(self.seed)
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
  """The scores of R routes on N inputs, each under its name in `SCORES`.

  Attributes:
    routes: R routes.
    greedy: float [N, R], of greedy outputs.
    sampled: float [K, N, R], of K outputs that were drawn.
  """

  routes: Sequence[Route]
  greedy: dict[str, np.ndarray]
  sampled: dict[str, np.ndarray]


class RouteScorer:
  """Decodes the inputs of one run by routes, each once."""

  def __init__(
    self,
    run: runs.LoadedRun,
    inputs: Inputs,
    sampling: Sampling,
    *,
    folder: str | os.PathLike,
  ):
    """Opens what was kept of the same inputs, decoded likewise.

    Args:
      run: the model with its tokenizer.
      inputs: what is decoded.
      sampling: how else than greedily.
      folder: scores are kept in a folder of it, one file per route.
    """
    self._run, self._inputs, self._sampling = run, inputs, sampling
    self._loss = evaluation.get_loss('textual', inputs.metric)
    self._kept = KeptScores(folder, self._about())

  def score(
    self, every: Sequence[Route], *, progress: Callable[[str], None]
  ) -> Scores:
    """Returns the scores of routes, decoded where they are not kept.

    Args:
      every: the routes.
      progress: gets a line per route.
    """
    full = tuple(range(self._run.config.num_decoder_layers))
    full_texts = self._of_route(full, None)['texts'].tolist()
    found = []
    for number, route in enumerate(every, 1):
      layers = ', '.join(map(str, route))
      done = 'kept' if route in self._kept else 'decoding'
      progress(f'route {number} of {len(every)}: layers {layers} ({done})')
      found.append(self._of_route(route, full_texts))
    return Scores(
      routes=tuple(every),
      greedy={
        name: np.stack([one[name] for one in found], axis=-1) for name in SCORES
      },
      sampled={
        name: np.stack([one[f'sampled_{name}'] for one in found], axis=-1)
        for name in SCORES
      },
    )

  def _of_route(
    self, route: Route, full_texts: Sequence[str] | None
  ) -> dict[str, np.ndarray]:
    """Returns texts [N] and scores, [N] each, and [K, N] where sampled.

    Args:
      route: the layers.
      full_texts: of the full model; None if the route is that.
    """
    if route in self._kept:
      return self._kept[route]
    config, params = model.truncate(self._run.config, self._run.params, route)
    bound = decoding.bind(model.as_layered_decoder(config), params)
    texts = self._texts(bound)
    full_texts = texts if full_texts is None else full_texts
    found = {'texts': np.array(texts, str), **self._scored(texts, full_texts)}
    drawn = []
    if self._sampling.num_samples:
      drawn = [
        self._scored(one, full_texts)
        for one in self._sampled_texts(bound, self._sampling.key(route))
      ]
    for name in SCORES:
      found[f'sampled_{name}'] = np.array([one[name] for one in drawn])
    self._kept[route] = found
    return found

  def _decode(self, bound, **sampling: Any) -> np.ndarray:
    """Returns the tokens of all inputs, [N, T] or [N, K, T]."""
    return whole_outputs.decode_all(
      bound,
      self._inputs.sources,
      decoding.ComputePolicy(),
      self._inputs.max_length,
      suppressed_tokens=self._run.suppressed_tokens,
      **sampling,
    ).tokens

  def _texts(self, bound) -> list[str]:
    """Returns the N greedy outputs."""
    return self._spoken(self._decode(bound))

  def _sampled_texts(self, bound, key: jax.Array) -> list[list[str]]:
    """Returns K times N outputs."""
    tokens = self._decode(
      bound,
      sampler=self._sampling.sampler,
      num_samples=self._sampling.num_samples,
      rng=key,
    )
    return [self._spoken(one) for one in tokens.swapaxes(0, 1)]

  def _spoken(self, tokens: np.ndarray) -> list[str]:
    decode = self._run.tokenizer.decode
    return [decode(token_inputs.without_padding(row)) for row in tokens]

  def _scored(
    self, texts: Sequence[str], full_texts: Sequence[str]
  ) -> dict[str, np.ndarray]:
    """Returns similarities [N] to the references and to the full model."""
    return {
      name: 1.0 - self._loss.of_texts(texts, others)
      for name, others in zip(
        SCORES, (self._inputs.references, full_texts), strict=True
      )
    }

  def _about(self) -> dict[str, Any]:
    """Returns what scores depend on but their route; JSON."""
    inputs = self._inputs
    digest = hashlib.sha256(repr(list(inputs.references)).encode())
    for source in inputs.sources:
      digest.update(np.asarray(source, np.int64).tobytes() + b'/')
    return {
      **self._run.context(),
      'inputs': digest.hexdigest(),
      'num_inputs': len(inputs.sources),
      'max_length': inputs.max_length,
      'metric': inputs.metric,
      'suppressed_tokens': list(self._run.suppressed_tokens),
      'sampling': dataclasses.asdict(self._sampling),
      'backend': jax.default_backend(),
    }
