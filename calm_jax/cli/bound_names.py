"""What a gin configuration binds, and whether anything refers to it.

gin takes any name: `BATCHSIZE = 4` binds a macro that nothing reads, and the
job runs as if nothing had been said. Here such names are found, and told with
those that there are. gin's configuration comes in as a plain mapping; this
module knows its references by what they have, and does not import gin.
"""

import dataclasses
import difflib
import inspect
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

# {(scope, selector): {parameter: value}}. A macro is bound as the parameter
# 'value' of MACRO, in a scope of its own name.
Config = Mapping[tuple[str, str], Mapping[str, Any]]
MACRO = 'gin.macro'
# Parameters whose strings are texts and name no place.
_TEXTS = {'inputs', 'forced_prefix', 'prefix', 'suppressed_tokens'}


@dataclasses.dataclass(frozen=True)
class Shipped:
  """What files that come with the package refer to.

  Attributes:
    files: macro -> the files that refer to it, by their short names.
  """

  files: Mapping[str, Sequence[str]]

  def __contains__(self, macro: str) -> bool:
    """Says whether some file refers to a macro."""
    return macro in self.files


def is_reference(value: Any) -> bool:
  """Says whether a value is one of gin's references, `@f`, `@f()` or `%X`."""
  return hasattr(value, 'config_key') and hasattr(value, 'evaluate')


def is_macro(value: Any) -> bool:
  """Says whether a value is a reference to a macro, `%X`."""
  return is_reference(value) and value.config_key[1] == MACRO


def parts(value: Any) -> Iterator[Any]:
  """Yields a value and everything inside it."""
  yield value
  if isinstance(value, Mapping):
    value = [*value, *value.values()]
  if isinstance(value, (list, tuple)):
    for part in value:
      yield from parts(part)


def follow(value: Any, config: Config) -> tuple[Any, str | None]:
  """Returns what macros stand for, and the name of the last one."""
  macro, seen = None, set()
  while is_macro(value) and value.config_key not in seen:
    key = value.config_key
    seen.add(key)
    macro = key[0]
    value = config.get(key, {}).get('value', value)
  return value, macro


def macros(config: Config) -> dict[str, Any]:
  """Returns the macros that are bound, with their values."""
  return {
    scope: parameters['value']
    for (scope, selector), parameters in config.items()
    if selector == MACRO and 'value' in parameters
  }


def macros_in_use(config: Config) -> set[str]:
  """Returns the macros that parameters get their values from."""
  used: set[str] = set()
  waiting = [
    value
    for (_, selector), parameters in config.items()
    if selector != MACRO
    for value in parameters.values()
  ]
  bound = macros(config)
  while waiting:
    for part in parts(waiting.pop()):
      if is_macro(part) and (name := part.config_key[0]) not in used:
        used.add(name)
        waiting.append(bound.get(name))
  return used


def homes_expanded(config: Config) -> dict[tuple[str, str, str], str]:
  """Returns (scope, selector, parameter) -> a place without its `~`.

  No shell expands it in `--gin.MODEL_DIR=~/runs`, and none in files.
  """
  texts = {
    follow(value, config)[1]
    for parameters in config.values()
    for parameter, value in parameters.items()
    if parameter in _TEXTS
  }
  expanded = {}
  for (scope, selector), parameters in config.items():
    for parameter, value in parameters.items():
      is_text = parameter in _TEXTS or (selector == MACRO and scope in texts)
      if isinstance(value, str) and value.startswith('~') and not is_text:
        expanded[scope, selector, parameter] = os.path.expanduser(value)
  return expanded


def unused(
  config: Config, places: Mapping[str, str], shipped: Shipped
) -> list[str]:
  """Returns a sentence for each name that is bound and does nothing.

  A macro of the command line must be in use. One of a file need not be, as a
  file of tasks serves jobs of several kinds, if a shipped file refers to it.

  Args:
    config: what is bound.
    places: where names were bound last; see `binding_types.find_places`.
    shipped: the macros that shipped files refer to.
  """
  used = macros_in_use(config)
  found = []
  for name in macros(config):
    place = places.get(name, '')
    by_hand = place.startswith('--')
    if name in used or (not by_hand and name in shipped):
      continue
    where = '' if by_hand else f' ({place})' if place else ''
    found.append(
      f'{place if by_hand else name}{where}: {_why(name, shipped)}'
      f'{nearest(name, used | set(shipped.files))}; macros here: '
      f'{", ".join(sorted(used))}'
    )
  return [*found, *_unreferenced(config, places)]


def _why(name: str, shipped: Shipped) -> str:
  files = shipped.files.get(name, ())
  if not files:
    return f'no file refers to a macro {name}'
  more = ', ...' if len(files) > 3 else ''
  return (
    f'none of these files refers to {name}, only {", ".join(files[:3])}{more}'
  )


def nearest(name: str, known: Iterable[str]) -> str:
  """Returns ' (did you mean X?)' where some name is like another, or ''."""
  known = sorted(known)
  close = [one for one in known if one.startswith(name) and one != name]
  close = close or difflib.get_close_matches(name, known, n=1)
  return f' (did you mean {close[0]}?)' if close and close[0] != name else ''


def _unreferenced(config: Config, places: Mapping[str, str]) -> Iterator[str]:
  """Yields what the command line binds of things that nothing makes."""
  made = {
    part.config_key[1]
    for parameters in config.values()
    for value in parameters.values()
    for part in parts(value)
    if is_reference(part)
  }
  for (_, selector), parameters in config.items():
    if selector in made or selector == MACRO or selector.endswith('.run'):
      continue
    for parameter in parameters:
      full = f'{selector}.{parameter}'
      for written, place in places.items():
        if place.startswith('--') and full.endswith(f'.{written}'):
          name = selector.split('.')[-1]
          yield (
            f'{place}: nothing here makes a {name}, so that its {parameter} '
            f'does nothing; bind what takes one to @...{name}() as well'
          )


def references(
  config: Config,
) -> Iterator[tuple[str, str, Any, str | None]]:
  """Yields selector, parameter, reference and macro of what is bound to one.

  Those of gin's own, and those inside lists, are left out.
  """
  for (_, selector), parameters in config.items():
    if selector == MACRO:
      continue
    for parameter, value in parameters.items():
      found, macro = follow(value, config)
      if is_reference(found) and not found.config_key[1].startswith('gin.'):
        yield selector, parameter, found, macro


def lacks(reference: Any, config: Config) -> list[str]:
  """Returns the parameters without which a reference cannot be called.

  Args:
    reference: `@f()`.
    config: what is bound.
  """
  scope, selector = reference.config_key
  bound = {*config.get(('', selector), ()), *config.get((scope, selector), ())}
  try:
    signature = inspect.signature(reference.configurable.wrapped)
  except (TypeError, ValueError):
    return []
  return [
    name
    for name, parameter in signature.parameters.items()
    if parameter.default is parameter.empty
    and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    and name not in bound
  ]
