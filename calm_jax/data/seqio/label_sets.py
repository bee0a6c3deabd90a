"""Which classes the targets of a Task name."""

from calm_jax.data.class_labels import ClassLabels
from calm_jax.data.seqio.preprocessors import as_text
from calm_jax.data.seqio.token_datasets import in_order

# More of them are no classes: a Task of texts was given.
MOST_CLASSES = 2000


def read_class_labels(
  task, *, target_length: int, split: str = 'train'
) -> ClassLabels:
  """Returns the different targets of a split, as classes.

  Args:
    task: a Task, its name, or a definition.
    target_length: T, the longest target in tokens.
    split: the split to read.

  Raises:
    ValueError: if there is no such split, for fewer than two classes, or more
      than `MOST_CLASSES`.
  """
  targets = [
    (as_text(example['targets_pretokenized']), example['targets'])
    for example in in_order(task, split).as_numpy_iterator()
  ]
  different = len({text for text, _ in targets})
  if different > MOST_CLASSES:
    raise ValueError(
      f'the {len(targets)} targets of {split} are {different} different texts, '
      f'more than {MOST_CLASSES}: these are no classes; give a Task whose '
      'targets name them, such as tasks/banking77.gin'
    )
  return ClassLabels.of_targets(targets, target_length)
