"""Runs a job assembled by gin files; the only Python file that imports gin.

T5X's manner: `--gin_file` names files (looked up in `--gin_search_paths`, the
working directory, and the files shipped with the package), `--gin.NAME=VALUE`
overrides a macro or a parameter, `--dry_run` parses, prints the configuration
and stops. The operative configuration is written to the job's directory.
"""

import collections
import contextlib
import functools
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gin
import jax
from absl import app, flags, logging

from calm_jax import records
from calm_jax.checkpoints import SaveError
from calm_jax.cli import (
  app_runner,
  binding_types,
  bound_names,
  command_line,
  macro_help,
)
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


# What a user can do something about: one line instead of a traceback. (Not a
# reader of the output that has left: `app_runner`.)
_EXPECTED = (ValueError, OSError, FloatingPointError, SaveError)
# What gin raises for a configuration that is none.
_MISTAKES = (
  ValueError,
  SyntaxError,
  NameError,
  ImportError,
  AttributeError,
  OSError,
)


def shipped_configs() -> pathlib.Path:
  """Returns the folder of the gin files that come with the package."""
  package = pathlib.Path(__file__).resolve().parents[1]
  installed = package / 'gin_configs'
  return installed if installed.is_dir() else package.parent / 'gin_configs'


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
    # As gin reads a file, but for a byte order mark.
    with _remedies(), open(found, encoding='utf-8-sig') as opened:
      gin.parse_config(opened)
    texts.append((found, pathlib.Path(found).read_text(encoding='utf-8-sig')))
  imports = _imports(texts)
  for binding in bindings:
    with _remedies(binding):
      gin.parse_config([*imports, binding])
  with _remedies():
    gin.finalize()
  _check(binding_types.find_places(texts, bindings))


def _check(places: dict[str, str]) -> None:
  """Raises ValueError for what is bound and cannot be meant."""
  nothing = bound_names.unused(_BOUND, places, _shipped_macros())
  if nothing:
    raise ValueError('; '.join(nothing))
  binding_types.check(_literals(), places)
  binding_types.check_references(_references(), places)


@functools.cache
def _shipped_macros() -> bound_names.Shipped:
  """Returns which shipped files refer to which macros."""
  found = collections.defaultdict(list)
  for path in sorted(shipped_configs().rglob('*.gin')):
    text = path.read_text(encoding='utf-8')
    for name in dict.fromkeys(re.findall(r'(?<=%)[A-Za-z_]\w*(?![\w.])', text)):
      found[name].append(str(path.relative_to(shipped_configs())))
  return bound_names.Shipped(found)


@contextlib.contextmanager
def _remedies(binding: str = '') -> Iterator[None]:
  """Says what to bind where gin says that something is not there.

  Args:
    binding: what the command line binds, if that is what is parsed.
  """
  try:
    yield
  except (ValueError, AttributeError, NameError, SyntaxError) as problem:
    remedy = _remedy(str(problem)) or command_line.text_remedy(binding)
    if not remedy:
      raise
    raise ValueError(f'{problem}\n  {remedy}') from None


def _remedy(problem: str) -> str:
  if missing := re.match(r'(\w+)/macro.value set to `%gin.REQUIRED`', problem):
    name = missing[1]
    return f'give a file that binds {name}, or --gin.{name}=...'
  if missing := re.search(r"module '(\S+)'.* has no attribute (\w+)", problem):
    there = dir(sys.modules.get(missing[1]))
    return bound_names.nearest(missing[2], there)
  found = re.match(
    r"Configurable '(\S+)' doesn't have a parameter named '(\w+)'", problem
  )
  if found is None:
    return ''
  return binding_types.what_it_takes(gin.get_configurable(found[1]), found[2])


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
  """Keeps what is bound, and expands `~` in what names places."""
  homes = bound_names.homes_expanded(config)
  _BOUND.clear()
  _BOUND.update({key: {**values} for key, values in config.items()})
  for (scope, selector, parameter), value in homes.items():
    _BOUND[scope, selector][parameter] = value
  return homes


def _literals() -> Iterator[binding_types.Binding]:
  """Yields what is bound to literals, directly or by a macro."""
  for (_, selector), parameters in _BOUND.items():
    if selector == bound_names.MACRO:
      continue
    function = gin.get_configurable(selector)
    for parameter, bound in parameters.items():
      value, macro = bound_names.follow(bound, _BOUND)
      if not any(map(bound_names.is_reference, bound_names.parts(value))):
        yield binding_types.Binding(function, selector, parameter, value, macro)


def _references() -> Iterator[tuple[binding_types.Binding, list[str]]]:
  """Yields what is bound to references, and what those lack to be called."""
  for selector, parameter, value, macro in bound_names.references(_BOUND):
    function = gin.get_configurable(selector)
    yield (
      binding_types.Binding(function, selector, parameter, value, macro),
      bound_names.lacks(value, _BOUND),
    )


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
    except _MISTAKES as problem:
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

  _explain(job)
  app_runner.run(
    call,
    flags_parser=lambda argv: app.parse_flags_with_usage(
      command_line.rewrite_gin_arguments(argv)
    ),
  )


def _explain(job: str) -> None:
  """Gives --help of the main that runs its flags and its macros."""
  own = (_GIN_FILE, _GIN_BINDINGS, _GIN_SEARCH_PATHS, DRY_RUN)
  for flag in (*own, *process_flags.ALL):
    flags.FLAGS.register_key_flag_for_module(
      sys.argv[0], flags.FLAGS[flag.name]
    )
  file = shipped_configs() / 'runs' / f'{job}.gin'
  if file.is_file():
    text = file.read_text(encoding='utf-8')
    said = macro_help.describe(f'runs/{job}.gin', text)
    main_module = sys.modules['__main__']
    main_module.__doc__ = f'{main_module.__doc__ or ""}\n{said}\n'


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
