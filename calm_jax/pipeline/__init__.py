"""Strings in, strings out: tokenizer, checkpoint, certificate and decoding.

`load_run` reads what training left, `apply_certificate` is the only bridge from
statistics to decoding, and `TextGenerator` puts both together.
"""

from calm_jax.pipeline.certificates import (
  apply_certificate,
  certificate_context,
  certificate_differences,
)
from calm_jax.pipeline.generated_text import GeneratedText, StreamedToken
from calm_jax.pipeline.requests import Request, RequestBatch
from calm_jax.pipeline.runs import (
  LoadedRun,
  load_classifier,
  load_run,
  load_with_vocabulary,
)
from calm_jax.pipeline.text_generator import TextGenerator
from calm_jax.pipeline.token_choices import prefix_tokens

__all__ = [
  'GeneratedText',
  'LoadedRun',
  'Request',
  'RequestBatch',
  'StreamedToken',
  'TextGenerator',
  'apply_certificate',
  'certificate_context',
  'certificate_differences',
  'load_classifier',
  'load_run',
  'load_with_vocabulary',
  'prefix_tokens',
]
