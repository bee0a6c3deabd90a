"""Strings in, strings out: tokenizer, checkpoint, certificate and decoding.

`apply_certificate` is the only bridge from statistics to decoding: it puts the
certified threshold into a policy, and refuses to do so for a model, tokenizer,
policy or sampler that the certificate was not made for.
"""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any, Self

import jax
import numpy as np

from calm_jax import checkpoints, decoding, exits, interfaces, model
from calm_jax.array_types import Array, Params
from calm_jax.calibration.certificate import Certificate
from calm_jax.checkpoints import classifiers
from calm_jax.tokenizer import SentencePieceTokenizer


def certificate_context(
  policy: decoding.ComputePolicy,
  *,
  params: Params,
  tokenizer: SentencePieceTokenizer,
  sampler: Any,
) -> dict[str, Any]:
  """Returns what ties a certificate to what it was made for.

  Args:
    policy: the policy; the value of its threshold does not matter.
    params: the parameter tree as loaded, not prepared for decoding.
    tokenizer: the tokenizer.
    sampler: the sampler.
  """
  return {
    'parameters': checkpoints.parameter_fingerprint(params),
    'tokenizer': tokenizer.fingerprint,
    'policy': decoding.describe(policy),
    'sampler': decoding.describe(sampler),
  }


def certificate_differences(
  certificate: Certificate,
  policy: decoding.ComputePolicy,
  *,
  params: Params,
  tokenizer: SentencePieceTokenizer,
  sampler: Any = None,
) -> list[str]:
  """Says what keeps a certificate from holding; nothing if it holds.

  The arguments are those of `apply_certificate`.
  """
  actual = certificate_context(
    policy,
    params=params,
    tokenizer=tokenizer,
    sampler=decoding.Greedy() if sampler is None else sampler,
  )
  return [
    f'{name}: certified for {certificate.context.get(name)!r}, got {value!r}'
    for name, value in actual.items()
    if certificate.context.get(name) != value
  ]


def apply_certificate(
  certificate: Certificate,
  policy: decoding.ComputePolicy,
  *,
  params: Params,
  tokenizer: SentencePieceTokenizer,
  sampler: Any = None,
  allow_uncertified: bool = False,
) -> decoding.ComputePolicy:
  """Returns the policy at the certified threshold.

  Where nothing was certified that is the full model.

  Args:
    certificate: what calibration wrote.
    policy: the policy it was made for, at any threshold.
    params: the parameter tree as loaded, not prepared for decoding.
    tokenizer: the tokenizer.
    sampler: the sampler; Greedy if None.
    allow_uncertified: go on where the guarantee does not hold. The caller then
      must not claim it; `certificate_differences` says whether it holds.

  Raises:
    ValueError: if the certificate was made for something else, naming what
      differs, unless `allow_uncertified`.
  """
  differing = certificate_differences(
    certificate, policy, params=params, tokenizer=tokenizer, sampler=sampler
  )
  if differing and not allow_uncertified:
    raise ValueError(
      'the certificate does not hold for this '
      + '; '.join(differing)
      + '. Calibrate again, or pass allow_uncertified=True to decode without '
      'a guarantee'
    )
  if certificate.threshold is None or certificate.threshold >= 1.0:
    return decoding.full_model(policy)
  return decoding.with_threshold(policy, certificate.threshold)


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
  tokenizer: SentencePieceTokenizer
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


@dataclasses.dataclass(frozen=True)
class LoadedRun:
  """What a run directory holds.

  Attributes:
    params: the parameter tree, float32, T5X's names.
    config: the model's shape.
    tokenizer: the tokenizer it was trained with.
    step: training steps taken.
    feature_lengths: longest inputs and targets in tokens, EOS included.
    prefix: what training put in front of every input.
    prefixes: of the parts of a mixture, by their names.
  """

  params: Params
  config: model.T5Config
  tokenizer: SentencePieceTokenizer
  step: int
  feature_lengths: dict[str, int]
  prefix: str
  prefixes: dict[str, str] = dataclasses.field(default_factory=dict)


def load_run(path: str | os.PathLike) -> LoadedRun:
  """Loads parameters, configuration and tokenizer of a run directory.

  Raises:
    FileNotFoundError: if a part is missing.
    ValueError: if the vocabulary beside the checkpoint is not the one that the
      model was trained with.
  """
  params, config, metadata = checkpoints.load_params(path)
  context = metadata['context']
  missing = [
    name
    for name in ('vocabulary_file', 'vocabulary_fingerprint', 'feature_lengths')
    if name not in context
  ]
  if missing:
    raise ValueError(
      f'{os.fspath(path)} does not say which vocabulary it was trained with '
      f'(its context lacks {missing}): calm_jax.cli.train notes it, '
      'training.train takes it as `context`; checkpoints.load_params loads the '
      'parameters alone'
    )
  folder = os.path.abspath(os.fspath(path))
  while not os.path.exists(os.path.join(folder, context['vocabulary_file'])):
    # A checkpoint inside a run directory: the vocabulary lies further up.
    folder, last = os.path.split(folder)
    if not last:
      raise FileNotFoundError(
        f'no {context["vocabulary_file"]} in {os.fspath(path)} or above; copy '
        'the vocabulary of the training run there'
      )
  vocabulary = os.path.join(folder, context['vocabulary_file'])
  tokenizer = SentencePieceTokenizer(vocabulary, context['extra_ids'])
  if tokenizer.fingerprint != context['vocabulary_fingerprint']:
    raise ValueError(
      f'{vocabulary} is not the vocabulary of this checkpoint: its fingerprint '
      f'is {tokenizer.fingerprint}, the checkpoint was trained with '
      f'{context["vocabulary_fingerprint"]}'
    )
  return LoadedRun(
    params=params,
    config=config,
    tokenizer=tokenizer,
    step=metadata['step'],
    feature_lengths=context['feature_lengths'],
    prefix=context.get('prefix', ''),
    prefixes=context.get('prefixes', {}),
  )


def load_classifier(
  model_dir: str | os.PathLike, *, name: str = classifiers.DEFAULT_NAME
) -> exits.Classifier:
  """Loads the early-exit classifier that was trained for a run's parameters.

  Args:
    model_dir: a run directory that `calm_jax.cli.train_classifier` was run on.
    name: of the classifier's folder in it.

  Raises:
    FileNotFoundError: if there is none.
    ValueError: if it was trained for other parameters than the directory holds.
  """
  return exits.Classifier(**classifiers.load_classifier(model_dir, name=name))
