"""A script for test_mesh_decoding.py: cases decoded over two meshes.

Started with four devices forced by XLA_FLAGS, it is given depth loops and
names of `policy_cases`, and prints one line of JSON: what the compiled program
says between devices, and whether its outputs are those of one device.
"""

import json
import re
import sys

import jax
import numpy as np
from cases import policy_cases as cases

from calm_jax import decoding, quantisation, sharding
from calm_jax.decoding import token_loop

# Four devices on few cores: programs in flight would wait for each other's
# threads.
jax.config.update('jax_cpu_enable_async_dispatch', False)

COLLECTIVES = (
  'all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute|'
  'collective-broadcast|ragged-all-to-all'
)


def lengths_of(result):
  """The tokens that each request takes."""
  return result.lengths.reshape(cases.B, -1).max(axis=1)


def order_of(name):
  """Long rows first, so that the parts of a mesh differ."""
  return np.argsort(-lengths_of(cases.decode(name)), kind='stable')


def start(case, loop, mesh, num_rows=None):
  """Starts a case over a mesh, its rows in the order of their lengths."""
  rows = order_of(case.name)[:num_rows]
  return decoding.start(
    cases.bound(loop, mesh),
    cases.inputs()[rows],
    policy=case.policy(rows, case.threshold),
    sampler=case.sampler,
    max_length=cases.T,
    eos_id=cases.EOS_ID,
    rng=cases.request_keys()[rows],
    **case.options(rows),
  )


def program(state):
  """The compiled text of `advance`."""
  return token_loop.lower_advance(state).compile().as_text()


def groups(text):
  """The groups of devices that talk, whatever form they are written in."""
  found = set()
  for dims, devices, order in re.findall(
    r'replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', text
  ):
    shape = [int(size) for size in devices.split(',')]
    ids = np.arange(np.prod(shape)).reshape(shape)
    if order:
      ids = ids.transpose([int(axis) for axis in order.split(',')])
    ids = ids.reshape([int(size) for size in dims.split(',')])
    found.add(json.dumps(ids.tolist()))
  for listed in re.findall(r'replica_groups=(\{\{[\d,{}]*\}\})', text):
    found.add(listed.replace('{', '[').replace('}', ']').replace(',', ', '))
  return [json.loads(group) for group in sorted(found)]


def refused(*arguments, **options):
  """What `start` says against it."""
  try:
    start(*arguments, **options)
  except ValueError as error:
    return str(error)
  return ''


def describe(name, loop, sizes):
  """Decodes one case over one mesh."""
  case = cases.case(name)
  mesh = sharding.make_mesh(data=sizes[0], model=sizes[1])
  if message := refused(case, loop, mesh):
    return {'mesh': sizes, 'refused': message}
  state = start(case, loop, mesh)
  text = program(state)
  cache = state.carry.cache
  heads = jax.tree.leaves(cache.self_key)[0].sharding.spec[-1]
  rows = str(state.carry.alive.sharding.spec)
  result = cases.host(decoding.finish(decoding.advance(state)))
  expected, order = cases.decode(name), order_of(name)
  return {
    'mesh': sizes,
    'uneven': refused(case, loop, mesh, cases.B - 1),
    'equal': all(
      np.array_equal(getattr(result, field), getattr(expected, field)[order])
      for field in ('tokens', 'exit_layers', 'lengths')
    ),
    'collectives': sorted(
      set(re.findall(rf'= \S+ ({COLLECTIVES})(?:-start)?\(', text))
    ),
    'groups': groups(text),
    'rows': rows,
    'heads': heads,
    # Tokens until each part of the mesh had nothing left to do.
    'trips': lengths_of(result).reshape(sizes[0], -1).max(axis=1).tolist(),
  }


LOOPS = {
  **decoding.DEPTH_LOOPS,
  # The parts of a mesh have few rows.
  'shrinking_by_2': decoding.ShrinkingBatch(cases.WHILE, shrink_by=2),
}


def main(loops, *names):
  """Prints what test_mesh_decoding.py checks; 'int8' first for 8 bits."""
  if loops == 'int8':
    cases.WEIGHTS = quantisation.Int8Weights(encoder=True)
    loops, *names = names
  found = {}
  with jax.default_matmul_precision('highest'):
    for name in names:
      for loop in loops.split(','):
        for sizes in ([4, 1], [2, 2]):
          found[f'{name}, {loop}, {sizes}'] = describe(name, LOOPS[loop], sizes)
  print(json.dumps(found))


if __name__ == '__main__':
  main(*sys.argv[1:])
