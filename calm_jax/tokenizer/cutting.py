"""How an input that is too long is cut: the one function that does it.

Serving, calibration, evaluation and training must cut alike, or a certificate
is of other inputs than those that are served. An encoder that was trained on
inputs with an end meets them with an end.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

# What becomes of the end of sequence (EOS) of an input that is cut. All of
# calm_jax keeps it. That it goes with the rest is what version 0.1.0 did in
# training, and what a run that was begun so goes on with.
KEEPS_EOS = 'keeps_eos'
LOSES_EOS = 'loses_eos'
FORMS = (KEEPS_EOS, LOSES_EOS)


def cut_input(
  ids: Any,
  length: int,
  *,
  form: str = KEEPS_EOS,
  join: Callable[[Sequence[Any]], Any] = np.concatenate,
) -> Any:
  """Returns an input of at most so many tokens.

  Args:
    ids: token ids [N], an array or tensor, the last of which is EOS; where it
      is not, the form is `LOSES_EOS`.
    length: the most that are left, at least 1.
    form: one of `FORMS`.
    join: puts pieces one behind the other, `tf.concat` for tensors.

  Returns:
    The ids themselves if they are no more; else the first of them, and the last
    one at the end if the form keeps it.

  Raises:
    ValueError: if there is no such form.

  >>> ids = np.array([5, 6, 7, 8, 1])
  >>> cut_input(ids, 3), cut_input(ids, 5)
  (array([5, 6, 1]), array([5, 6, 7, 8, 1]))
  """
  if check_form(form) == LOSES_EOS:
    return ids[:length]
  # No question is asked of the ids, so that it may stand in a graph.
  return join([ids[: length - 1], ids[length - 1 :][-1:]])


def check_form(form: str) -> str:
  """Returns a form; raises ValueError if there is no such form."""
  if form not in FORMS:
    raise ValueError(f'inputs_cut is {form!r}; use one of {FORMS}')
  return form
