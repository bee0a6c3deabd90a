"""Strings in, strings out: a trained model with its policy and certificate.

Texts are decoded in batches of similar length (`requests`), or one of them
token by token. What is drawn for a text depends on the seed and on its number,
never on the texts it shares a batch with.
"""

import dataclasses
import inspect
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import jax

from calm_jax import (
  checks,
  decoding,
  interfaces,
  model,
  records,
  runs,
)
from calm_jax.calibration.certificate import Certificate
from calm_jax.pipeline import requests, token_choices
from calm_jax.pipeline.decoding_texts import decode_texts
from calm_jax.pipeline.generated_text import (
  GeneratedText,
  StreamedToken,
  generated_texts,
)
from calm_jax.pipeline.streaming import stream_tokens
from calm_jax.tokenizer import KEEPS_EOS, Tokenizer


@dataclasses.dataclass(frozen=True)
class TextGenerator:
  """A model with its tokenizer and policy, ready to turn texts into texts.

  Attributes:
    bound: the decoder with its parameters.
    tokenizer: its tokenizer.
    policy: what is computed for each token.
    sampler: how tokens are chosen.
    input_length: S, tokens of an input, EOS included.
    max_length: T, the most tokens of an output, EOS included.
    prefix: put in front of every input.
    certificate: the certificate that covers all this, None if none does.
    source: what names the parameters: fingerprint, step and dtype.
    suppressed_tokens: ids that are never said.
    forced_prefix: what outputs begin with, unless said otherwise.
  """

  bound: interfaces.BoundDecoder
  tokenizer: Tokenizer
  policy: decoding.ComputePolicy
  sampler: Any
  input_length: int
  max_length: int
  prefix: str = ''
  certificate: Certificate | None = None
  source: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  suppressed_tokens: tuple[int, ...] = ()
  forced_prefix: str | Sequence[int] = ''

  def __post_init__(self):
    """Raises ValueError if the certificate does not cover all this."""
    _ = self.cautions

  @property
  def cautions(self) -> tuple[str, ...]:
    """What differs from the calibration and does not break its certificate."""
    if self.certificate is None:
      return ()
    return runs.check_covered(self.certificate, self.policy, self.context())

  def context(self) -> records.DecodingContext:
    """Returns what outputs depend on, besides their inputs and the seed."""
    return runs.decoding_context(
      self.policy,
      setting={},
      parameters=self.source.get('parameters'),
      tokenizer=self.tokenizer,
      sampler=self.sampler,
      bound=self.bound,
      prefix=self.prefix,
      inputs_cut=KEEPS_EOS,
      input_length=self.input_length,
      max_length=self.max_length,
      suppressed_tokens=self.suppressed_tokens,
    )

  @property
  def num_encoder_layers(self) -> int | None:
    """L_enc; None for a decoder that does not say."""
    return getattr(self.bound.decoder.encoder, 'num_layers', None)

  @classmethod
  def from_run(
    cls,
    path: str | os.PathLike,
    *,
    vocabulary: str | os.PathLike | runs.TextFeatures | None = None,
    allow_nonfinite: bool = False,
    max_length: int | None = None,
    **options: Any,
  ) -> Self:
    """Loads a run directory, or any checkpoint and its vocabulary.

    Args:
      path: a run directory that `calm_jax.cli.train` wrote or one of its
        checkpoints; with `vocabulary`, whatever `checkpoints.load` reads.
      vocabulary: a SentencePiece model, or 'bytes', or `runs.TextFeatures`;
        None for a run directory, which has its own.
      allow_nonfinite: load parameters that are not numbers all the same.
      max_length: T, the most tokens of an output; what the run or vocabulary
        says if None.
      **options: what `from_loaded` takes; and with a vocabulary that is a file
        or 'bytes', what else `runs.TextFeatures` takes.
    """
    of_generator = {
      name: options.pop(name)
      for name in inspect.signature(cls.from_loaded).parameters
      if name in options
    }
    loaded = runs.load(
      path, vocabulary, allow_nonfinite=allow_nonfinite, **options
    )
    return cls.from_loaded(
      loaded.with_output_length(max_length), **of_generator
    )

  @classmethod
  def from_loaded(
    cls,
    loaded: runs.LoadedRun,
    *,
    policy: decoding.ComputePolicy | interfaces.ExitRule | None = None,
    certificate: Certificate | str | os.PathLike | None = None,
    sampler: Any = None,
    allow_uncertified: bool = False,
    suppressed_tokens: Sequence[int | str] | int | str | None = None,
    forced_prefix: str | Sequence[int] | None = None,
    weights: Any = 'certified',
    depth_loop: interfaces.DepthLoop | None = None,
  ) -> Self:
    """Makes a generator of what was loaded.

    Args:
      loaded: the model and its tokenizer.
      policy: what is computed for each token, or an exit rule alone; the full
        model if None.
      certificate: its setting is put into `policy`, see `apply_certificate`.
      sampler: Greedy if None.
      allow_uncertified: see `apply_certificate`; outputs are then marked as
        not certified.
      suppressed_tokens: ids or pieces that are never said, see
        `token_choices.token_ids`; what the checkpoint says if None. No
        certificate covers that.
      forced_prefix: what every output begins with, a text or ids; what the
        checkpoint says if None. No certificate covers that.
      weights: as `decoding.bind` takes them; 'certified' for those that the
        certificate was made with, which without one are float.
      depth_loop: how layers are looped over, which changes no output;
        `decoding.default_depth_loop()` if None.
    """
    if certificate is not None and not isinstance(certificate, Certificate):
      certificate = Certificate.load(certificate)
    if weights == 'certified':
      weights = loaded.weights
      if certificate is not None:
        weights = runs.weights_of(certificate)
    policy = decoding.at_output_length(
      decoding.as_policy(policy), loaded.feature_lengths['targets']
    )
    sampler = decoding.as_sampler(sampler)
    if suppressed_tokens is None:
      suppressed_tokens = loaded.suppressed_tokens
    if forced_prefix is None:
      forced_prefix = loaded.forced_prefix or ''
    suppressed_tokens = token_choices.token_ids(
      suppressed_tokens, loaded.tokenizer, vocab_size=loaded.config.vocab_size
    )
    token_choices.prefix_tokens(
      forced_prefix,
      loaded.tokenizer,
      max_length=loaded.feature_lengths['targets'],
    )
    made = cls(
      bound=decoding.bind(
        model.as_layered_decoder(loaded.config),
        runs.int8_params(loaded, weights),
        weights=weights,
        depth_loop=depth_loop,
      ),
      tokenizer=loaded.tokenizer,
      policy=policy,
      sampler=sampler,
      input_length=loaded.feature_lengths['inputs'],
      max_length=loaded.feature_lengths['targets'],
      prefix=loaded.prefix,
      source={
        'parameters': loaded.fingerprint,
        'step': loaded.step,
        'dtype': loaded.config.dtype,
      },
      suppressed_tokens=suppressed_tokens,
      forced_prefix=forced_prefix,
    )
    if certificate is None:
      return made
    policy, held, _ = runs.use_certificate(
      certificate,
      policy,
      made.context(),
      allow_uncertified=allow_uncertified,
    )
    return dataclasses.replace(made, policy=policy, certificate=held)

  def generate(
    self,
    texts: Iterable[str],
    *,
    batch_size: int = 16,
    too_long: str = 'refuse',
    num_samples: int | None = None,
    seed: int = 0,
    forced_prefixes: Sequence[str | Sequence[int]] | None = None,
  ) -> list[GeneratedText] | list[list[GeneratedText]]:
    """Decodes texts, in batches of similar length.

    Args:
      texts: the inputs, without prefix.
      batch_size: texts decoded together, at most.
      too_long: what to do with texts of more than `input_length` tokens,
        'refuse' or 'truncate' (with a warning in the output).
      num_samples: outputs per text, for samplers that draw and for beams; one
        if None.
      seed: of what samplers draw. Text r always draws the same with it,
        however texts are batched.
      forced_prefixes: what the output of each text begins with, '' for nothing;
        `forced_prefix` for all of them if None. No certificate covers such
        outputs.

    Returns:
      One output per text, in their order; a list of them per text if
      `num_samples` is a number, 1 included.

    Raises:
      ValueError: for an empty text, or one that is too long and refused,
        naming it; for options that make no sense.
    """
    return decode_texts(
      self,
      texts,
      decode=self.decode,
      batch_size=batch_size,
      too_long=too_long,
      num_samples=num_samples,
      seed=seed,
      forced_prefixes=forced_prefixes,
    )

  def stream(
    self,
    text: str,
    *,
    too_long: str = 'refuse',
    seed: int = 0,
    number: int = 0,
    forced_prefix: str | Sequence[int] | None = None,
  ) -> Iterator[StreamedToken]:
    """Decodes one text and yields each token as soon as it is there.

    The tokens are those of `generate`, of its text `number`.
    """
    request = self.encode(
      number, text, too_long=too_long, forced_prefix=forced_prefix
    )
    (batch,) = self.batches([request], 1)
    state = decoding.start(
      self.bound, batch.inputs(), **self._options(batch, seed)
    )
    yield from stream_tokens(state, self.tokenizer)

  def encode(
    self,
    number: int,
    text: str,
    *,
    too_long: str = 'refuse',
    name: str | None = None,
    forced_prefix: str | Sequence[int] | None = None,
  ) -> requests.Request:
    """Returns a text as a request; see `requests.encode`."""
    return requests.encode(
      number,
      text,
      self.tokenizer,
      name=f'input {number}' if name is None else name,
      prefix=self.prefix,
      input_length=self.input_length,
      max_length=self.max_length,
      too_long=too_long,
      forced_prefix=self.forced_prefix
      if forced_prefix is None
      else forced_prefix,
    )

  def batches(
    self,
    encoded: Iterable[requests.Request],
    batch_size: int,
    *,
    window: int | None = None,
  ) -> Iterator[requests.RequestBatch]:
    """Yields batches of similar length; see `requests.batches`."""
    buckets = requests.length_buckets(self.input_length)
    return requests.batches(encoded, batch_size, buckets, window=window)

  def decode(
    self, batch: requests.RequestBatch, *, num_samples: int = 1, seed: int = 0
  ) -> list[list[GeneratedText]]:
    """Decodes one batch; returns the outputs of each of its requests."""
    searches = isinstance(self.sampler, decoding.Search)
    if num_samples > 1 and self.sampler.deterministic and not searches:
      raise ValueError(
        f'num_samples is {num_samples}, and {type(self.sampler).__name__} '
        'would give the same output each time; use a sampler that draws, such '
        'as decoding.Temperature(), or decoding.BeamSearch()'
      )
    result = jax.device_get(
      decoding.generate(
        self.bound,
        batch.inputs(),
        num_samples=num_samples,
        **self._options(batch, seed),
      )
    )
    inputs = batch.inputs()
    return generated_texts(
      result,
      batch,
      self.tokenizer,
      certified=self.certificate is not None,
      error_of=lambda row, one: decoding.describe_failure(
        self.bound, inputs[row], one
      ),
    )

  def at_full_depth(self) -> 'TextGenerator':
    """Returns what to serve with where the certificate is not to be used.

    That is the full model, which every certificate covers; with a layer budget,
    as far as that goes, which no certificate covers.

    Raises:
      ValueError: for weights in 8 bits, whose full model is another one.
    """
    if self.bound.weights is not None:
      raise ValueError(
        'this generator has weights in 8 bits, and losses are measured against '
        "the float model: load that one, with weights='float' and "
        'certificate=None'
      )
    policy = decoding.full_within_budget(self.policy)
    is_full = policy == decoding.full_model(self.policy)
    return dataclasses.replace(
      self, policy=policy, certificate=self.certificate if is_full else None
    )

  def describe(self) -> dict[str, Any]:
    """Returns everything that outputs depend on but input, seed and batch."""
    described = self.context().write()
    # A later release goes on where an earlier one was interrupted.
    del described['versions']
    return {
      **self.source,
      **described,
      # Apart, so that a difference of thresholds is seen to be one.
      'policy': decoding.describe(self.policy),
      'threshold': decoding.describe(decoding.threshold_of(self.policy)),
      'certified': self.certificate is not None,
      'forced_prefix': self.forced_prefix,
    }

  def _options(
    self, batch: requests.RequestBatch, seed: int
  ) -> Mapping[str, Any]:
    """Returns what `decoding.generate` and `start` are told besides inputs."""
    checks.check_whole(seed, 'seed', low=-(2**63), high=2**63 - 1)
    keys = None if self.sampler.deterministic else batch.keys(seed)
    return dict(
      policy=self.policy,
      sampler=self.sampler,
      max_length=self.max_length,
      eos_id=self.tokenizer.eos_id,
      rng=keys,
      forced_prefix=batch.forced_prefixes(),
      suppressed_tokens=self.suppressed_tokens or None,
    )
