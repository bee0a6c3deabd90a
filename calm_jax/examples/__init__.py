"""Short programs that use the library from outside; each runs by itself.

python -m calm_jax.examples.inside_jit      the decoder in another jitted
                                            program
python -m calm_jax.examples.nnx_model       another model (Flax NNX) behind
                                            the LayeredDecoder
python -m calm_jax.examples.numpy_client    an exported decoder, called
                                            without calm_jax
"""
