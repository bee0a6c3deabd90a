"""Cutting: nothing that fits changes, and the end stays at the end."""

import numpy as np
import pytest

from calm_jax import tokenizer


@pytest.mark.parametrize('size', range(1, 8))
@pytest.mark.parametrize('length', range(1, 8))
def test_the_end_stays_at_the_end(size, length):
  ids = np.array([*range(2, 1 + size), tokenizer.EOS_ID], np.int32)
  kept = tokenizer.cut_input(ids, length)
  lost = tokenizer.cut_input(ids, length, form=tokenizer.LOSES_EOS)
  assert len(kept) == len(lost) == min(size, length)
  assert kept.dtype == ids.dtype and kept[-1] == tokenizer.EOS_ID
  assert kept[:-1].tolist() == ids[: len(kept) - 1].tolist()
  assert lost.tolist() == ids[:length].tolist()


def test_an_unknown_form_is_named():
  with pytest.raises(ValueError, match="inputs_cut is 'middle'"):
    tokenizer.cut_input(np.array([2, 1]), 1, form='middle')
