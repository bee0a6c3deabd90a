"""From the features of a public data set to inputs, targets and references.

The forms that T5 gave the paper's three tasks (Raffel et al., arXiv
1910.10683, appendix D), as callables over one example of TensorFlow Datasets.
Task prefixes are left to the Task. They are made of TensorFlow operations, so
that millions of rows need no Python.
"""

import dataclasses

from calm_jax.data.seqio.tensorflow_setup import tf


@dataclasses.dataclass(frozen=True)
class Summarisation:
  """A document and its summary.

  Attributes:
    document: the feature that holds the text.
    summary: the feature that holds its summary.
  """

  document: str = 'article'
  summary: str = 'highlights'

  def __call__(self, example):
    """Returns `inputs`, `targets` (scalars) and `references` (1-D)."""
    return _row(example[self.document], example[self.summary][tf.newaxis])


@dataclasses.dataclass(frozen=True)
class Translation:
  """A text and its translation.

  Attributes:
    source: the feature of the language to translate from.
    target: the feature of the language to translate into.
  """

  source: str
  target: str

  def __call__(self, example):
    """Returns `inputs`, `targets` (scalars) and `references` (1-D)."""
    return _row(example[self.source], example[self.target][tf.newaxis])


@dataclasses.dataclass(frozen=True)
class QuestionAnswering:
  """An open-book question in SQuAD's features; its answers are references.

  The input is `question: ... context: ...`, the target the first answer.

  Attributes:
    space_punctuation: whether everything but ASCII letters, digits and `_`
      gets spaces around it, in answers as well, as in T5's SQuAD. Models
      fine-tuned by T5 expect it. Answers that differ by such spaces only count
      as different to token F1.
  """

  space_punctuation: bool = True

  def __call__(self, example):
    """Returns `inputs`, `targets` (scalars) and `references` (1-D)."""
    question, context = example['question'], example['context']
    answers = example['answers']['text']
    if self.space_punctuation:
      question, context, answers = map(_spaced, (question, context, answers))
    inputs = tf.strings.join(
      ['question:', question, 'context:', context], separator=' '
    )
    return _row(inputs, answers)


def _row(inputs, references):
  return {
    'inputs': inputs,
    # A row without any answer gets an empty target, which sources leave out.
    'targets': tf.strings.reduce_join(references[:1]),
    'references': references,
  }


def _spaced(text):
  """Puts spaces around each character that is no ASCII letter, digit or _."""
  # RE2's \W is about ASCII, also where T5 applies it to other letters.
  text = tf.strings.regex_replace(text, r'(\W)', r' \1 ')
  return tf.strings.regex_replace(text, r'\s+', ' ')
