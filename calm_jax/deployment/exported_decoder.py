"""An exported decoder in use: its program, parameters and manifest."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.export
import numpy as np

from calm_jax import checks, decoding
from calm_jax.array_types import Array
from calm_jax.records import ExportManifest


@dataclasses.dataclass(frozen=True, eq=False)
class ExportedDecoder:
  """A decoder that was exported and read back.

  Calling it checks everything and returns NumPy arrays. `program` and
  `parameters` are for other JAX programs, which check for themselves:
  `program(parameters, {'tokens': tokens, 'threshold': threshold})`.

  Attributes:
    manifest: what it is.
    exported: the program as jax.export has it.
    parameters: its first argument, by name, on the device.
  """

  manifest: ExportManifest
  exported: jax.export.Exported
  parameters: Mapping[str, Array]

  @functools.cached_property
  def program(self) -> Callable[..., dict[str, Array]]:
    """The program under jit: compiled once for every batch size."""
    return jax.jit(self.exported.call)

  def __call__(
    self,
    inputs: Any,
    *,
    threshold: float | None = None,
    seed: int | None = None,
  ) -> dict[str, np.ndarray]:
    """Decodes a batch.

    Args:
      inputs: integer token ids [B, s], s at most the manifest's source_length;
        0 is padding, and shorter inputs are padded.
      threshold: in [0, 1]; 1 never exits, which is the full model where the
        manifest says `full_at_one`. The certified one if None.
      seed: for a sampler that draws, 0 <= seed < 2**32.

    Returns:
      tokens int32 [B, T], EOS included, 0 after it; exit_layers int32 [B, T],
      -1 where nothing was decoded; confidences float32 [B, T], NaN where the
      exit rule did not look; scores float32 [B]; lengths int32 [B].

    Raises:
      ValueError: naming the value that cannot be decoded and what to do.
    """
    arguments: dict[str, Any] = {'tokens': self._checked_tokens(inputs)}
    self._check_wanted('threshold', threshold, 'its policy has none')
    self._check_wanted('seed', seed, 'its sampler draws nothing')
    if 'threshold' in self.manifest.inputs:
      arguments['threshold'] = self._checked_threshold(threshold)
    if 'seed' in self.manifest.inputs:
      if seed is None:
        raise ValueError('the sampler draws tokens at random; give seed=0')
      checks.check_whole(seed, 'seed', low=0, high=2**32 - 1)
      arguments['seed'] = np.uint32(seed)
    return jax.device_get(self.program(self.parameters, arguments))

  def _check_wanted(self, name: str, value: Any, reason: str) -> None:
    if value is not None and name not in self.manifest.inputs:
      raise ValueError(
        f'{name} {value!r} was given, but this program takes none: {reason}'
      )

  def _checked_tokens(self, inputs: Any) -> np.ndarray:
    """Returns int32 [B, S], padded."""
    tokens = np.asarray(
      decoding.check_inputs(np.asarray(inputs), self.manifest.vocab_size)
    )
    length, limit = tokens.shape[1], self.manifest.source_length
    if length > limit:
      raise ValueError(
        f'inputs are {length} tokens long, this program takes {limit}; shorten '
        f'them, or export again with source_length={length}'
      )
    return np.pad(tokens, ((0, 0), (0, limit - length)))

  def _checked_threshold(self, threshold: float | None) -> np.float32:
    if threshold is None:
      if self.manifest.certificate is None:
        raise ValueError(
          'no threshold was given and no certificate holds for this artifact; '
          f'give threshold=1.0 ({self.manifest.at_one}), or a lower one '
          'without a guarantee'
        )
      threshold = self.manifest.certificate['threshold']
    remedy = f'1 is {self.manifest.at_one}, lower ones leave earlier'
    return np.float32(
      checks.checked_array(
        threshold, 'threshold', low=0.0, high=1.0, remedy=remedy
      )
    )
