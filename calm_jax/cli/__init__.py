"""Command-line jobs: `python -m calm_jax.cli.<job>`, assembled by gin files.

Every job is a module with a function `run` that gin configures and a `main` of
one line; `gin_runner` is the only file that imports gin.
"""
