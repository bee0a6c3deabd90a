"""Packaging of calm_jax: the base install decodes, the extras do the rest."""

import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(
  r"^__version__ = '([^']+)'",
  (ROOT / 'calm_jax' / '__init__.py').read_text(encoding='utf-8'),
  re.MULTILINE,
).group(1)

SEQIO = [
  'seqio>=0.0.20',
  'tensorflow>=2.21',
  'tensorflow-datasets>=4.9.10',
  # TensorFlow no longer brings it, and seqio's loggers fail without it.
  'tensorboard>=2.20',
  # The embedded corpus writes numbers and dates out in words with it.
  'num2words>=0.5.14',
]
METRICS = ['rouge-score>=0.1.2', 'sacrebleu>=2.4']
REPORTS = ['jinja2>=3.1', 'matplotlib>=3.9']
# safetensors checks the files that checkpoints/safetensors_files.py writes.
TESTS = [
  'pytest>=8',
  'pytest-xdist>=3.6',
  'mapie>=1.0',
  # What it formats how changes from one minor version to the next.
  'ruff>=0.17,<0.18',
  # Pyright with a node of its own: it downloads nothing when it runs.
  'basedpyright>=1.40,<2',
  'safetensors>=0.5',
]

GIN_PACKAGES = {
  'calm_jax.gin_configs': 'gin_configs',
  **{
    f'calm_jax.gin_configs.{folder}': f'gin_configs/{folder}'
    for folder in ('models', 'tasks', 'policies', 'runs', 'spaces', 't5x')
  },
}

setuptools.setup(
  name='calm_jax',
  version=VERSION,
  description='Confident Adaptive Language Modeling for T5 in JAX and Flax',
  long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  python_requires='>=3.11',
  packages=[
    *setuptools.find_packages(include=['calm_jax', 'calm_jax.*']),
    *GIN_PACKAGES,
  ],
  package_dir=GIN_PACKAGES,
  package_data={
    # Says that the annotations are there to be checked (PEP 561).
    'calm_jax': ['py.typed'],
    'calm_jax.reporting': [
      'page.html.jinja',
      'page.css',
      'tuning.html.jinja',
    ],
    **{package: ['*.gin'] for package in GIN_PACKAGES},
  },
  install_requires=[
    'absl-py>=2.1',
    'flax>=0.12',
    'gin-config>=0.5,<0.6',
    'jax>=0.10',
    # Brings bfloat16 to NumPy, for checkpoints that are stored in it.
    'ml_dtypes>=0.5',
    'numpy>=2.0',
    'optax>=0.2.5',
    # Its 1.0 moves the namespace that checkpoints/native.py uses.
    'orbax-checkpoint>=0.11,<1.0',
    'scipy>=1.14',
    'sentencepiece[protobuf]>=0.2',
    # Reads and writes zarr and OCDBT, local and in clouds.
    'tensorstore>=0.1.76',
    # gin checks no types; cli/binding_types.py does, with it.
    'typeguard>=4.3',
  ],
  extras_require={
    'seqio': SEQIO,
    'metrics': METRICS,
    'reports': REPORTS,
    'tests': TESTS,
    'cuda12': ['jax[cuda12]'],
    'cuda13': ['jax[cuda13]'],
    'tpu': ['jax[tpu]'],
    'all': [*SEQIO, *METRICS, *REPORTS, *TESTS],
  },
)
