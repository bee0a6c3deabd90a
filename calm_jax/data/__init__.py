"""Text in: seqio Tasks, splits disjoint by input, batches of NumPy arrays.

The only home of seqio and TensorFlow in this project. They take seconds to
load, so names load when they are first used (PEP 562); `splits` and
`jsonl_files` need neither.
"""

import importlib

_HOMES = {
  'EmbeddedCorpus': 'corpus',
  'JsonlTask': 'tasks',
  'MixtureTask': 'mixtures',
  'QuestionAnswering': 'text_forms',
  'SplitPlan': 'splits',
  'Summarisation': 'text_forms',
  'TextExample': 'jsonl_files',
  'TfdsTask': 'tfds_tasks',
  'Translation': 'text_forms',
  'add_cache_directories': 'caching',
  'as_task': 'tasks',
  'eval_batches': 'batches',
  'input_hashes': 'row_hashes',
  'normalised_input_hash': 'splits',
  'prefix_of': 'tasks',
  'read_examples': 'jsonl_files',
  'refuse_training_rows': 'row_hashes',
  'register_jsonl_task': 'tasks',
  'run_calibration_task': 'calibration_task',
  'subtasks_of': 'tasks',
  'tokenised_examples': 'token_datasets',
  'tokenizer_of': 'vocabularies',
  'train_batches': 'batches',
}

__all__ = sorted(_HOMES)


def __getattr__(name):
  if name in _HOMES:
    module = importlib.import_module(f'{__name__}.{_HOMES[name]}')
    return getattr(module, name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__():
  return __all__
