"""The preprocessors and the postprocessor that text Tasks are made of.

Rows become strings (`inputs`, `targets`, `references`), strings become ids with
EOS. References are kept as one JSON string per example: seqio's Evaluator turns
every feature into a rectangular array, which a ragged list of texts is not.
"""

import functools
import json
from collections.abc import Mapping, Sequence

import numpy as np

from calm_jax.data.jsonl_files import TextExample
from calm_jax.data.seqio.tensorflow_setup import seqio, tf
from calm_jax.tokenizer import cut_input


def examples_dataset(examples: Sequence[TextExample]):
  """Returns a tf.data.Dataset of strings: inputs, targets, references."""
  return tf.data.Dataset.from_tensor_slices(
    {
      'inputs': [example.inputs for example in examples],
      'targets': [example.targets for example in examples],
      'references': [pack_references(example) for example in examples],
    }
  )


def shuffled_examples_dataset(
  examples: Sequence[TextExample], *, shuffle: bool, seed: int | None = None
):
  """Returns `examples_dataset` of the examples, shuffled as a whole if wished.

  Files are sorted, and seqio's buffer of 1,000 would leave them so.
  """
  if shuffle:
    order = np.random.default_rng(seed).permutation(len(examples))
    examples = [examples[index] for index in order]
  return examples_dataset(examples)


def pack_references(example: TextExample) -> str:
  """Returns the references as one JSON string."""
  return json.dumps(example.references, ensure_ascii=False)


def pack_reference_tensor(texts):
  """Returns a 1-D tensor of texts as `pack_references` would, within a graph.

  But for control characters, which stay as they are; `unpack_references` reads
  both.
  """
  escaped = tf.strings.regex_replace(texts, r'(["\\])', r'\\\1')
  joined = tf.strings.reduce_join(escaped, separator='", "')
  return tf.strings.join(['["', joined, '"]'])


def unpack_references(features: Mapping) -> list[str]:
  """Returns the references of one example of a Task.

  Those of its `references` feature, or `targets_pretokenized` alone for a Task
  that has no such feature.
  """
  packed = features.get('references')
  if packed is None:
    return [as_text(features['targets_pretokenized'])]
  # Not strict: texts packed within a graph keep their newlines.
  return json.loads(as_text(packed), strict=False)


def as_text(value) -> str:
  """Returns a string from the bytes, scalar tensors or strings of tf.data."""
  value = value.numpy() if hasattr(value, 'numpy') else value
  value = value.item() if hasattr(value, 'item') else value
  return value.decode('utf-8') if isinstance(value, bytes) else str(value)


def add_prefix(dataset, prefix: str):
  """Puts a task prefix such as 'summarize: ' in front of every input."""

  def prefixed(example):
    return {**example, 'inputs': tf.strings.join([prefix, example['inputs']])}

  return dataset.map(prefixed, num_parallel_calls=tf.data.AUTOTUNE)


def append_eos_and_cut(dataset, output_features, sequence_length=None):
  """Appends EOS, and cuts inputs before seqio would cut off theirs.

  Args:
    dataset: of examples as ids.
    output_features: the Task's features.
    sequence_length: the longest features in tokens, as seqio has it; None, or
      without inputs, for whole examples.
  """
  dataset = seqio.preprocessors.append_eos(dataset, output_features)
  length = (sequence_length or {}).get('inputs')
  if length is None:
    return dataset
  join = functools.partial(tf.concat, axis=0)

  def cut(example):
    inputs = cut_input(example['inputs'], length, join=join)
    return {**example, 'inputs': inputs}

  return dataset.map(cut, num_parallel_calls=tf.data.AUTOTUNE)


def references_or_prediction(output, example=None, is_target=False):
  """Postprocesses for metrics that compare one text with several.

  Returns the list of references for a target, the text itself for a
  prediction.
  """
  if is_target and example is not None:
    return unpack_references(example)
  return output


def text_preprocessors(prefix: str = '') -> list:
  """Returns prefix, tokenise, place for a cache, append EOS, in this order.

  EOS is appended before a Task trims, so that a target cut short ends without
  one and no model learns to stop there. Inputs keep theirs. The texts stay as
  `inputs_pretokenized` (prefix included) and `targets_pretokenized`.
  """
  prefixed = [functools.partial(add_prefix, prefix=prefix)] if prefix else []
  return [
    *prefixed,
    seqio.preprocessors.tokenize,
    seqio.CacheDatasetPlaceholder(),
    append_eos_and_cut,
  ]
