"""Strict JSON on disk, and records made of it.

NaN and infinity are stored as null. Files are written to a temporary name and
renamed, so that a reader never meets half a file.
"""

import dataclasses
import json
import math
import os
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

# Of every schema in this package.
FORMAT_VERSION = 1


def to_jsonable(value: Any) -> Any:
  """Converts dataclasses, NumPy values and NaN to what strict JSON can hold."""
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    return {
      field.name: to_jsonable(getattr(value, field.name))
      for field in dataclasses.fields(value)
    }
  if isinstance(value, dict):
    return {str(key): to_jsonable(item) for key, item in value.items()}
  if isinstance(value, np.ndarray):
    return to_jsonable(value.tolist())
  if isinstance(value, (list, tuple)):
    return [to_jsonable(item) for item in value]
  if isinstance(value, np.generic):
    return to_jsonable(value.item())
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def write_text(path: str | os.PathLike, text: str) -> None:
  """Writes a text file by renaming a finished temporary one into place."""
  path = os.path.expanduser(path)
  os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
  temporary = f'{path}.tmp{os.getpid()}'
  with open(temporary, 'w', encoding='utf-8') as file:
    file.write(text)
  os.replace(temporary, path)


def write_json(path: str | os.PathLike, value: Any) -> None:
  """Writes one value as an indented strict-JSON file."""
  text = json.dumps(
    to_jsonable(value), indent=1, ensure_ascii=False, allow_nan=False
  )
  write_text(path, text + '\n')


def read_json(path: str | os.PathLike) -> Any:
  """Reads a JSON file.

  Raises:
    FileNotFoundError: if there is none.
    ValueError: if it is not JSON, naming the file (truncated, edited, ...), or
      a folder.
  """
  try:
    # A byte order mark is what some editors leave.
    with open(os.path.expanduser(path), encoding='utf-8-sig') as file:
      return json.load(file)
  except IsADirectoryError:
    raise ValueError(
      f'{os.fspath(path)} is a folder; name a file in it'
    ) from None
  except (ValueError, RecursionError) as error:
    raise ValueError(f'{os.fspath(path)} is not valid JSON: {error}') from None


def append_jsonl(path: str | os.PathLike, row: Any) -> None:
  """Appends one row to a JSONL file."""
  line = json.dumps(to_jsonable(row), ensure_ascii=False, allow_nan=False)
  with open(path, 'a', encoding='utf-8') as file:
    file.write(line + '\n')


def write_jsonl(path: str | os.PathLike, rows: Iterable[Any]) -> None:
  """Writes rows as a JSONL file, whole or not at all."""
  lines = (
    json.dumps(to_jsonable(row), ensure_ascii=False, allow_nan=False)
    for row in rows
  )
  write_text(path, ''.join(line + '\n' for line in lines))


def read_jsonl(path: str | os.PathLike) -> Iterator[Any]:
  """Yields the rows of a JSONL file; a bad line is named by its number."""
  with open(path, encoding='utf-8-sig') as file:
    for number, line in enumerate(file, 1):
      try:
        yield json.loads(line)
      except (ValueError, RecursionError) as error:
        raise ValueError(
          f'{os.fspath(path)} line {number} is not valid JSON: {error}'
        ) from None


def from_jsonable(kind: Any, value: Any, *, where: str = 'record') -> Any:
  """Rebuilds a record from what `to_jsonable` made of it.

  Dataclasses, tuples of them, mappings and optional values are followed by
  their annotations; null where a float is expected becomes NaN. Keys that the
  record does not know are ignored, so that an older reader can read a newer
  file.

  Args:
    kind: the annotation to build, such as a dataclass.
    value: plain JSON values.
    where: how errors name the place.

  Returns:
    An instance of `kind`.

  Raises:
    ValueError: if a value is missing or is of another shape, naming its place.
  """
  origin = typing.get_origin(kind)
  arguments = typing.get_args(kind)
  if origin in (types.UnionType, typing.Union):
    if value is None:
      return None
    inner = next(item for item in arguments if item is not type(None))
    return from_jsonable(inner, value, where=where)
  if dataclasses.is_dataclass(kind):
    return _record_from_jsonable(kind, value, where)
  if origin is tuple:
    _expect(value, list, where)
    return tuple(
      from_jsonable(arguments[0], item, where=f'{where}[{index}]')
      for index, item in enumerate(value)
    )
  if origin in (dict, Mapping):
    _expect(value, dict, where)
    return {
      key: from_jsonable(arguments[1], item, where=f'{where}[{key!r}]')
      for key, item in value.items()
    }
  if kind is float:
    if value is None:
      return math.nan
    _expect(value, (int, float), where)
    return float(value)
  if kind in (int, str, bool):
    _expect(value, kind, where)
  return value


def _record_from_jsonable(kind: type, value: Any, where: str) -> Any:
  """Builds one dataclass; fields with a default may be absent."""
  _expect(value, dict, where)
  hints = typing.get_type_hints(kind)
  arguments = {}
  for field in dataclasses.fields(kind):
    if field.name in value:
      arguments[field.name] = from_jsonable(
        hints[field.name], value[field.name], where=f'{where}.{field.name}'
      )
    elif (
      field.default is dataclasses.MISSING
      and field.default_factory is dataclasses.MISSING
    ):
      raise ValueError(
        f'{where} has no {field.name!r}: it was not written by this version of '
        f'calm_jax as a {kind.__name__}; write it again.'
      )
  return kind(**arguments)


def _expect(value: Any, kind: type | tuple[type, ...], where: str) -> None:
  """Raises a ValueError that names the place of a value of another type."""
  if not isinstance(value, kind):
    raise ValueError(f'{where} is {value!r}, expected {kind}.')


def read_record(path: str | os.PathLike, kind: type) -> Any:
  """Reads one record, for example `read_record(path, EvaluationResult)`.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if the file is not JSON or not such a record, naming the place.
  """
  return from_jsonable(kind, read_json(path), where=os.fspath(path))
