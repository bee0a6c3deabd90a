"""A restart of train_exits that is another run is refused, and writes nothing.

The model is tiny and random and speaks bytes. The file of inputs has a name of
its own: a process has one Task of a name, and other modules leave theirs.
"""

import json
import shutil

import pytest

gin = pytest.importorskip('gin')
seqio = pytest.importorskip('seqio', reason='the jobs read seqio Tasks')

from cases import text_cases
from cases.job_cases import call

# Long checks, and twins of cheaper ones: for `scripts/test.sh --all`.
pytestmark = pytest.mark.slow

FILES = ['runs/train_exits.gin', 'tasks/input_lines.gin']
INPUTS = [f'input {number}' for number in range(12)]


def train(folder, *, inputs=tuple(INPUTS), **changes):
  (folder / 'again.txt').write_text('\n'.join(inputs), encoding='utf-8')
  bindings = {
    'MODEL_DIR': str(folder / 'run'),
    'INPUT_LINES': str(folder / 'again.txt'),
    'SHARES': {'train': 1.0},
    'TRAIN_STEPS': 2,
    'BATCH_SIZE': 4,
    'RANK': 2,
    'LENGTH_BUCKETS': (),
    'training.warmup_cosine.warmup_steps': 1,
    'evaluation.BatchLayout.batch_size': 12,
  }
  try:
    return call('train_exits', FILES, **{**bindings, **changes})
  finally:
    # As in a process of its own.
    gin.clear_config()
    seqio.TaskRegistry.remove('inputs_again')


def contents(folder):
  """Of every file of the run, by its path and when it was written."""
  files = (path for path in folder.rglob('*') if path.is_file())
  return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A run with adapters."""
  folder = tmp_path_factory.mktemp('again')
  text_cases.save_run(folder / 'run')
  train(folder)
  assert (folder / 'run/exit_adapters/outputs_train.npz').exists()
  return folder


@pytest.mark.parametrize(
  ('changes', 'named'),
  [
    ({'MAX_INPUTS': 5}, 'max_inputs: expected 5, found 2000'),
    ({'train_exits.run.seed': 1}, 'seed: expected 1, found 0'),
    ({'inputs': [*INPUTS[1:], 'another']}, 'inputs_hash: expected'),
  ],
)
def test_a_restart_that_is_another_run_is_refused(folder, changes, named):
  before = contents(folder / 'run')
  with pytest.raises(ValueError, match=f'is of another run: {named}.*Give the'):
    train(folder, **changes)
  assert contents(folder / 'run') == before


def test_adapters_whose_inputs_have_no_hash_yet_go_on(folder, tmp_path):
  """Begun by an earlier version, which kept everything else."""
  shutil.copytree(folder / 'run', tmp_path / 'run')
  adapters = tmp_path / 'run/exit_adapters'
  path = adapters / 'checkpoint_2/metadata/metadata'
  metadata = json.loads(path.read_text(encoding='utf-8'))
  assert metadata['context'].pop('inputs_hash')
  path.write_text(json.dumps(metadata), encoding='utf-8')
  train(tmp_path, TRAIN_STEPS=3)
  assert (adapters / 'checkpoint_3').exists()
  with pytest.raises(ValueError, match='max_inputs: expected 5'):
    train(tmp_path, MAX_INPUTS=5)


def test_their_gate_is_measured_on_no_inputs_either(folder, capsys):
  """All of them are for training; and it goes on with the same ones."""
  (folder / 'again.txt').write_text('\n'.join(INPUTS), encoding='utf-8')
  given = {
    'MODEL_DIR': str(folder / 'run'),
    'INPUT_LINES': str(folder / 'again.txt'),
    'SHARES': {'train': 1.0},
    'EXIT_ADAPTERS': 'exit_adapters',
    'GATE_STATES': 'own_exits',
    'BATCH_SIZE': 4,
    'HIDDEN_UNITS': 2,
    'LENGTH_BUCKETS': (),
    'training.warmup_cosine.warmup_steps': 1,
  }
  files = ['runs/train_gates.gin', 'tasks/input_lines.gin']
  try:
    for steps in (2, 3):
      assert call('train_gates', files, **given, TRAIN_STEPS=steps) is None
  finally:
    gin.clear_config()
    seqio.TaskRegistry.remove('inputs_again')
  assert 'no validation inputs' in capsys.readouterr().out
  assert (folder / 'run/gate/checkpoint_3').exists()
  assert not (folder / 'run/gate/evaluation.json').exists()


def test_the_same_inputs_in_another_order_go_on(folder, capsys):
  """What the model says is kept, and with it the order of training."""
  train(folder, inputs=INPUTS[::-1], TRAIN_STEPS=3)
  assert 'is there already' in capsys.readouterr().out
  assert (folder / 'run/exit_adapters/checkpoint_3').exists()
