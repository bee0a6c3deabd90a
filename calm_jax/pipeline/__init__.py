"""Strings in, strings out: tokenizer, checkpoint, certificate and decoding.

`TextGenerator` puts them together and `load` makes one; `files` decodes files
of texts with it.
"""

from calm_jax.pipeline.auditing import Auditor
from calm_jax.pipeline.generated_text import GeneratedText, StreamedToken
from calm_jax.pipeline.loading import load
from calm_jax.pipeline.monitor import Monitor
from calm_jax.pipeline.requests import Request, RequestBatch
from calm_jax.pipeline.text_generator import TextGenerator
from calm_jax.pipeline.token_choices import prefix_tokens

__all__ = [
  'Auditor',
  'GeneratedText',
  'Monitor',
  'Request',
  'RequestBatch',
  'StreamedToken',
  'TextGenerator',
  'load',
  'prefix_tokens',
]
