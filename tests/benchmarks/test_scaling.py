import json
import re
import subprocess
import sys

import numpy as np
import pytest

from calm_jax.benchmarks import measured_rows
from calm_jax.benchmarks import scaling_model as scaling
from calm_jax.reporting import tables


def recorded(lengths, depths, sources=None):
  """Inputs of these lengths, every token of one depth each."""
  exit_layers = np.zeros((len(lengths), max(lengths)), np.int64)
  for row, (length, depth) in enumerate(zip(lengths, depths, strict=True)):
    exit_layers[row, :length] = depth
  return scaling.Recorded(
    exit_layers, np.array(lengths if sources is None else sources)
  )


def test_a_batch_costs_its_deepest_row_for_its_longest():
  data = recorded([3, 1, 2], [1, 4, 2])
  # Batches (3 tokens at 1 | 1 at 4) and (2 at 2).
  assert scaling.batch_costs(data, 2, fixed=0.0).tolist() == [6.0, 4.0]
  assert scaling.batch_costs(data, 2, fixed=2.0).tolist() == [12.0, 8.0]
  assert scaling.batch_costs(data, 1, fixed=0.0).tolist() == [3.0, 4.0, 4.0]


def test_waiting_for_each_other_never_pays():
  costs = np.array([5.0, 1.0, 1.0, 5.0])
  assert scaling.lockstep_seconds(costs, 2) == 10.0
  assert scaling.alone_seconds(costs, 2) == 6.0
  rng = np.random.default_rng(0)
  for num_devices in (1, 2, 3, 7):
    costs = rng.random(20)
    lockstep = scaling.lockstep_seconds(costs, num_devices)
    assert lockstep >= scaling.alone_seconds(costs, num_devices) - 1e-12
    assert lockstep >= costs.sum() / num_devices - 1e-12
  assert scaling.lockstep_seconds(costs, 1) == pytest.approx(costs.sum())


def test_a_freed_slot_takes_the_next_input():
  # Slot 1 decodes 4 tokens, slot 2 the others: 4 steps, not 4 + 1.
  data = recorded([4, 1, 1, 2], [1, 1, 1, 1])
  assert scaling.slots_seconds(data, 1, 2, fixed=0.0) == 4.0
  assert scaling.batch_costs(data, 2, fixed=0.0).sum() == 6.0
  # A step costs the deepest of the rows that are there at the same time.
  data = recorded([2, 1, 1], [1, 5, 3])
  assert scaling.slots_seconds(data, 1, 2, fixed=1.0) == 5 + 3 + 2


def test_alike_inputs_share_perfectly():
  data = recorded([4] * 32, [2] * 32)
  found = scaling.efficiencies(
    data, 4, batch_size=2, fixed=1.0, copies=1, seed=0
  )
  assert set(found.values()) == {1.0}


def test_it_reads_predictions_and_prints_a_table(tmp_path, capsys):
  rng = np.random.default_rng(0)
  for process in range(2):
    path = tmp_path / f'early-{process:05d}-of-00002.jsonl'
    rows = [
      {
        'line': line,
        'inputs': 'a' * int(rng.integers(3, 30)),
        'exit_layers': rng.integers(1, 9, rng.integers(1, 12)).tolist(),
      }
      for line in range(process, 40, 2)
    ]
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  pattern = str(tmp_path / 'early-*.jsonl')
  assert scaling.read_predictions(pattern).exit_layers.shape[0] == 40
  output = str(tmp_path / 'model.json')
  scaling.main(
    [
      f'--predictions={pattern}',
      '--devices=1,4',
      '--copies=2',
      f'--output={output}',
    ]
  )
  printed = capsys.readouterr().out
  lines = [line for line in printed.splitlines() if line.startswith('|')]
  assert lines[0].startswith('| devices | one program | alone |')
  assert lines[2].startswith('| 1 | 1.00 | 1.00 |') and len(lines) == 4
  measured = measured_rows.read(output, scaling.EfficiencyRow)
  assert [row.num_devices for row in measured.rows] == [1, 4]
  assert f'{tables.with_notes(scaling.table(measured))}\n' == printed
  for bad, message in (
    ([f'--predictions={tmp_path}/none*'], 'no predictions'),
    ([f'--predictions={pattern}', '--copies=0'], 'copies is 0'),
    ([f'--predictions={pattern}', '--devices=0'], 'devices is 0'),
  ):
    with pytest.raises(SystemExit, match=message):
      scaling.main(bad)


def run(name, *arguments):
  result = subprocess.run(
    [sys.executable, '-m', f'calm_jax.benchmarks.{name}', *arguments],
    capture_output=True,
    text=True,
  )
  assert result.returncode == 0, result.stderr[-2000:]
  return result.stdout


@pytest.mark.slow
def test_rows_of_one_device_and_of_two_are_timed():
  text = run(
    'weak_scaling',
    '--devices=1,2',
    '--rows_per_device=2',
    '--source_length=4',
    '--target_length=4',
    '--num_repeats=1',
  )
  assert re.search(r'^\| 1 \| 2 \| \d+ \| 1.00 \|$', text, re.MULTILINE)
  assert re.search(r'^\| 2 \| 4 \| \d+ \| [\d.]+ \|$', text, re.MULTILINE)


@pytest.mark.slow
def test_the_largest_t5_compiles_for_eight_devices_without_parameters():
  text = run('mesh_memory', '--shapes=t5_v1_1_xl,t5_v1_1_xxl')
  rows = {
    cells[1].strip(): cells
    for cells in (line.split('|') for line in text.splitlines()[2:4])
  }
  # bfloat16 parameters, an eighth on each device.
  assert rows['t5_v1_1_xl'][2].strip() == '2.85 billion'
  assert float(rows['t5_v1_1_xl'][5]) == pytest.approx(2.85 * 2 / 8, rel=0.01)
  assert float(rows['t5_v1_1_xxl'][5]) == pytest.approx(11.14 * 2 / 8, rel=0.01)
