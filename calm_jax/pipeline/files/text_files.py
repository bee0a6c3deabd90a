"""Where texts come from, where rows go, and how the one becomes the other."""

import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterator, Sequence

import jax

from calm_jax import pipeline
from calm_jax.pipeline.files import input_lines, line_decoding
from calm_jax.pipeline.files.input_lines import (
  STANDARD_INPUT,
  BadLine,
  InputLine,
)
from calm_jax.pipeline.files.row_files import RowFile
from calm_jax.processes import speaking
from calm_jax.records import provenance


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextFiles:
  """Texts, or a file of them, and the file that their outputs go to.

  Attributes:
    inputs: texts, or one text (which gin may have read as a number).
    input_file: instead, a file with one a line; '-' is standard input.
    input_format: see `input_lines.read_file`.
    output_file: where rows go, one JSON object a line; for `input_file`,
      standard output if None.
  """

  inputs: Sequence[str] | str | float = ()
  input_file: str | None = None
  input_format: str = 'auto'
  output_file: str | None = None

  def __post_init__(self):
    """Expands `~`; raises ValueError unless there is one source, readable."""
    for name in ('input_file', 'output_file'):
      if (path := getattr(self, name)) is not None:
        object.__setattr__(self, name, os.path.expanduser(path))
    if not isinstance(self.inputs, (list, tuple)):
      object.__setattr__(self, 'inputs', [str(self.inputs)])
    if bool(self.inputs) == (self.input_file is not None):
      raise ValueError(
        'give either INPUTS, a text, or INPUT_FILE, a file of them (- reads '
        f'standard input); got {list(self.inputs)!r} and {self.input_file!r}'
      )
    input_lines.check_format(self.input_format)

  def check(self) -> None:
    """Checks both files before a model is loaded.

    Raises:
      FileNotFoundError: if the input file is not there.
      ValueError: if rows cannot be written to the output file.
    """
    path = self.input_file
    if path not in (None, STANDARD_INPUT) and not os.path.exists(path):
      raise FileNotFoundError(f'there is no input file {path}')
    if self.output_file is not None:
      _check_output(self.output_file, path)

  @property
  def is_shown(self) -> bool:
    """Whether outputs are for the eyes, and no rows are written."""
    return self.input_file is None and self.output_file is None

  @property
  def is_typed(self) -> bool:
    """Whether somebody types texts and reads the answers."""
    return (
      self.input_file == STANDARD_INPUT
      and self.output_file is None
      and sys.stdin.isatty()
    )

  @property
  def source(self) -> str:
    """How messages call the input."""
    names = {None: 'INPUTS', STANDARD_INPUT: 'standard input'}
    return names.get(self.input_file, self.input_file)

  @property
  def is_read_again(self) -> bool:
    """Whether the lines can be read more than once; those of pipes cannot."""
    return self.input_file is None or os.path.isfile(self.input_file)

  def lines(self) -> Iterator[InputLine | BadLine]:
    """Yields the lines from the first on."""
    if self.input_file is not None:
      return input_lines.read_file(self.input_file, self.input_format)
    return iter([InputLine(*one) for one in enumerate(self.inputs, 1)])


def _check_output(output: str, source: str | None) -> None:
  """Raises ValueError if rows of a source cannot go to a path; says why."""
  if os.path.isdir(output):
    raise ValueError(f'OUTPUT_FILE {output} is a folder; name a file in it')
  if output.endswith(('.gz', '.bz2', '.xz', '.zst')):
    raise ValueError(
      f'OUTPUT_FILE {output} ends like a packed file, and rows are written as '
      f'plain text: name it {os.path.splitext(output)[0]} and pack it when the '
      'job is done'
    )
  if not os.path.exists(output):
    return
  if not os.path.isfile(output):
    raise ValueError(
      f'OUTPUT_FILE {output} is no file that a job could go on with; leave '
      'OUTPUT_FILE out, and rows go to standard output'
    )
  read = None
  if source == STANDARD_INPUT:
    with contextlib.suppress(OSError):
      read = os.fstat(0)
  elif source is not None:
    read = os.stat(source)
  if read is not None and os.path.samestat(read, os.stat(output)):
    raise ValueError(
      f'OUTPUT_FILE {output} is the INPUT_FILE itself: rows would be written '
      'into the texts that are read. Name another OUTPUT_FILE'
    )


def decode_file(
  generator: pipeline.TextGenerator,
  files: TextFiles,
  options: line_decoding.LineOptions,
  *,
  auditor: pipeline.Auditor | None = None,
) -> None:
  """Decodes all lines of an input into rows; goes on with those of before.

  Args:
    generator: the model.
    files: the input, and the file of the rows.
    options: how lines are decoded.
    auditor: decodes some of them at full depth as well; None for none.

  Raises:
    FileNotFoundError: if there is no input file.
    ValueError: see `line_decoding.survey` and `RowFile`.
  """
  files.check()
  about = {
    **generator.describe(),
    'too_long': options.too_long,
    'batch_size': options.batch_size,
    'num_samples': options.num_samples,
    'seed': options.seed,
    # As earlier versions have it where nothing is audited.
    'audit': None if auditor is None else auditor.describe(),
  }
  context = provenance.run_context(
    device=jax.devices()[0].device_kind,
    dtype=str(generator.source.get('dtype', '')),
    libraries=provenance.LIBRARIES,
    details={},
  )
  path = files.output_file
  with RowFile(path, about, context=context, stream=sys.stdout) as rows:
    total = None
    if files.is_read_again:
      total = line_decoding.survey(
        generator, files.lines(), rows, options, source=files.source
      )
    line_decoding.decode_lines(
      generator,
      files.lines(),
      rows,
      options,
      source=files.source,
      say=speaking.tell,
      total=total,
      auditor=auditor,
    )
