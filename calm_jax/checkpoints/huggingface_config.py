"""Hugging Face's config.json <-> T5Config.

Every field that changes what a T5 computes is either translated or must have
the value that this model computes with; anything else is refused by name.
"""

from collections.abc import Mapping
from typing import Any

from calm_jax.checkpoints import huggingface_generation
from calm_jax.model.config import T5Config

MODEL_TYPES = ('t5', 'mt5')
# Hugging Face's name of the feed-forward -> our activations. Its 'gated-gelu'
# is the tanh form; its 'gelu' without a gate is not.
_ACTIVATIONS = {
  'relu': ('relu',),
  'gelu_new': ('gelu',),
  'silu': ('silu',),
  'gated-gelu': ('gelu', 'linear'),
  'gated-gelu_new': ('gelu', 'linear'),
  'gated-relu': ('relu', 'linear'),
  'gated-silu': ('silu', 'linear'),
}
# Ours -> Hugging Face's.
_SIZES = {
  'vocab_size': 'vocab_size',
  'embed_dim': 'd_model',
  'num_heads': 'num_heads',
  'head_dim': 'd_kv',
  'mlp_dim': 'd_ff',
  'num_encoder_layers': 'num_layers',
}
# Fields with one possible value.
_FIXED = {'layer_norm_epsilon': 1e-6, 'is_encoder_decoder': True}
# Classes that were saved -> what they lack.
_ENCODER = ('EncoderModel',)
_HEADS = (
  'ForSequenceClassification',
  'ForTokenClassification',
  'ForQuestionAnswering',
)
_WHOLE = 'give the T5ForConditionalGeneration that it was made from'


def config_from_huggingface(
  path: str, fields: Mapping[str, Any], *, tied: bool
) -> T5Config:
  """Returns the configuration that a config.json describes.

  Args:
    path: of the folder, for messages.
    fields: what the file holds, after `check_model`.
    tied: whether the output matrix is the input table, with scaled logits;
      config.json does not say this reliably, see `huggingface`.

  Raises:
    ValueError: if it is one that this model does not compute.
  """
  where = f'{path}/config.json'
  missing = [name for name in _SIZES.values() if name not in fields]
  if missing:
    raise ValueError(f'{where} does not give {missing}; get the file again')
  kind = fields.get('feed_forward_proj', 'relu')
  if kind not in _ACTIVATIONS:
    raise ValueError(
      f'{where}: feed_forward_proj {kind!r} is not one of '
      f'{sorted(_ACTIVATIONS)}, which this model knows'
    )
  depth = fields.get('num_decoder_layers')
  try:
    return T5Config(
      **{ours: fields[theirs] for ours, theirs in _SIZES.items()},
      num_decoder_layers=fields['num_layers'] if depth is None else depth,
      mlp_activations=_ACTIVATIONS[kind],
      tied_embeddings=tied,
      dropout_rate=float(fields.get('dropout_rate', 0.1)),
      relative_buckets=fields.get('relative_attention_num_buckets', 32),
      relative_max_distance=fields.get('relative_attention_max_distance', 128),
    )
  except (TypeError, ValueError) as error:
    raise ValueError(f'{where}: {error}') from error


def check_model(where: str, fields: Mapping[str, Any]) -> None:
  """Raises ValueError if a config.json is of something else than a whole T5.

  Says what it is of and what to give instead.
  """
  _check_model_type(where, fields)
  classes = fields.get('architectures')
  name = str(classes[0]) if isinstance(classes, list) and classes else ''
  if name.endswith(_ENCODER) or fields.get('is_encoder_decoder') is False:
    raise ValueError(
      f'{where} is of an encoder alone ({name or "is_encoder_decoder false"}), '
      f'which has no layers that decode; {_WHOLE}'
    )
  if name.endswith(_HEADS):
    raise ValueError(
      f'{where} is of {name}, a classifier that says no tokens; {_WHOLE}'
    )
  if fields.get('quantization_config'):
    raise ValueError(
      f'{where} has a quantization_config: its parameters are integers. Where '
      'transformers is installed: from_pretrained(FOLDER).dequantize()'
      '.save_pretrained(NEW_FOLDER)'
    )
  for field, value in _FIXED.items():
    if fields.get(field, value) not in (value, None):
      raise ValueError(
        f'{where}: {field} is {fields[field]!r}, and this model computes with '
        f'{value!r} only'
      )
  huggingface_generation.check_ids(where, fields)
  kind = str(fields.get('feed_forward_proj', 'relu'))
  told = fields.get('is_gated_act')
  if told is not None and bool(told) != kind.startswith('gated'):
    raise ValueError(
      f'{where}: is_gated_act is {told!r} and feed_forward_proj {kind!r}, '
      'which contradict each other; correct the one that is wrong'
    )


def _check_model_type(where: str, fields: Mapping[str, Any]) -> None:
  kind = fields.get('model_type', 't5')
  if kind in MODEL_TYPES:
    return
  advice = {
    'umt5': ' (every layer of a umT5 has relative positions of its own)',
    'longt5': ' (LongT5 attends locally or through summaries)',
    'switch_transformers': ' (a mixture of experts)',
  }
  raise ValueError(
    f'{where} describes a model of type {kind!r}{advice.get(kind, "")}; this '
    f'model reads {" and ".join(MODEL_TYPES)}: T5 1.0, v1.1, Flan-T5, mT5'
  )


def scales_tied_logits(fields: Mapping[str, Any]) -> tuple[bool, str]:
  """Returns whether logits are scaled if the output is tied, as it was saved.

  `scale_decoder_outputs` of transformers 5 says it; `tie_word_embeddings` did
  in version 4, but 5 writes true whatever the model. Its MT5 never scales, and
  does not say so.

  Returns:
    Whether they are, and the reason where they are not though it is tied.
  """
  told = fields.get('scale_decoder_outputs')
  if told is not None:
    return bool(told), '' if told else 'config.json says so'
  version = str(fields.get('transformers_version') or '0')
  major = version.partition('.')[0]
  if fields.get('model_type') == 'mt5' and major.isdigit() and int(major) >= 5:
    return False, f'transformers {version}, which wrote it, never does for mT5'
  return bool(fields.get('tie_word_embeddings', True)), ''


def config_to_huggingface(
  config: T5Config, *, dtype: str, model_type: str = 't5'
) -> dict[str, Any]:
  """Returns the fields of the config.json that describes a configuration.

  Args:
    config: the configuration.
    dtype: of the stored parameters.
    model_type: 't5' or 'mt5'.

  Raises:
    ValueError: if Hugging Face's T5 cannot compute it.
  """
  if model_type not in MODEL_TYPES:
    raise ValueError(f'model_type must be in {MODEL_TYPES}, got {model_type!r}')
  if model_type == 'mt5' and config.tied_embeddings:
    raise ValueError(
      'this model scales its logits, as a tied output demands, and the mT5 of '
      "transformers 5 never does: write it with model_type 't5' "
      '(--model_type=t5), which computes the same otherwise'
    )
  names = {ours: theirs for theirs, ours in reversed(_ACTIVATIONS.items())}
  if config.mlp_activations not in names:
    raise ValueError(
      f"Hugging Face's T5 has no feed-forward {config.mlp_activations!r}; it "
      f'has {sorted(names)}'
    )
  name = 'MT5' if model_type == 'mt5' else 'T5'
  return {
    'architectures': [f'{name}ForConditionalGeneration'],
    'model_type': model_type,
    **{theirs: getattr(config, ours) for ours, theirs in _SIZES.items()},
    'num_decoder_layers': config.num_decoder_layers,
    'feed_forward_proj': names[config.mlp_activations],
    'relative_attention_num_buckets': config.relative_buckets,
    'relative_attention_max_distance': config.relative_max_distance,
    'dropout_rate': config.dropout_rate,
    **_FIXED,
    'pad_token_id': 0,
    'decoder_start_token_id': 0,
    'eos_token_id': 1,
    'use_cache': True,
    # Says there whether logits are scaled as well; version 5 reads only that.
    'tie_word_embeddings': config.tied_embeddings,
    'torch_dtype': dtype,
  }
