"""Data: files of texts and of token ids, splits, batches of NumPy arrays.

What lies in `seqio` reads through seqio and TensorFlow, which take seconds to
load, so names load when they are first used (PEP 562); the rest needs NumPy.
"""

import importlib

_HOMES = {
  'ClassLabels': 'class_labels',
  'DataPlan': 'plan',
  'EmbeddedCorpus': 'seqio.corpus',
  'JsonlTask': 'seqio.tasks',
  'MixtureTask': 'seqio.mixtures',
  'QuestionAnswering': 'seqio.text_forms',
  'SplitPlan': 'splits',
  'Summarisation': 'seqio.text_forms',
  'TextExample': 'jsonl_files',
  'TextInputs': 'seqio.text_inputs',
  'TfdsTask': 'seqio.tfds_tasks',
  'Translation': 'seqio.text_forms',
  'add_cache_directories': 'seqio.caching',
  'as_task': 'seqio.tasks',
  'eval_batches': 'seqio.batches',
  'input_hashes': 'seqio.row_hashes',
  'normalised_input_hash': 'splits',
  'prefix_of': 'seqio.tasks',
  'read_class_labels': 'seqio.label_sets',
  'read_examples': 'jsonl_files',
  'refuse_inputs_alone': 'seqio.text_inputs',
  'refuse_training_rows': 'seqio.row_hashes',
  'register_jsonl_task': 'seqio.tasks',
  'run_calibration_task': 'seqio.calibration_task',
  'subtasks_of': 'seqio.tasks',
  'tokenised_examples': 'seqio.token_datasets',
  'tokenizer_of': 'seqio.vocabularies',
  'train_batches': 'seqio.batches',
}

__all__ = sorted(_HOMES)


def __getattr__(name):
  if name in _HOMES:
    module = importlib.import_module(f'{__name__}.{_HOMES[name]}')
    return getattr(module, name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__():
  return __all__
