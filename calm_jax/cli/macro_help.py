"""What --help says of a job's macros: those of its file of runs.

The file is their only home: a macro's value is its default, and the comment
above it says what it means.
"""

import re
import textwrap

_MACRO = re.compile(r'([A-Z][A-Z0-9_]*) = (.*)')


def meanings(text: str) -> dict[str, tuple[str, str]]:
  r"""Returns macro -> its default and what it means, as a gin file has them.

  >>> meanings('# Steps in all.\nTRAIN_STEPS = 3\n')
  {'TRAIN_STEPS': ('3', 'Steps in all.')}
  """
  found, said = {}, []
  for line in text.splitlines():
    if line.startswith('#'):
      said.append(line.lstrip('# '))
      continue
    if match := _MACRO.fullmatch(line):
      found[match[1]] = match[2], ' '.join(said)
    said = []
  return found


def describe(name: str, text: str) -> str:
  """Returns the macros of a file of runs, for --help.

  Args:
    name: the file's short name.
    text: its content.
  """
  lines = [f'Macros of {name}, bound by --gin.NAME=VALUE:']
  for macro, (default, meaning) in meanings(text).items():
    required = default == '%gin.REQUIRED'
    shown = f'{macro}: required' if required else f'{macro}={default}'
    lines.append(f'  --gin.{shown}')
    lines += textwrap.wrap(
      meaning, 80, initial_indent='    ', subsequent_indent='    '
    )
  return '\n'.join(lines)
