"""Measures which way matrices lie best, by how many positions are multiplied.

  python -m calm_jax.benchmarks.layouts --shapes=t5_v1_1_base

The weights of a layer are kept as Flax has them, [I, O], and the output matrix
as [V, D], by token, since candidates are gathered from it. Each product is
timed so and with its weights transposed, in turns, for one position, blocks
and batches. Which is ahead depends on the processor and on what XLA calls for
it. Needs JAX and nothing else.
"""

import argparse
import statistics
import sys
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp

from calm_jax import model
from calm_jax.array_types import Array
from calm_jax.benchmarks import layouts_table, measured_rows
from calm_jax.benchmarks.arguments import Arguments
from calm_jax.benchmarks.layouts_table import LayoutRow
from calm_jax.evaluation import stopwatch

# More than what processors keep.
_BYTES = 150e6


def matrices(config: model.T5Config) -> dict[str, tuple[int, int, str]]:
  """Returns name -> I, O and how it is kept, of a decoder step."""
  width, heads = config.embed_dim, config.num_heads * config.head_dim
  gates = len(config.mlp_activations)
  return {
    'attention': (width, heads, 'I, O'),
    'feed-forward, in': (width, gates * config.mlp_dim, 'I, O'),
    'feed-forward, out': (config.mlp_dim, width, 'I, O'),
    'output matrix': (width, config.vocab_size, 'O, I'),
  }


def measure(
  shape: str,
  positions: Sequence[int],
  *,
  num_repeats: int,
  num_bytes: float = _BYTES,
  seed: int = 0,
  config: model.T5Config | None = None,
) -> Iterator[LayoutRow]:
  """Yields the rows of one shape.

  Args:
    shape: a name of `T5Config.named`, or what to call `config`.
    positions: numbers of positions P, 1 or more.
    num_repeats: turns.
    num_bytes: of all matrices that one turn multiplies with.
    seed: of weights and states.
    config: another model than the named one.

  Raises:
    ValueError: for numbers of positions that are none.
  """
  config = config or model.T5Config.named(shape)
  if not positions or min(positions) < 1:
    raise ValueError(f'positions are {list(positions)}; give numbers from 1 on')
  for name, (inputs, outputs, kept_as) in matrices(config).items():
    count = max(1, round(num_bytes / (4 * inputs * outputs)))
    kept_size = (inputs, outputs) if kept_as == 'I, O' else (outputs, inputs)
    keys = jax.random.split(jax.random.key(seed), count)
    kept = [jax.random.normal(key, kept_size) for key in keys]
    other = [jnp.swapaxes(weights, 0, 1).copy() for weights in kept]
    by_output = kept_as == 'O, I'
    for number in positions:
      states = jax.random.normal(jax.random.key(seed), (number, inputs))
      runs = {
        'kept': _products(states, kept, by_output=by_output),
        'other': _products(states, other, by_output=not by_output),
      }
      seconds = stopwatch.interleaved_seconds(runs, num_repeats)
      medians = {
        way: 1e3 * statistics.median(turns) / count
        for way, turns in seconds.items()
      }
      yield LayoutRow(
        shape=shape,
        matrix=name,
        num_inputs=inputs,
        num_outputs=outputs,
        positions=number,
        kept_milliseconds=medians['kept'],
        other_milliseconds=medians['other'],
        kept_as=kept_as,
      )


def _products(states: Array, weights: list[Array], *, by_output: bool):
  """Returns a function that multiplies states with all matrices, compiled.

  Args:
    states: [P, I].
    weights: [O, I] each if `by_output`, else [I, O].
    by_output: which.
  """
  pattern = 'pi,oi->po' if by_output else 'pi,io->po'

  @jax.jit
  def run(states, weights):
    return [jnp.einsum(pattern, states, matrix) for matrix in weights]

  jax.block_until_ready(run(states, weights))
  return lambda: run(states, weights)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
  parser = Arguments('layouts', __doc__)
  add = parser.add
  add('shapes', 't5_v1_1_small,t5_v1_1_base', 'models, separated by commas')
  add('positions', '1,2,4,8,16,64', 'how many are multiplied, by commas')
  add('num_repeats', 9, 'turns; medians are reported', type=int)
  add('seed', 0, 'of weights and states', type=int)
  add('output', None, 'a JSON file to write')
  return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
  """Measures, writes and prints."""
  flags = _parse(arguments)
  rows = []
  try:
    for shape in flags.shapes.split(','):
      print(shape, file=sys.stderr, flush=True)
      rows += measure(
        shape,
        [int(one) for one in flags.positions.split(',')],
        num_repeats=flags.num_repeats,
        seed=flags.seed,
      )
  except ValueError as error:
    sys.exit(f'layouts: {error}')
  measured = measured_rows.of_this_process(
    rows, flags, device=jax.devices()[0].device_kind, dtype='float32'
  )
  measured_rows.publish(measured, layouts_table.table, flags.output)


if __name__ == '__main__':
  main()
