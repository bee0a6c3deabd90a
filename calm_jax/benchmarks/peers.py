"""Other programs that decode the same T5, side by side where installed.

Hugging Face's T5 on PyTorch and CTranslate2 (in float32, and with its own
8-bit weights) get this model's own weights, converted by
`calm_jax.checkpoints`, and the same token ids. Neither is ever required: what
is not installed is left out.
"""

import functools
import importlib.util
import os
import pathlib
import statistics
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from calm_jax import checkpoints, model
from calm_jax.array_types import Params
from calm_jax.evaluation import stopwatch

# How the name begins of what decodes with 8-bit weights.
CTRANSLATE2_INT8 = 'CTranslate2 int8'

Decode = Callable[[np.ndarray], np.ndarray]


def installed_peers(
  params: Params,
  config: model.T5Config,
  folder: str | os.PathLike,
  *,
  max_length: int,
  min_length: int = 1,
) -> Mapping[str, Decode]:
  """Returns what is installed: name -> decode, inputs [B, S] to tokens [B, T].

  Greedy, with a key and value cache, full depth; 0 is padding on both sides.

  Args:
    params: the parameter tree.
    config: the model's shape.
    folder: where the converted checkpoint goes; it must not exist.
    max_length: T.
    min_length: tokens before which no sequence may end.
  """
  needed = ('ctranslate2', 'torch', 'transformers')
  makers = {
    'Hugging Face T5 on PyTorch': (needed[1:], _huggingface),
    'CTranslate2': (needed, functools.partial(_ctranslate2, 'float32')),
    CTRANSLATE2_INT8: (needed, functools.partial(_ctranslate2, 'int8')),
  }
  made = {}
  for name, (packages, make) in makers.items():
    if all(importlib.util.find_spec(package) for package in packages):
      if not made:
        checkpoints.convert(
          checkpoints.from_params(params, config, step=0),
          folder,
          checkpoints.Target(format='huggingface'),
        )
      decode = make(pathlib.Path(folder), config, max_length, min_length)
      made[f'{name} {_version(packages[0])}'] = decode
  return made


def milliseconds_per_step(
  decode: Decode, batches: Sequence[np.ndarray], num_repeats: int
) -> float:
  """Returns the wall clock per token of the longest output of each batch.

  Args:
    decode: the program.
    batches: inputs [B, S].
    num_repeats: turns; medians are added up.
  """
  steps = sum(int((decode(one) != 0).sum(axis=1).max()) for one in batches)
  seconds = stopwatch.interleaved_seconds(
    {
      place: functools.partial(decode, batch)
      for place, batch in enumerate(batches)
    },
    num_repeats,
  )
  return 1e3 * sum(map(statistics.median, seconds.values())) / steps


def _version(package: str) -> str:
  return importlib.import_module(package).__version__


def _huggingface(folder, config, max_length, min_length) -> Decode:
  """Returns a decode by `T5ForConditionalGeneration.generate`."""
  del config  # the folder has one
  torch = importlib.import_module('torch')
  transformers = importlib.import_module('transformers')
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  peer = transformers.T5ForConditionalGeneration.from_pretrained(folder).eval()

  def decode(inputs: np.ndarray) -> np.ndarray:
    tokens = torch.tensor(np.asarray(inputs, np.int64))
    with torch.inference_mode():
      output = peer.generate(
        input_ids=tokens,
        attention_mask=(tokens != 0).long(),
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_length,
        min_new_tokens=min_length,
        # Its own would have as many layers as the encoder.
        past_key_values=transformers.EncoderDecoderCache(
          transformers.DynamicCache(), transformers.DynamicCache()
        ),
      )
    # The first token is the start of the decoder.
    return _padded(output[:, 1:].numpy(), max_length)

  return decode


def _ctranslate2(
  compute_type, folder, config, max_length, min_length
) -> Decode:
  """Returns a decode by CTranslate2's Translator, in float32 or int8.

  It converts to float32 once, and rounds to 8 bits where it loads.
  """
  ctranslate2 = importlib.import_module('ctranslate2')
  pieces = [f'<{token}>' for token in range(config.vocab_size)]
  pieces[:3] = ['<pad>', '</s>', '<unk>']
  converted = folder / 'ctranslate2'
  if not converted.exists():
    _converter(pieces)(os.fspath(folder)).convert(os.fspath(converted))
  translator = ctranslate2.Translator(
    os.fspath(converted),
    device='cpu',
    compute_type=compute_type,
    intra_threads=len(os.sched_getaffinity(0)),
  )
  numbers = {piece: token for token, piece in enumerate(pieces)}

  def decode(inputs: np.ndarray) -> np.ndarray:
    sources = [[pieces[token] for token in row if token] for row in inputs]
    results = translator.translate_batch(
      sources,
      beam_size=1,
      max_decoding_length=max_length,
      min_decoding_length=min_length,
      return_end_token=True,
    )
    tokens = np.zeros((len(inputs), max_length), np.int32)
    for row, result in enumerate(results):
      found = [numbers[piece] for piece in result.hypotheses[0]]
      tokens[row, : len(found)] = found
    return tokens

  return decode


def _converter(pieces: list[str]) -> type:
  """Returns CTranslate2's converter with these pieces for a vocabulary.

  It asks for a tokenizer, of which a checkpoint has none, only to name the
  tokens.
  """
  converters = importlib.import_module('ctranslate2.converters')

  class Names:
    """What the converter wants to know of a tokenizer."""

    pad_token, eos_token, unk_token = pieces[:3]

    def get_vocab(self):
      return {piece: token for token, piece in enumerate(pieces)}

    def convert_ids_to_tokens(self, token):
      return pieces[token]

  class Converter(converters.TransformersConverter):
    """Reads no tokenizer files."""

    def load_tokenizer(self, *arguments, **options):
      del arguments, options
      return Names()

  return Converter


def _padded(tokens: np.ndarray, length: int) -> np.ndarray:
  """Returns tokens as int32 [B, length]."""
  missing = length - tokens.shape[1]
  return np.pad(tokens, ((0, 0), (0, max(missing, 0)))).astype(np.int32)
