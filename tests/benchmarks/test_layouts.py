"""The layouts benchmark times what it says, and tells it by matrix."""

import jax
import numpy as np
import pytest

from calm_jax import model
from calm_jax.benchmarks import layouts, layouts_table, measured_rows

CONFIG = model.T5Config(
  vocab_size=64,
  embed_dim=32,
  num_heads=2,
  head_dim=8,
  mlp_dim=48,
  num_encoder_layers=1,
  num_decoder_layers=1,
)


@pytest.mark.slow
def test_every_matrix_is_timed_both_ways():
  params = model.init_params(CONFIG, jax.random.key(0))
  layer = params['decoder']['layers_0']
  sizes = layouts.matrices(CONFIG)
  assert (
    sizes['attention'][:2] == layer['self_attention']['query']['kernel'].shape
  )
  assert sizes['feed-forward, out'][:2] == layer['mlp']['wo']['kernel'].shape
  assert (
    sizes['feed-forward, in'][1] == 2 * layer['mlp']['wi_0']['kernel'].shape[1]
  )
  rows = list(
    layouts.measure('tiny', [1, 3], num_repeats=1, num_bytes=1e4, config=CONFIG)
  )
  assert len(rows) == 2 * len(sizes)
  times = [(row.kept_milliseconds, row.other_milliseconds) for row in rows]
  assert (np.array(times) > 0).all()
  measured = measured_rows.Measured(
    tuple(rows),
    measured_rows.provenance.run_context(
      device='cpu',
      dtype='float32',
      libraries=(),
      details={'flags': {'num_repeats': 1}},
    ),
  )
  table = layouts_table.table(measured)
  assert table.header[-2:] == ('P = 1', 'P = 3')
  assert len(table.rows) == len(sizes)


def test_positions_that_are_none_are_refused():
  with pytest.raises(ValueError, match='numbers from 1 on'):
    list(layouts.measure('tiny', [0], num_repeats=1, config=CONFIG))
