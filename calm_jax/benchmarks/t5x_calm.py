"""T5X's own CALM as another program: its decoder with this model's weights.

t5x/contrib/calm around Flaxformer's network, built by the release's own gin
file and run as released. calm_jax/interop/README.md says what has to be on the
Python path; nothing is imported before it is asked for.
"""

import dataclasses
import functools
import importlib
import importlib.util
import types
from collections.abc import Callable, Mapping

import jax
import numpy as np

from calm_jax import model
from calm_jax.array_types import Array, Params
from calm_jax.benchmarks import t5x_calm_network

NEEDED = ('t5x', 'flaxformer', 'airio', 'jestimator', 'aqt', 'gin')


@dataclasses.dataclass(frozen=True, eq=False)
class Said:
  """What T5X's CALM said.

  Attributes:
    tokens: int32 [B, T], 0 after the end.
    exit_layers: int32 [B, T], layers of each token, 1 to L; of no meaning where
      a token is 0.
    confidences: float32 [B, T], what the exit was decided by; NaN at full
      depth, which looks at none.
  """

  tokens: np.ndarray
  exit_layers: np.ndarray
  confidences: np.ndarray

  @property
  def mean_layers(self) -> float:
    """The layers run per token."""
    return float(self.exit_layers[self.tokens != 0].mean())


@dataclasses.dataclass(frozen=True)
class T5XCalm:
  """One way in which it decodes: at full depth, or with a threshold.

  Attributes:
    decode: inputs int [B, S], 0 is padding -> what it says.
    same_as: the name of what in this library should say the same, of inputs
      that are decoded one by one.
  """

  decode: Callable[[np.ndarray], Said]
  same_as: str

  def __call__(self, inputs: np.ndarray) -> np.ndarray:
    """Returns tokens [B, T], as the other programs do."""
    return self.decode(inputs).tokens

  def one_by_one(self, inputs: np.ndarray) -> Said:
    """Returns what it says of each input [N, S] alone.

    Rows of one batch leave together, so only then are outputs the input's own.
    """
    parts = [self.decode(inputs[row : row + 1]) for row in range(len(inputs))]
    return Said(
      *(
        np.concatenate([getattr(part, name) for part in parts])
        for name in ('tokens', 'exit_layers', 'confidences')
      )
    )


def lacking() -> list[str]:
  """Returns what of its packages is not on the Python path."""
  return [name for name in NEEDED if importlib.util.find_spec(name) is None]


def of_model(
  params: Params,
  config: model.T5Config,
  *,
  max_length: int,
  thresholds: Mapping[float, str],
  full: str,
) -> dict[str, T5XCalm]:
  """Returns name -> T5X's CALM with a model's weights, greedy.

  At full depth without any checks, and with the softmax margin
  ('softmax_diff') and its state propagation at each threshold. The bindings of
  gin are those of its network from then on.

  Args:
    params: the parameter tree, whose names and shapes are T5X's.
    config: the model's shape.
    max_length: T.
    thresholds: threshold -> what of ours should say the same.
    full: what our own full decode is called.

  Raises:
    ImportError: if it, or a package that it imports, is not installed.
  """
  if names := lacking():
    raise ImportError(
      f'not on the Python path: {", ".join(names)} '
      '(calm_jax/interop/README.md says what T5X needs)'
    )
  decode = _decoder(config, max_length)
  params = jax.device_put(params)
  return {
    "T5X's CALM, full depth": T5XCalm(
      functools.partial(decode, params, threshold=None), full
    ),
    **{
      f"T5X's CALM at {threshold:g}": T5XCalm(
        functools.partial(decode, params, threshold=threshold), same_as
      )
      for threshold, same_as in thresholds.items()
    },
  }


def _decoder(config: model.T5Config, max_length: int) -> Callable[..., Said]:
  """Returns `(params, inputs, threshold) -> Said`; None is full depth."""
  module = t5x_calm_network.of(config)
  released = importlib.import_module('t5x.contrib.calm.models')
  whole = importlib.import_module('t5x.decoding')
  vocabulary = types.SimpleNamespace(eos_id=1)
  construct = functools.partial(
    released.EncoderDecoderModel, module, vocabulary, vocabulary, None
  )

  def predict(calm, params, inputs):
    batch = {
      'encoder_input_tokens': inputs,
      'decoder_input_tokens': np.zeros((len(inputs), max_length), np.int32),
    }
    tokens, aux = calm.predict_batch_with_aux(
      params,
      batch,
      # The largest logit, where the default draws from the one that is left.
      decoder_params={'temperature': 0.0},
      # Without exits it cannot return a single one: there are none to cut.
      return_all_decodes=True,
    )
    return tokens[:, 0], aux

  @jax.jit
  def full_depth(params: Params, inputs: Array):
    calm = construct(decode_fn=whole.temperature_sample)
    return predict(calm, params, inputs)[0]

  @jax.jit
  def early(params: Params, inputs: Array, threshold: Array):
    calm = construct(
      apply_early_inference=True,
      decoder_layers=config.num_decoder_layers,
      conf_method='softmax_diff',
      conf_threshold=threshold,
    )
    tokens, aux = predict(calm, params, inputs)
    return tokens, aux['exits'][:, 0], aux['confidences'][:, 0]

  def decode(params, inputs, *, threshold):
    inputs = np.asarray(inputs, np.int32)
    if threshold is None:
      tokens = np.asarray(full_depth(params, inputs))
      blank = np.full(tokens.shape, np.nan, np.float32)
      layers = np.full(tokens.shape, config.num_decoder_layers, np.int32)
      return Said(tokens, layers, blank)
    return Said(*jax.device_get(early(params, inputs, threshold)))

  return decode
