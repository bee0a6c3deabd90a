"""Confident Adaptive Language Modeling (CALM, arXiv 2207.07061) for T5 in JAX.

T5 models that stop computing each token at the first decoder layer whose
confidence passes a threshold, and a statistical procedure (Learn then Test)
that picks the threshold so that the output stays close to the full model's
with a stated probability. Importing this package loads nothing; its
subpackages load when they are first named, and so does `load`:

  generator = calm_jax.load('runs/demo', certificate='tuned')
  generator.generate(['...'])
"""

import importlib
import typing

if typing.TYPE_CHECKING:
  from calm_jax.pipeline import load

__version__ = '0.1.0'

_SUBPACKAGES = (
  'array_types',
  'benchmarks',
  'calibration',
  'checkpoints',
  'checks',
  'costs',
  'data',
  'decoding',
  'deployment',
  'encoding',
  'evaluation',
  'examples',
  'exits',
  'interfaces',
  'model',
  'pipeline',
  'processes',
  'pytrees',
  'quantisation',
  'records',
  'reporting',
  'runs',
  'sharding',
  'tokenizer',
  'training',
)

__all__ = ['__version__', 'load', *_SUBPACKAGES]


def __getattr__(name):
  """Loads a subpackage or `load` when it is first named (PEP 562)."""
  if name in _SUBPACKAGES:
    return importlib.import_module(f'{__name__}.{name}')
  if name == 'load':
    return importlib.import_module(f'{__name__}.pipeline').load
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__():
  return sorted(__all__)
