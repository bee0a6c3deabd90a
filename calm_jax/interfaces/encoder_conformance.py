"""Tries an encoder that is taken apart; a part of `check_decoder`."""

import jax
import jax.numpy as jnp

from calm_jax.array_types import Array, PyTree
from calm_jax.interfaces.layered_encoder import LayeredEncoder
from calm_jax.interfaces.trial import Trial


def check_encoder(trial: Trial, encoded: PyTree) -> None:
  """Raises the fault of an encoder that is not the one of the decoder.

  Args:
    trial: the decoder on trial, which has an encoder.
    encoded: its encoded sources.
  """
  encoder = trial.decoder.encoder
  assert encoder is not None
  mask, found, depths = _run(trial, encoder, trial.inputs)
  name, shape = 'encoder.embed', trial.inputs.shape
  trial.has_form(name, mask, shape, bool, 'of tokens')
  trial.equal(
    name,
    mask,
    trial.inputs != 0,
    'says of other positions than those of tokens that they are',
    'return False where inputs are 0 and True elsewhere',
  )
  states = (*shape, trial.decoder.embed_dim)
  for hidden in depths:
    trial.has_form('encoder.layer', hidden, states, encoder.dtype, 'of states')
  trial.same_form(
    'encoder.finish',
    found,
    encoded,
    'it returns sources of another form than encode',
    'return what encode returns',
  )
  trial.equal(
    'encoder.finish',
    found,
    encoded,
    'behind all layers it says other sources than encode',
    'run the same layers, and end with the same norm',
  )
  pooled, _ = encoder.pool(found)
  trial.has_form(
    'encoder.pool', pooled, (shape[0], states[-1]), jnp.float32, 'of means'
  )
  for row in range(shape[0]):
    _, *alone = _run(trial, encoder, trial.inputs[row : row + 1])
    trial.equal(
      'encoder.layer',
      alone,
      jax.tree.map(lambda leaf, row=row: leaf[row : row + 1], [found, depths]),
      f'row {row} alone is not row {row} among {shape[0]}',
      'let no row look at another one: mind sums and axes over the batch',
    )


def _run(
  trial: Trial, encoder: LayeredEncoder, inputs: Array
) -> tuple[Array, PyTree, list[Array]]:
  """Returns the mask, encoded sources, and the states by layer."""

  @jax.jit
  def run(params, inputs):
    params = encoder.prepare(params)
    hidden, mask = encoder.embed(params, inputs)
    shared = encoder.shared(params, inputs.shape[1])
    depths = []
    for layer in range(encoder.num_layers):
      hidden = encoder.layer(params, layer, hidden, mask, shared)
      depths.append(hidden)
    return mask, encoder.finish(params, hidden, mask), depths

  return run(trial.params, inputs)
