"""Calls an exported decoder with NumPy arrays, without calm_jax.

  python numpy_client.py ARTIFACT 0.8 '21 7 9 1' '14 3 1'

ARTIFACT is a directory that `python -m calm_jax.cli.export` wrote; then a
threshold in [0, 1], and token ids of each input, the end of sequence included.
This file needs NumPy and jax, whose export module loads and runs the program;
copy it to wherever the model is served. It checks what it is given as
`calm_jax.deployment.load_artifact` does, and no hashes of files.
"""

import json
import pathlib
import sys

import jax
import ml_dtypes
import numpy as np
from jax import export

DTYPES = {
  'F32': np.float32,
  'F16': np.float16,
  'BF16': ml_dtypes.bfloat16,  # jax brings it
  'I8': np.int8,
}


def read_safetensors(path):
  """Returns arrays by name: a length, a JSON header, then the data."""
  data = np.memmap(path, np.uint8, mode='r')
  start = 8 + int(data[:8].view('<u8')[0])
  header = json.loads(data[8:start].tobytes())
  header.pop('__metadata__', None)
  arrays = {}
  for name, entry in header.items():
    first, last = (start + offset for offset in entry['data_offsets'])
    values = data[first:last].view(DTYPES[entry['dtype']])
    arrays[name] = values.reshape(entry['shape'])
  return arrays


class Client:
  """An artifact, loaded: NumPy in, NumPy out."""

  def __init__(self, directory):
    directory = pathlib.Path(directory)
    manifest = json.loads((directory / 'manifest.json').read_text())
    self.source_length = manifest['source_length']
    self.vocab_size = manifest['vocab_size']
    program = export.deserialize(
      bytearray((directory / 'program.jax_export').read_bytes())
    )
    self._program = jax.jit(program.call)
    # On the device, once and not in every call.
    self._parameters = jax.device_put(
      read_safetensors(directory / 'parameters.safetensors')
    )

  def decode(self, rows, threshold):
    """Decodes lists of token ids; returns a dict of NumPy arrays.

    Compiled once per number of rows: serve few different numbers.

    Raises:
      ValueError: for what the program would decode into nonsense.
    """
    if not 0 <= threshold <= 1:
      raise ValueError(f'threshold is {threshold}; give one in [0, 1]')
    if not rows:
      raise ValueError('there are no rows; give at least one')
    tokens = np.zeros((len(rows), self.source_length), np.int32)
    for number, (row, ids) in enumerate(zip(tokens, rows, strict=True)):
      row[: len(ids)] = self._checked(number, ids)
    inputs = {'tokens': tokens, 'threshold': np.float32(threshold)}
    return jax.device_get(self._program(self._parameters, inputs))

  def _checked(self, number, ids):
    """Returns a row of ids, which must be there and be the model's."""
    if not any(ids) or len(ids) > self.source_length:
      raise ValueError(
        f'row {number} has {len(ids)} tokens; give 1 to {self.source_length}, '
        'not all of them padding (0)'
      )
    for token in ids:
      if not 0 <= token < self.vocab_size:
        raise ValueError(
          f'token {token} in row {number} is outside [0, {self.vocab_size})'
        )
    return ids


def main(directory, threshold, *rows):
  """Decodes rows of token ids and prints tokens and exit layers."""
  try:
    client = Client(directory)
    rows = [[int(token) for token in row.split()] for row in rows]
    result = client.decode(rows, float(threshold))
  except (OSError, ValueError) as error:
    sys.exit(f'{error}')
  for row, length in enumerate(result['lengths']):
    print('tokens', *result['tokens'][row, :length])
    print('layers', *result['exit_layers'][row, :length])


if __name__ == '__main__':
  if len(sys.argv) < 4:
    sys.exit(__doc__)
  main(*sys.argv[1:])
