"""Runs a job assembled by gin files; the only Python file that imports gin.

T5X's manner: `--gin_file` names files (looked up in `--gin_search_paths`, the
working directory, and the files shipped with the package), `--gin.NAME=VALUE`
overrides a macro or a parameter, `--dry_run` parses, prints the configuration
and stops. The operative configuration is written to the job's directory.
"""

import ast
import contextlib
import functools
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import gin
import jax
from absl import app, flags, logging

from calm_jax import records
from calm_jax.checkpoints import SaveError
from calm_jax.cli import app_runner, binding_types
from calm_jax.cli.dry_run_flag import DRY_RUN
from calm_jax.processes import collectives
from calm_jax.processes.start import joining, process_flags

_GIN_FILE = flags.DEFINE_multi_string(
  'gin_file', [], 'A gin file; may be given several times, later ones win.'
)
_GIN_BINDINGS = flags.DEFINE_multi_string(
  'gin_bindings',
  [],
  "A gin binding such as 'TRAIN_STEPS = 100'; --gin.TRAIN_STEPS=100 is short "
  'for it.',
)
_GIN_SEARCH_PATHS = flags.DEFINE_list(
  'gin_search_paths', [], 'Folders in which gin files are looked up first.'
)
flags.declare_key_flag('dry_run')
process_flags.declare_key_flags()


# What a user can do something about: one line instead of a traceback.
_EXPECTED = (
  ValueError,
  FileExistsError,
  FileNotFoundError,
  FloatingPointError,
  SaveError,
)


def shipped_configs() -> pathlib.Path:
  """Returns the folder of the gin files that come with the package."""
  package = pathlib.Path(__file__).resolve().parents[1]
  installed = package / 'gin_configs'
  return installed if installed.is_dir() else package.parent / 'gin_configs'


def rewrite_gin_arguments(arguments: Sequence[str]) -> list[str]:
  """Turns `--gin.X=Y` into `--gin_bindings=X = Y`; the rest stays.

  A value that is no Python literal and no gin reference is a string: the shell
  has eaten its quotes.
  """
  rewritten = []
  for argument in arguments:
    match = re.match(r'--?gin\.([^=]+)=(.*)$', argument, re.DOTALL)
    if not match:
      rewritten.append(argument)
      continue
    name, value = match.groups()
    if not value.startswith(('@', '%')):
      try:
        ast.literal_eval(value)
      except (SyntaxError, ValueError):
        value = repr(value)
    rewritten.append(f'--gin_bindings={name} = {value}')
  return rewritten


def parse(
  files: Sequence[str],
  bindings: Sequence[str] = (),
  search_paths: Sequence[str] = (),
) -> None:
  """Parses gin files and bindings into gin's global configuration.

  Raises:
    ValueError: for a file that is nowhere, naming the folders searched, for
      whatever gin refuses, with its file and line, and for values of a wrong
      type.
  """
  gin.clear_config()
  texts = []
  folders = [*search_paths, '.', str(shipped_configs())]
  for folder in folders:
    gin.add_config_file_search_path(folder)
  for file in files:
    # `gin_configs/runs/x.gin` also names the shipped file from anywhere.
    names = (file, file.removeprefix('gin_configs/'))
    places = [os.path.join(f, n) for f in ('', *folders) for n in names]
    found = next((place for place in places if os.path.isfile(place)), None)
    if found is None:
      known = sorted(
        str(path.relative_to(shipped_configs()))
        for path in shipped_configs().rglob('*.gin')
      )
      raise ValueError(
        f'no gin file {file!r} in {folders}; shipped files: {", ".join(known)}'
      )
    with _remedies():
      gin.parse_config_file(found)
    texts.append((found, pathlib.Path(found).read_text(encoding='utf-8')))
  with _remedies():
    gin.parse_config([*_imports(texts), *bindings])
  gin.finalize()
  binding_types.check(_literals(), binding_types.find_places(texts, bindings))


@contextlib.contextmanager
def _remedies() -> Iterator[None]:
  """Says what to bind where gin says that a parameter is not there."""
  try:
    yield
  except ValueError as problem:
    found = re.match(
      r"Configurable '(\S+)' doesn't have a parameter named '(\w+)'",
      str(problem),
    )
    if found is None:
      raise
    function = gin.get_configurable(found[1])
    remedy = binding_types.what_it_takes(function, found[2])
    raise ValueError(f'{problem}\n  {remedy}') from None


def _imports(texts: Sequence[tuple[str, str]]) -> list[str]:
  """Returns the import lines of gin files, each once.

  gin keeps imports to the file they stand in; with them the command line can
  name what files can, for example
  --gin.training.Objective.layer_weights=@training.uniform_weights.
  """
  lines = (line.strip() for _, text in texts for line in text.splitlines())
  imports = [line for line in lines if re.match(r'(from|import)\s', line)]
  # What switches gin to imports of Python modules comes first.
  return sorted(dict.fromkeys(imports), key=lambda line: '__gin__' not in line)


# gin hands its bindings, {(scope, selector): {parameter: value}}, to finalize
# hooks and to nobody else.
_BOUND: dict[tuple[str, str], dict[str, Any]] = {}


@gin.config.register_finalize_hook
def _remember(config):
  _BOUND.clear()
  _BOUND.update(config)


def _literals() -> Iterator[binding_types.Binding]:
  """Yields what is bound to literals, directly or by a macro."""
  for (_, selector), parameters in _BOUND.items():
    if selector == 'gin.macro':
      continue
    function = gin.get_configurable(selector)
    for parameter, value in parameters.items():
      macro = None
      while _is_macro(value):
        macro, key = value.config_key[0], value.config_key
        value = _BOUND.get(key, {}).get('value', value)
        if _is_macro(value) and value.config_key == key:
          break
      if not any(map(_is_reference, _parts(value))):
        yield binding_types.Binding(function, selector, parameter, value, macro)


def _is_reference(value: Any) -> bool:
  return isinstance(value, gin.config.ConfigurableReference)


def _is_macro(value: Any) -> bool:
  return _is_reference(value) and value.config_key[1] == 'gin.macro'


def _parts(value: Any) -> Iterator[Any]:
  """Yields a value and everything inside it."""
  yield value
  if isinstance(value, Mapping):
    value = [*value, *value.values()]
  if isinstance(value, (list, tuple)):
    for part in value:
      yield from _parts(part)


def write_operative_config(directory: str, name: str) -> None:
  """Writes the configuration in force to `directory/name`, from process 0."""
  if _speaks():
    records.write_text(os.path.join(directory, name), gin.config_str())


def _speaks() -> bool:
  """Whether this is the only process or the first; starts no device."""
  return not jax.distributed.is_initialized() or collectives.is_main_process()


def main(
  job: str,
  *,
  takes_dry_run: bool = False,
  one_process: bool = False,
  writes_to: Sequence[str] = ('model_dir', 'output_dir'),
) -> None:
  """Parses flags, assembles `calm_jax.cli.<job>.run` and calls it.

  Args:
    job: name of the module below calm_jax.cli, whose `run` gin configures.
    takes_dry_run: whether `run(dry_run=True)` says what it would do and does
      nothing; with --dry_run it is then called so.
    one_process: whether the job cannot be shared by several processes.
    writes_to: parameters of `run` that name directories it writes to, which
      are tried before anything else.
  """

  def call(arguments: Sequence[str]) -> None:
    if len(arguments) > 1:
      raise app.UsageError(f'unexpected arguments: {arguments[1:]}')
    if not _GIN_FILE.value:
      raise app.UsageError(
        f'no --gin_file; for example --gin_file=runs/{job}.gin'
      )
    # Absl's and Orbax's own chatter would bury the progress lines.
    if not logging.level_debug():
      logging.set_verbosity(logging.WARNING)
    run, error = None, None
    try:
      parse(_GIN_FILE.value, _GIN_BINDINGS.value, _GIN_SEARCH_PATHS.value)
      run = gin.get_configurable(f'calm_jax.cli.{job}.run')
    except (ValueError, SyntaxError, NameError, ImportError) as problem:
      error = f'configuration error: {problem}'
    process = joining.start(
      configuration='' if error else gin.config_str(),
      directories={} if error else _directories(job, writes_to),
      error=error,
      one_process=one_process,
    )
    process.run(
      functools.partial(_call, run, takes_dry_run=takes_dry_run),
      expected=() if logging.level_debug() else _EXPECTED,
    )

  app_runner.run(
    call,
    flags_parser=lambda argv: app.parse_flags_with_usage(
      rewrite_gin_arguments(argv)
    ),
  )


def _call(run: Callable, *, takes_dry_run: bool) -> None:
  """Calls a configured job, or shows its configuration."""
  if not DRY_RUN.value:
    run()
    return
  if _speaks():
    print(gin.config_str())
  if takes_dry_run:
    run(dry_run=True)


def _directories(job: str, parameters: Sequence[str]) -> dict[str, str]:
  """Returns parameter -> directory, where a job's `run` is bound to one."""
  selector = f'{job}.run'
  return {
    binding.parameter: binding.value
    for binding in _literals()
    if binding.selector == selector or binding.selector.endswith(f'.{selector}')
    if binding.parameter in parameters and isinstance(binding.value, str)
  }
