"""`--gin.NAME=VALUE` as gin reads it: which values are texts, which are not.

The shell has eaten the quotes, so that `@anna hello` may be a text or something
of gin's. What cannot be a literal, a reference or a macro is a text.
"""

import ast
import re
from collections.abc import Sequence

# @scope/module.name, @scope/module.name() or %NAME.
_REFERENCE = r'(?:@[A-Za-z_][\w./]*(?:\(\))?|%[A-Za-z_][\w./]*)'
# What is always a text, whatever it looks like: 3.10 is not 3.1.
_OF_TEXTS = (str, list, tuple)
_TEXTS = ('INPUTS', 'files.TextFiles.inputs', 'generate.run.forced_prefix')


def rewrite_gin_arguments(arguments: Sequence[str]) -> list[str]:
  """Turns `--gin.X=Y` into `--gin_bindings=X = Y`; the rest stays."""
  rewritten = []
  for argument in arguments:
    match = re.match(r'--?gin\.([^=]+)=(.*)$', argument, re.DOTALL)
    if match:
      name, value = match.groups()
      argument = f'--gin_bindings={name} = {as_gin(name, value)}'
    rewritten.append(argument)
  return rewritten


def as_gin(name: str, value: str) -> str:
  """Returns a value of the command line as it stands in a gin file.

  Args:
    name: what it is bound to.
    value: without the quotes that the shell has eaten.
  """
  if re.fullmatch(_REFERENCE, value):
    return value
  # References may also stand inside lists, tuples and dicts.
  is_container = value.lstrip().startswith(('(', '[', '{'))
  plain = re.sub(_REFERENCE, '0', value) if is_container else value
  try:
    literal = ast.literal_eval(plain)
  except (SyntaxError, ValueError, MemoryError, RecursionError):
    return repr(value)
  # Python's, and not gin's.
  if isinstance(literal, (type(...), bytes, set, complex)):
    return repr(value)
  quoted = value.lstrip().startswith(('"', "'", '(', '['))
  if name in _TEXTS and not (quoted and isinstance(literal, _OF_TEXTS)):
    return repr(value)
  return value


def text_remedy(binding: str) -> str:
  """Returns how to bind a text, if that is what a reference may be.

  Args:
    binding: 'NAME = value', of the command line; or nothing.
  """
  name, _, value = binding.partition(' = ')
  if not re.fullmatch(_REFERENCE, value):
    return ''
  return (
    f"{value} is read as gin's reference to something; for the text write "
    f'--gin.{name}=\'"{value}"\''
  )
