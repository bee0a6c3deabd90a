"""A file of inputs as a Task of the run that is to read them.

For `tasks/input_lines.gin`: whoever has a finished model has inputs, and maybe
no references and no Task. The vocabulary and the prefix are the run's.
"""

import os
import re
from collections.abc import Mapping

from calm_jax import checkpoints, data
from calm_jax.pipeline.files import input_lines
from calm_jax.text_lines import BadLine
from calm_jax.tokenizer import find_tokenizer


def inputs_of_run(
  model_dir: str,
  input_file: str,
  *,
  input_format: str = 'auto',
  shares: Mapping[str, float] | None = None,
  name: str | None = None,
) -> data.TextInputs:
  """Returns the Task of a file's inputs, in the vocabulary of a run.

  Args:
    model_dir: the run directory.
    input_file: the file, one text or JSON object {"inputs": "..."} a line.
    input_format: 'text', 'jsonl' or 'auto', as for `generate`.
    shares: split -> its share of the inputs; those of `data.TextInputs` if
      None.
    name: the Task's; by the file's if None.

  Raises:
    FileNotFoundError: if there is no such file, or no run.
    ValueError: on a line that cannot be used, named by its number, or a run
      without a vocabulary.
  """
  path = os.path.expanduser(input_file)
  if not os.path.exists(path):
    raise FileNotFoundError(f'there is no input file {path}')
  inputs = []
  for line in input_lines.read_file(path, input_format):
    if isinstance(line, BadLine):
      raise ValueError(
        f'{path} line {line.number} {line.reason}; mend it or leave it out'
      )
    inputs.append(line.text)
  model_dir = os.path.expanduser(model_dir)
  metadata = checkpoints.read_metadata(checkpoints.find_checkpoint(model_dir))
  context = metadata['context']
  if 'vocabulary_file' not in context:
    raise ValueError(
      f'{model_dir} does not say which vocabulary it was trained with: convert '
      'it with --vocabulary'
    )
  tokenizer = find_tokenizer(context, model_dir)
  if name is None:
    stem = os.path.basename(path).split('.')[0]
    name = f'inputs_{re.sub(r"[^0-9a-zA-Z_]", "_", stem)}'
  options = {} if shares is None else {'shares': shares}
  return data.TextInputs(
    name=name,
    inputs=inputs,
    vocabulary=tokenizer.name,
    prefix=context.get('prefix', ''),
    extra_ids=tokenizer.extra_ids,
    **options,
  )
