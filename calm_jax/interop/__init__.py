"""Adapters that let calm_jax run inside other projects' jobs.

Nothing here is imported by the rest of the package, and no project that is
adapted to needs to be installed.
"""
