"""Strings in, strings out: a trained run with its policy and certificate."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any, Self

import jax
import numpy as np

from calm_jax import decoding, interfaces, model
from calm_jax.array_types import Array
from calm_jax.calibration.certificate import Certificate
from calm_jax.pipeline.certificates import (
  apply_certificate,
  certificate_differences,
)
from calm_jax.pipeline.runs import load_run
from calm_jax.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class GeneratedText:
  """One output.

  Attributes:
    text: the output.
    tokens: its vocabulary ids, EOS included.
    pieces: the same as the tokenizer writes them.
    exit_layers: layers used by each token, 1..L.
    confidences: confidence of each token at its exit, NaN where not looked at.
    score: sum of the tokens' log-probabilities.
    certified: whether a certificate covers how this was decoded (by the full
      model, where it certified nothing).
  """

  text: str
  tokens: tuple[int, ...]
  pieces: tuple[str, ...]
  exit_layers: tuple[int, ...]
  confidences: tuple[float, ...]
  score: float
  certified: bool


@dataclasses.dataclass(frozen=True)
class TextGenerator:
  """A model with its tokenizer and policy, ready to turn texts into texts.

  Attributes:
    decoder: the model, taken apart.
    params: its prepared parameters.
    tokenizer: its tokenizer.
    policy: what is computed for each token.
    sampler: how tokens are chosen.
    input_length: S, tokens of an input, EOS included.
    max_length: T, the most tokens of an output, EOS included.
    prefix: put in front of every input.
    certificate: the certificate that covers all this, None if none does.
  """

  decoder: interfaces.LayeredDecoder
  params: Any
  tokenizer: Tokenizer
  policy: decoding.ComputePolicy
  sampler: Any
  input_length: int
  max_length: int
  prefix: str = ''
  certificate: Certificate | None = None

  @classmethod
  def from_checkpoint(
    cls,
    path: str | os.PathLike,
    *,
    policy: decoding.ComputePolicy | None = None,
    certificate: Certificate | str | os.PathLike | None = None,
    sampler: Any = None,
    allow_uncertified: bool = False,
  ) -> Self:
    """Loads a run directory that `calm_jax.cli.train` wrote.

    Args:
      path: the run directory, or one of its checkpoints.
      policy: the full model if None.
      certificate: its threshold is put into `policy`, see `apply_certificate`.
      sampler: Greedy if None.
      allow_uncertified: see `apply_certificate`; outputs are then marked as
        not certified.
    """
    loaded = load_run(path)
    policy = decoding.ComputePolicy() if policy is None else policy
    sampler = decoding.Greedy() if sampler is None else sampler
    if certificate is not None:
      if not isinstance(certificate, Certificate):
        certificate = Certificate.load(certificate)
      made_for = dict(
        params=loaded.params, tokenizer=loaded.tokenizer, sampler=sampler
      )
      holds = not certificate_differences(certificate, policy, **made_for)
      policy = apply_certificate(
        certificate, policy, allow_uncertified=allow_uncertified, **made_for
      )
      certificate = certificate if holds else None
    decoder = model.as_layered_decoder(loaded.config)
    traced = decoding.default_depth_loop().traced_layers
    return cls(
      decoder=decoder,
      params=decoder.prepare(loaded.params, traced_layers=traced),
      tokenizer=loaded.tokenizer,
      policy=policy,
      sampler=sampler,
      input_length=loaded.feature_lengths['inputs'],
      max_length=loaded.feature_lengths['targets'],
      prefix=loaded.prefix,
      certificate=certificate,
    )

  def generate(
    self, texts: Sequence[str], *, rng: Array | None = None
  ) -> list[GeneratedText]:
    """Decodes texts as one batch.

    Raises:
      ValueError: for an empty text, or one longer than `input_length` tokens.
    """
    inputs = np.zeros((len(texts), self.input_length), np.int32)
    for row, text in enumerate(texts):
      tokens = self._encode(row, text)
      inputs[row, : len(tokens)] = tokens
    result = jax.device_get(
      decoding.generate(
        self.decoder,
        self.params,
        inputs,
        policy=self.policy,
        sampler=self.sampler,
        max_length=self.max_length,
        eos_id=self.tokenizer.eos_id,
        rng=rng,
      )
    )
    return [self._output(result, row) for row in range(len(texts))]

  def _encode(self, row: int, text: str) -> list[int]:
    if not text.strip():
      raise ValueError(f'input {row} is empty; give a text')
    tokens = self.tokenizer.encode(self.prefix + text) + [self.tokenizer.eos_id]
    if len(tokens) > self.input_length:
      raise ValueError(
        f'input {row} has {len(tokens)} tokens (end of sequence included), '
        f'this model was trained for {self.input_length}; shorten it'
      )
    return tokens

  def _output(self, result: decoding.DecodeResult, row: int) -> GeneratedText:
    length = int(result.lengths[row])
    tokens = [int(token) for token in result.tokens[row, :length]]
    return GeneratedText(
      text=self.tokenizer.decode(tokens),
      tokens=tuple(tokens),
      pieces=tuple(self.tokenizer.pieces(tokens)),
      exit_layers=tuple(int(x) for x in result.exit_layers[row, :length]),
      confidences=tuple(float(x) for x in result.confidences[row, :length]),
      score=float(result.scores[row]),
      certified=self.certificate is not None,
    )
