"""Decodes the lines of an input into rows, for `generate`.

The same lines always make the same batches, whatever of them is done already:
an interrupted job, started again, passes over the batches that it has and
decodes the others as it would have.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from calm_jax import pipeline, records
from calm_jax.evaluation.decode_progress import DecodeProgress
from calm_jax.pipeline import auditable
from calm_jax.pipeline.files.input_lines import BadLine, InputLine
from calm_jax.pipeline.files.row_files import RowFile

BAD_LINES = ('fail', 'skip')
# How many batches of lines may be decoded ahead of a line that must wait.
_BATCHES_AHEAD = 16
_MOST_NAMED = 10

Lines = Iterable[InputLine | BadLine]
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class LineOptions:
  """How lines are decoded.

  Attributes:
    bad_lines: 'fail' ends the job at lines that cannot be used, 'skip' reports
      them and goes on.
    too_long: 'refuse' makes bad lines of texts that are too long, 'truncate'
      cuts them with a warning.
    batch_size: texts decoded together, at most.
    num_samples: outputs per text, for samplers that draw and for beams.
    seed: of what they draw, and of which lines are audited.
    audit: the fraction of lines that are decoded at full depth as well, in
      (0, 1], so that `calm_jax.cli.monitor` can watch the certificate; None for
      none.
    audit_metric: see `pipeline.Auditor.of`.
  """

  bad_lines: str = 'fail'
  too_long: str = 'refuse'
  batch_size: int = 16
  num_samples: int = 1
  seed: int = 0
  audit: float | None = None
  audit_metric: str | None = None

  def __post_init__(self):
    if self.audit is not None:
      auditable.check_fraction(self.audit)
    if self.bad_lines not in BAD_LINES:
      raise ValueError(
        f'bad_lines is {self.bad_lines!r}; use one of {BAD_LINES}'
      )


def usable_lines(
  generator: pipeline.TextGenerator, lines: Lines, options: LineOptions
) -> Iterator[tuple[InputLine, pipeline.Request] | BadLine]:
  """Yields every line with its request, or why it cannot be used."""
  for line in lines:
    if isinstance(line, BadLine):
      yield line
      continue
    try:
      request = generator.encode(
        line.number - 1,
        line.text,
        too_long=options.too_long,
        name='',
      )
    except ValueError as error:
      yield BadLine(line.number, str(error).strip())
    else:
      yield line, request


def survey(
  generator: pipeline.TextGenerator,
  lines: Lines,
  rows: RowFile,
  options: LineOptions,
  *,
  source: str,
) -> int:
  """Looks at all lines before anything is decoded; returns how many are good.

  Raises:
    ValueError: if there is nothing to decode, if lines are bad and not to be
      skipped, or if the rows that are there are of another input.
  """
  count, number, bad = 0, 0, []
  for found in usable_lines(generator, lines, options):
    if isinstance(found, BadLine):
      number = found.number
      bad.append(found)
      if len(bad) > _MOST_NAMED and options.bad_lines == 'fail':
        break
      continue
    number = found[0].number
    count += 1
    rows.check(number, found[0].text)
  if bad and options.bad_lines == 'fail':
    raise ValueError(_refusal(bad, source))
  _check_any(count, number, source)
  rows.check_last(number)
  return count


def decode_lines(
  generator: pipeline.TextGenerator,
  lines: Lines,
  rows: RowFile,
  options: LineOptions,
  *,
  source: str,
  say: Say,
  total: int | None = None,
  auditor: pipeline.Auditor | None = None,
) -> None:
  """Decodes what has no row yet.

  Args:
    generator: the model.
    lines: all lines of the input.
    rows: where outputs go.
    options: how lines are decoded.
    source: how messages call the input.
    say: gets a line of progress, a warning or a report of a bad line.
    total: how many lines are good, if known.
    auditor: decodes some lines at full depth as well; None for none.

  Raises:
    ValueError: as `survey`.
  """
  reader = _Reader(generator, lines, rows, options, source, say)
  progress = DecodeProgress(say, total, there=len(rows))
  batches = generator.batches(
    reader.requests(),
    options.batch_size,
    window=_BATCHES_AHEAD * options.batch_size,
  )
  failed: list[int] = []
  for batch in batches:
    batch_lines = [reader.take(request.number) for request in batch.requests]
    if all(line.number in rows for line in batch_lines):
      continue
    outputs = generator.decode(
      batch, num_samples=options.num_samples, seed=options.seed
    )
    audits: Mapping[int, records.Audit] = {}
    if auditor is not None:
      # All of the batch, as if it had not been interrupted.
      first_texts = [samples[0].text for samples in outputs]
      audits = auditor.audit(batch, first_texts, seed=options.seed)
    rows.add(
      [
        make_row(line, samples, audits.get(place))
        for place, (line, samples) in enumerate(
          zip(batch_lines, outputs, strict=True)
        )
        if line.number not in rows
      ]
    )
    texts = [text for samples in outputs for text in samples]
    failed += [
      line.number
      for line, samples in zip(batch_lines, outputs, strict=True)
      if any(sample.error for sample in samples)
    ]
    progress.update(
      len(outputs),
      sum(len(text.tokens) for text in texts),
      (layer for text in texts for layer in text.chosen_layers),
      _encoder_layers(outputs),
    )
  _check_any(reader.num_good, reader.last_line, source)
  rows.check_last(reader.last_line)
  rows.finish()
  progress.finish(generator.bound.num_layers)
  if failed:
    say(
      f'{len(failed)} lines have outputs that end where numbers were not '
      f'finite: {_some(sorted(failed))}; each says where under "error"'
    )
  if reader.skipped:
    say(f'{len(reader.skipped)} lines skipped: {_some(reader.skipped)}')


def _encoder_layers(
  outputs: Sequence[Sequence[pipeline.GeneratedText]],
) -> list[int]:
  """Returns the encoder layers of inputs, of those that may leave early."""
  found = (samples[0].encoder_exit_layer for samples in outputs)
  return [layer for layer in found if layer is not None]


def make_row(
  line: InputLine,
  samples: Sequence[pipeline.GeneratedText],
  audit: records.Audit | None = None,
) -> dict[str, Any]:
  """Returns the row of a line: its other fields, its text and the output.

  With several outputs they are under 'samples'. A field of the input whose name
  is taken is kept as `input_<name>`.
  """
  outputs = [_output_fields(sample) for sample in samples]
  row = {
    'line': line.number,
    'inputs': line.text,
    **(outputs[0] if len(outputs) == 1 else {'samples': outputs}),
    'certified': all(sample.certified for sample in samples),
  }
  if samples[0].warnings:
    row['warnings'] = list(samples[0].warnings)
  if audit is not None:
    row[records.AUDITED] = records.to_jsonable(audit)
  taken = {*row, 'samples', 'warnings', records.AUDITED}
  others = {
    f'input_{name}' if name in taken else name: value
    for name, value in line.fields.items()
  }
  return {**others, **row}


def _output_fields(output: pipeline.GeneratedText) -> dict[str, Any]:
  fields = dataclasses.asdict(output)
  del fields['certified'], fields['warnings']
  for name in ('error', 'encoder_exit_layer'):
    if fields[name] is None:
      del fields[name]
  return fields


class _Reader:
  """Lines as requests, with the bad ones reported."""

  def __init__(self, generator, lines, rows, options, source, say):
    self._generator = generator
    self._lines = lines
    self._rows = rows
    self._options = options
    self._source = source
    self._say = say
    self._read: dict[int, InputLine] = {}
    self.num_good = self.last_line = 0
    self.skipped: list[int] = []

  def take(self, number: int) -> InputLine:
    """Returns the line of a request and forgets it."""
    return self._read.pop(number)

  def requests(self) -> Iterator[pipeline.Request]:
    """Yields a request for every good line."""
    for found in usable_lines(self._generator, self._lines, self._options):
      if isinstance(found, BadLine):
        self._report(found)
        continue
      line, request = found
      self.last_line = line.number
      self.num_good += 1
      self._rows.expect(line.number, line.text)
      if line.number not in self._rows:
        for warning in request.warnings:
          self._say(f'{self._source} line {line.number}: {warning}')
      self._read[request.number] = line
      yield request

  def _report(self, bad: BadLine) -> None:
    self.last_line = bad.number
    if self._options.bad_lines == 'fail':
      raise ValueError(_refusal([bad], self._source))
    self._say(f'{self._source} line {bad.number} {bad.reason}: skipped')
    self.skipped.append(bad.number)


def _some(numbers: Sequence[int]) -> str:
  more = ', ...' if len(numbers) > _MOST_NAMED else ''
  return ', '.join(map(str, numbers[:_MOST_NAMED])) + more


def _check_any(count: int, last_line: int, source: str) -> None:
  if not count:
    why = f'all {last_line} lines are bad' if last_line else 'it has no lines'
    raise ValueError(f'there is nothing to decode in {source}: {why}')


def _refusal(bad: Sequence[BadLine], source: str) -> str:
  named = [f'line {line.number} {line.reason}' for line in bad[:_MOST_NAMED]]
  more = '; and more' if len(bad) > _MOST_NAMED else ''
  return (
    f'{source} {"; ".join(named)}{more}. Mend them, or leave them out with '
    '--gin.BAD_LINES=skip'
  )
