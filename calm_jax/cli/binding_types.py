"""Types of what gin files bind, checked before anything runs.

gin checks no types: `TRAIN_STEPS = 'many'` would surface somewhere in the
middle of a job. Here every bound literal is held against the annotation of the
parameter it goes to, and an error names the file and the line it was written
in.
"""

import collections.abc
import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import typeguard


@dataclasses.dataclass(frozen=True)
class Binding:
  """A literal that a configuration gives to a parameter.

  Attributes:
    function: the function or class it configures.
    selector: gin's full name of that function.
    parameter: the parameter's name.
    value: the literal.
    macro: the macro that the value came through, or None.
  """

  function: Callable[..., Any]
  selector: str
  parameter: str
  value: Any
  macro: str | None = None


def check(bindings: Iterable[Binding], places: Mapping[str, str]) -> None:
  """Holds bindings against the annotations of their parameters.

  Args:
    bindings: what is bound.
    places: from `find_places`.

  Raises:
    ValueError: naming every value of a wrong type, its place and what is
      wanted.
  """
  faults = [fault for binding in bindings if (fault := _fault(binding, places))]
  if faults:
    raise ValueError('; '.join(faults))


def check_references(
  bindings: Iterable[tuple[Binding, Sequence[str]]], places: Mapping[str, str]
) -> None:
  """Checks that what is to be called is, and can be.

  Args:
    bindings: what is bound to references of gin's, each with the parameters
      that are missing to call it.
    places: from `find_places`.

  Raises:
    ValueError: for `@f` where what f makes is wanted, and for `@f()` that lacks
      arguments, naming parentheses and arguments.
  """
  faults = [
    fault
    for binding, missing in bindings
    if (fault := _reference_fault(binding, missing, places))
  ]
  if faults:
    raise ValueError('; '.join(faults))


def find_places(
  texts: Sequence[tuple[str, str]], bindings: Sequence[str] = ()
) -> dict[str, str]:
  """Returns where each name was last bound.

  Args:
    texts: (file name, content) of gin files, in the order they are parsed.
    bindings: bindings of the command line, 'NAME = value'.
  """
  places = {}
  for file, text in texts:
    for number, line in enumerate(text.splitlines(), 1):
      if match := re.match(r'([\w./]+)\s*=', line):
        places[match[1]] = f'{file} line {number}'
  for binding in bindings:
    if match := re.match(r'\s*([\w./]+)\s*=', binding):
      places[match[1]] = f'--gin.{match[1]}'
  return places


def what_it_takes(function: Callable[..., Any], parameter: str) -> str:
  """Returns what to write instead of a parameter that a function lacks.

  Args:
    function: what was to be configured.
    parameter: a name that is none of its parameters, but may be a field of a
      plan that it takes.
  """
  annotations = _annotations(function)
  for name, annotation in annotations.items():
    for kind in (annotation, *typing.get_args(annotation)):
      if dataclasses.is_dataclass(kind) and parameter in _annotations(kind):
        return f'{kind.__name__}, to which {name} is bound, has {parameter}'
  return f'it has {", ".join(sorted(annotations.keys() - {"return"}))}'


def _fault(binding: Binding, places: Mapping[str, str]) -> str | None:
  """Returns what is wrong with a binding, or None."""
  annotation = _annotations(binding.function).get(binding.parameter)
  if annotation is None:
    return None
  # A list does where a tuple is wanted, as constructors turn it into one.
  values = [binding.value]
  if isinstance(binding.value, list):
    values.append(tuple(binding.value))
  if not any(_fits(value, annotation) for value in values):
    return (
      f'{_shown(binding, places)}, of type {type(binding.value).__name__}; it '
      f'must be {inspect.formatannotation(annotation)}'
    )
  return None


def _shown(binding: Binding, places: Mapping[str, str]) -> str:
  """Says what is bound to what, and where."""
  name = f'{binding.selector.removeprefix("calm_jax.")}.{binding.parameter}'
  shown = name if binding.macro is None else f'{name} = %{binding.macro}'
  place = _place(binding, places)
  return f'{shown} is {binding.value!r}{place and f" ({place})"}'


def _reference_fault(
  binding: Binding, missing: Sequence[str], places: Mapping[str, str]
) -> str | None:
  """Returns what is wrong with `@f` or `@f()`, or None."""
  reference = binding.value
  annotation = _annotations(binding.function).get(binding.parameter)
  target = reference.configurable.wrapped
  passes = _takes_callables(annotation, inspect.isclass(target))
  if not reference.evaluate:
    if passes:
      return None
    kind = 'class' if inspect.isclass(target) else 'function'
    return (
      f'{_shown(binding, places)}, the {kind} itself; write {reference!r}() '
      'for what it makes'
    )
  if not missing:
    return None
  if passes and annotation is not None:
    return (
      f'{_shown(binding, places)}, and calling it takes {", ".join(missing)}; '
      f'write {repr(reference).removesuffix("()")} for the function itself'
    )
  name = repr(reference).strip('@()')
  wanted = ', '.join(f'{name}.{parameter}' for parameter in missing)
  return f'{_shown(binding, places)}, which needs a value for {wanted}'


def _takes_callables(annotation: Any, is_class: bool) -> bool:
  """Says whether a parameter may be a function, or a class, itself."""
  if annotation is None:
    return True
  if annotation is Any:
    return not is_class
  if isinstance(annotation, types.UnionType) or (
    typing.get_origin(annotation) is typing.Union
  ):
    return any(
      _takes_callables(kind, is_class) for kind in typing.get_args(annotation)
    )
  origin = typing.get_origin(annotation) or annotation
  if origin in (collections.abc.Callable, type, object):
    return True
  return '__call__' in vars(origin) if inspect.isclass(origin) else False


def _fits(value: Any, annotation: Any) -> bool:
  try:
    typeguard.check_type(
      value,
      annotation,
      collection_check_strategy=typeguard.CollectionCheckStrategy.ALL_ITEMS,
    )
  except typeguard.TypeCheckError:
    return False
  return True


def _annotations(function: Callable[..., Any]) -> dict[str, Any]:
  """Returns annotations of the parameters that a call takes."""
  try:
    if inspect.isclass(function) and dataclasses.is_dataclass(function):
      return typing.get_type_hints(function)
    if inspect.isclass(function):
      function = function.__init__
    return typing.get_type_hints(inspect.unwrap(function))
  except (NameError, TypeError, AttributeError):
    # Annotations that cannot be resolved are somebody else's to check.
    return {}


def _place(binding: Binding, places: Mapping[str, str]) -> str:
  if binding.macro is not None:
    return places.get(binding.macro, '')
  full = f'{binding.selector}.{binding.parameter}'
  for written, place in places.items():
    if full == written or full.endswith(f'.{written.split("/")[-1]}'):
      return place
  return ''
