"""Programs that measure: each prints a table and can write it as JSON.

They run without gin and TensorFlow: `python -m calm_jax.benchmarks.<name>`.
"""
