"""What an evaluation predicts, a line of JSON per input, a file per process.

  predictions/early-00001-of-00004.jsonl

Each process writes the rows that it decoded, so that no host waits for another;
all files together hold every input once.
"""

import os
from collections.abc import Iterator, Mapping

from calm_jax import records
from calm_jax.evaluation.decoded_dataset import DecodedDataset
from calm_jax.processes import collectives


def write_predictions(
  directory: str, decodes: Mapping[str, DecodedDataset]
) -> None:
  """Writes this process's rows of some decodes to DIRECTORY/predictions.

  Args:
    directory: the job's.
    decodes: name -> the whole decode.
  """
  share = collectives.Share.here()
  folder = os.path.join(directory, 'predictions')
  os.makedirs(folder, exist_ok=True)
  if collectives.is_main_process():
    _remove_others(folder, share.count)
  for name, decoded in decodes.items():
    part = f'{share.index:05d}-of-{share.count:05d}'
    path = os.path.join(folder, f'{name}-{part}.jsonl')
    records.write_jsonl(path, _rows(decoded, share))


def _remove_others(folder: str, count: int) -> None:
  """Removes what another number of processes wrote: it would count twice."""
  for name in os.listdir(folder):
    if name.endswith('.jsonl') and not name.endswith(f'-of-{count:05d}.jsonl'):
      os.remove(os.path.join(folder, name))


def _rows(decoded: DecodedDataset, share: collectives.Share) -> Iterator[dict]:
  """Yields the rows of a share, in their order."""
  for row in range(decoded.num_examples):
    if not share.holds(row):
      continue
    length = int(decoded.lengths[row])
    yield {
      'line': row + 1,
      'inputs': decoded.inputs_text[row],
      'references': list(decoded.references[row]),
      'output': decoded.texts[row],
      'tokens': decoded.tokens[row, :length].tolist(),
      'exit_layers': decoded.exit_layers[row, :length].tolist(),
      'confidences': decoded.confidences[row, :length].tolist(),
      'score': float(decoded.scores[row]),
    }
