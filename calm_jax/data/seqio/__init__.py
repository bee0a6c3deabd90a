"""The half of `calm_jax.data` that reads through seqio and TensorFlow.

The only home of both in this project. `calm_jax.data` names what is public
here, and loads it when it is first used.
"""
