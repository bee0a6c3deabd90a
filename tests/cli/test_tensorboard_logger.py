"""What TensorBoard reads back is what the log said."""

import pytest

from calm_jax.cli import tensorboard_logger

pytest.importorskip('tensorboard')


def test_rows_become_scalars_that_tensorboard_reads(tmp_path):
  from tensorboard.backend.event_processing import event_accumulator

  logger = tensorboard_logger.TensorBoardLogger(tmp_path)
  logger({'kind': 'start', 'step': 0, 'num_parameters': 3})
  for step in (10, 20):
    logger(
      {
        'kind': 'train',
        'step': step,
        'learning_rate': 0.5,
        'exit_losses': [3.0, float('nan'), 1.0 / step],
      }
    )
  logger({'kind': 'evaluation', 'step': 20, 'validation_loss': 2.0})
  read = event_accumulator.EventAccumulator(str(tmp_path / 'train'))
  read.Reload()
  tags = ['exit_losses/exit_1', 'exit_losses/exit_3', 'learning_rate']
  assert sorted(read.Tags()['tensors']) == tags
  events = read.Tensors('exit_losses/exit_3')
  assert [event.step for event in events] == [10, 20]
  assert [e.tensor_proto.float_val[0] for e in events] == pytest.approx(
    [0.1, 0.05]
  )
  assert (tmp_path / 'evaluation').is_dir()
  assert sorted(p.name for p in tmp_path.iterdir()) == ['evaluation', 'train']
