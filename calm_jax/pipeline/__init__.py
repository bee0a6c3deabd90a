"""Strings in, strings out: tokenizer, checkpoint, certificate and decoding.

`load_run` reads what training left, `apply_certificate` is the only bridge from
statistics to decoding, and `TextGenerator` puts both together.
"""

from calm_jax.pipeline.certificates import (
  apply_certificate,
  certificate_context,
  certificate_differences,
)
from calm_jax.pipeline.runs import LoadedRun, load_classifier, load_run
from calm_jax.pipeline.text_generator import GeneratedText, TextGenerator

__all__ = [
  'GeneratedText',
  'LoadedRun',
  'TextGenerator',
  'apply_certificate',
  'certificate_context',
  'certificate_differences',
  'load_classifier',
  'load_run',
]
