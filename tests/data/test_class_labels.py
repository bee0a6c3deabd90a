"""Classes by the texts of targets, and their numbers."""

import numpy as np
import pytest

from calm_jax.data.class_labels import ClassLabels

TARGETS = [('lost card', [7, 5, 1]), ('fees', [9, 1]), ('lost card', [7, 5, 1])]


def test_classes_are_sorted_and_found_by_their_tokens():
  labels = ClassLabels.of_targets(TARGETS, 4)
  assert labels.texts == ('fees', 'lost card')
  targets = np.array([[7, 5, 1, 0], [9, 1, 0, 0], [0, 0, 0, 0]])
  assert labels.numbers_of(targets).tolist() == [1, 0, -1]
  # Whatever the bucket is.
  assert labels.numbers_of(targets[:, :3]).tolist() == [1, 0, -1]
  again = ClassLabels.read(labels.context())
  assert again == labels


def test_what_is_no_class_is_refused():
  labels = ClassLabels.of_targets(TARGETS, 4)
  with pytest.raises(ValueError, match=r'row 1 has the tokens \[9, 9\]'):
    labels.numbers_of(np.array([[9, 1], [9, 9]]))
  with pytest.raises(ValueError, match='at least 2 classes'):
    ClassLabels.of_targets(TARGETS[:1], 4)
  alike = [('old card', [7, 5, 3, 1]), ('old cards', [7, 5, 3, 4, 1])]
  with pytest.raises(ValueError, match=r'same tokens \[7, 5, 3\].*raise FEAT'):
    ClassLabels.of_targets(alike, 3)
  with pytest.raises(ValueError, match='same text, but for spaces'):
    ClassLabels(('a', ' a'), ((1,), (2,)))
  with pytest.raises(ValueError, match='2 texts of classes and 1'):
    ClassLabels(('a', 'b'), ((1,),))
