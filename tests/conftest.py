"""Settings of the whole suite, made before anything loads JAX."""

import os

# Tiny programs that run once: compiling them is what takes time, and a third of
# that is optimisation by LLVM. A flag set by the caller wins.
os.environ.setdefault('XLA_FLAGS', '--xla_backend_optimization_level=0')
# Quiet, and the same on a machine that has an accelerator.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
