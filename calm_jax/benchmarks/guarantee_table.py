"""One table of what validations of several data sets and losses found.

  python -m calm_jax.benchmarks.guarantee_table \
    --validations=e2e_nlg=runs/e2e_nlg/measures/textual/validation.json,\
e2e_nlg=runs/e2e_nlg/measures/signed/validation.json

Reads what calm_jax.cli.validate wrote, a name before each. A line is a data
set, a confidence measure and a p-value; a column is a loss and a tolerance. A
cell says what the whole table certifies (threshold, mean layers, speed-up where
settings were timed) and how often calibrations on draws broke the promise.
"""

import re
import sys
from collections.abc import Sequence

from calm_jax import records
from calm_jax.benchmarks.arguments import Arguments
from calm_jax.reporting import tables


def table(
  validations: Sequence[tuple[str, records.Validation]],
) -> tables.Table:
  """Returns the table, its lines and columns in the order of what is given.

  Args:
    validations: pairs of the name of a data set and what was counted on it;
      several of one data set are of different losses.

  Raises:
    ValueError: if two of one data set are of the same loss.
  """
  columns: dict[str, None] = {}
  lines: dict[tuple[str, str], dict[str, str]] = {}
  for data_set, validation in validations:
    measures = [validated.measure for validated in validation.tables]
    for validated in validation.tables:
      pairs = zip(validated.counts, validated.certificates, strict=True)
      for count, certificate in pairs:
        column = f'{certificate.loss} {count.tolerance:g}'
        if count.promises:
          column = ' and '.join(
            f'{one.loss} {one.tolerance:g}' for one in count.promises
          )
        columns[column] = None
        called = validated.measure or validated.name
        if measures.count(validated.measure) > 1:
          called = validated.name
        name = f'{data_set}, {_in_words(called)}'
        p_value = re.sub(r'\(.*', '', count.p_value)
        cells = lines.setdefault((name, p_value), {})
        if column in cells:
          raise ValueError(
            f'{name} with {p_value} has {column} twice; give one validation '
            'of it'
          )
        cells[column] = _cell(validated, count, certificate)
  return tables.Table(
    header=('data set, measure', 'p-value', *columns),
    rows=tuple(
      (*name, *(cells.get(column, '-') for column in columns))
      for name, cells in lines.items()
    ),
  )


def _cell(
  validated: records.ValidatedTable,
  count: records.ViolationCount,
  certificate: records.CertificateSummary,
) -> str:
  """Says what is certified, and how often that is too much."""
  rate = f'{100 * count.rate:.1f} %'
  if not certificate.certified:
    return f'nothing, {rate}'
  place = validated.settings.index(certificate.setting)
  setting = records.setting_in_words(certificate.setting)
  parts = [f'{validated.mean_exit_layers[place]:.2f}']
  if validated.speeds is not None:
    parts.append(f'{validated.speeds.speed_ups[place]:.2f}x')
  return f'{setting.removeprefix("threshold ")}: {", ".join([*parts, rate])}'


def _in_words(name: str) -> str:
  """Writes the name of a class as words.

  >>> _in_words('SoftmaxMargin')
  'softmax margin'
  """
  return re.sub(r'(?<=[a-z0-9])(?=[A-Z])', ' ', name).lower()


def _read(text: str) -> tuple[str, records.Validation]:
  name, _, path = text.partition('=')
  if not name or not path:
    raise ValueError(
      f'{text!r} is no name and file; write e2e_nlg=.../validation.json'
    )
  return name, records.read_record(path, records.Validation)


def main(arguments: Sequence[str] | None = None) -> None:
  """Reads, writes and prints."""
  parser = Arguments('guarantee_table', __doc__)
  parser.add('validations', None, 'NAME=FILE, by commas', required=True)
  parser.add('measured', '', 'how, in a sentence kept in the JSON')
  parser.add('output', None, 'a JSON file to write')
  flags = parser.parse_args(arguments)
  try:
    read = [_read(text) for text in flags.validations.split(',')]
    found = table(read)
  except (OSError, ValueError) as error:
    sys.exit(f'guarantee_table: {error}')
  print(tables.as_markdown(found))
  if flags.output:
    commands = [one.context.command for _, one in read]
    content = {'measured': flags.measured, 'commands': commands}
    records.write_json(
      flags.output, {**content, 'header': found.header, 'rows': found.rows}
    )


if __name__ == '__main__':
  main()
