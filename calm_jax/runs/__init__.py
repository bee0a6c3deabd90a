"""A run directory as a value: its model, its tokenizer, its certificate.

`load_run` reads what training left; `apply_certificate` is the only bridge from
statistics to decoding.
"""

from calm_jax.runs.certificates import (
  apply_certificate,
  certificate_context,
  certificate_differences,
)
from calm_jax.runs.loading import (
  LoadedRun,
  load_classifier,
  load_run,
  load_with_vocabulary,
)

__all__ = [
  'LoadedRun',
  'apply_certificate',
  'certificate_context',
  'certificate_differences',
  'load_classifier',
  'load_run',
  'load_with_vocabulary',
]
