"""A calibration's cost in passes of the full model."""

import numpy as np
import pytest
from fakes import toy_decoder

from calm_jax.benchmarks import calibration_passes


@pytest.mark.slow
def test_a_turn_counts_the_full_model_and_what_was_decoded():
  inputs = np.arange(1, 4)[np.indices((3, 3)).reshape(2, -1).T]
  turns = list(
    calibration_passes.measure(
      toy_decoder.toy_bound(4),
      [inputs.astype(np.int32)],
      calibration_passes.rules(6)['softmax margin'],
      detokenize=lambda ids: ' '.join(map(str, ids)),
      max_length=6,
      num_turns=2,
    )
  )
  assert turns[0].decoded == turns[1].decoded > 0
  for turn in turns:
    assert turn.total > turn.full > 0.0 < turn.pass_seconds


def test_what_is_missing_is_said(tmp_path):
  with pytest.raises(SystemExit, match='calibration_passes: '):
    calibration_passes.main([f'--run_dir={tmp_path}', '--tokens=none.npz'])
