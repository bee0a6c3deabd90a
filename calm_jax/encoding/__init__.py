"""placeholder until merged."""

from calm_jax.encoding.replaying import AllLayers, all_layers, replay

__all__ = ['AllLayers', 'all_layers', 'replay']
