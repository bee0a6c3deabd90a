"""Reading Tasks from seqio's offline cache.

Tokenising once and reading ids afterwards pays where tokenising is slower than
training. The Tasks made here hold a `seqio.CacheDatasetPlaceholder` after
tokenisation. To fill a cache (with `pip install apache-beam`), put the
registration into a module, say `my_tasks.py`:

    from calm_jax.data import JsonlTask
    JsonlTask('my_task', {'train': '/data/train.jsonl'},
              vocabulary='/data/vocabulary.model').register()

and run

    seqio_cache_tasks --module_import=my_tasks --tasks=my_task \
      --output_cache_dir=/data/cache --pipeline_options=--runner=DirectRunner

Then give `/data/cache` to `add_cache_directories` and `use_cached=True` to
`DataPlan` or `eval_batches`. (A `TfdsTask` takes its `directory`; leave
the command's own --tfds_data_dir out.)
"""

from collections.abc import Iterable

from calm_jax.data.jsonl_files import resolve_path
from calm_jax.data.seqio.tensorflow_setup import seqio, tf


def add_cache_directories(directories: Iterable[str]) -> None:
  """Adds folders in which cached Tasks are looked for, in this order.

  Raises:
    FileNotFoundError: if one does not exist.
  """
  paths = [resolve_path(directory) for directory in directories]
  for path in paths:
    if not tf.io.gfile.isdir(path):
      raise FileNotFoundError(
        f'There is no cache folder {path}; it is the --output_cache_dir of '
        'seqio_cache_tasks.'
      )
  seqio.add_global_cache_dirs(paths)


def check_cached(task, split: str) -> None:
  """Checks that a split of a Task can be read from a cache.

  Raises:
    ValueError: if the Task has no place for a cache.
    FileNotFoundError: if no folder holds its cache, or not this split.
  """
  if not task.supports_caching:
    raise ValueError(
      f'use_cached: the preprocessors of {task.name} hold no '
      'seqio.CacheDatasetPlaceholder, so it cannot be cached; set '
      'use_cached=False.'
    )
  directory = task.cache_dir
  if not directory:
    raise FileNotFoundError(
      f'use_cached: there is no finished cache of {task.name} in '
      f'{seqio.get_global_cache_dirs() or "any folder (none was given)"}. Name '
      'its folder with data.add_cache_directories, or make it with '
      f'seqio_cache_tasks --tasks={task.name} (how: '
      'calm_jax/data/seqio/caching.py), or set use_cached=False.'
    )
  if not tf.io.gfile.exists(f'{directory}/info.{split}.json'):
    raise FileNotFoundError(
      f'use_cached: the cache {directory} has no split {split!r}; make it '
      f'again with seqio_cache_tasks --tasks={task.name} --overwrite.'
    )
