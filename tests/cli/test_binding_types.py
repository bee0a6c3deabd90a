"""Values of a wrong type are refused with the place they were written in."""

import pytest

gin = pytest.importorskip('gin')
pytest.importorskip('seqio', reason='the gin files name seqio Tasks')

from calm_jax.cli import binding_types, gin_runner

FILES = ['runs/train.gin', 'models/text_256.gin', 'tasks/e2e_nlg.gin']
PLACES = ["DATA_DIR = 'data'", "MODEL_DIR = 'run'"]


@pytest.fixture(autouse=True)
def _clean_gin():
  yield
  gin.clear_config()


def test_shipped_files_are_of_the_right_types():
  gin_runner.parse(FILES, PLACES)
  # What was checked is what is bound.
  assert gin.query_parameter('data.DataPlan.batch_size') is not None
  assert gin.query_parameter('%TRAIN_STEPS') == 3000


@pytest.mark.parametrize(
  ('binding', 'message'),
  [
    ("TRAIN_STEPS = 'many'", r"%TRAIN_STEPS is 'many' \(--gin.TRAIN_STEPS"),
    ('model.T5Config.embed_dim = 2.5', r'embed_dim is 2.5 .*it must be int'),
    ("LEARNING_RATE = 'high'", r"peak = %LEARNING_RATE is 'high'"),
    ('training.Plan.max_to_keep = None', 'max_to_keep is None .*must be int'),
    ("FEATURE_LENGTHS = {'inputs': 'a'}", r"{'inputs': 'a'}.*Mapping\[str, in"),
    ("FEATURE_LENGTHS = {'inputs': 8, 'targets': 'many'}", "'targets': 'many'"),
    ('data.DataPlan.length_buckets = (3, 4)', r'length_buckets is \(3, 4\)'),
  ],
)
def test_a_wrong_type_is_refused_by_name(binding, message):
  with pytest.raises(ValueError, match=message):
    gin_runner.parse(FILES, [*PLACES, binding])


@pytest.mark.parametrize(
  'binding',
  [
    'LEARNING_RATE = 1',  # an integer is a number
    'training.Plan.patience = None',
    'training.Objective.layer_weights = @training.uniform_weights',
    'data.DataPlan.length_buckets = [[8, 8]]',
    "model.T5Config.mlp_activations = ['relu']",
  ],
)
def test_what_python_accepts_is_accepted(binding):
  gin_runner.parse(FILES, [*PLACES, binding])
  name = binding.split(' = ')[0]
  bound = gin.query_parameter(name if '.' in name else f'%{name}')
  assert repr(bound).strip('@').endswith(binding.split(' = ')[1].strip('@'))


def test_the_line_of_a_file_is_named(tmp_path):
  file = tmp_path / 'mine.gin'
  file.write_text('\n# A comment.\nTRAIN_STEPS = 1.5\n', encoding='utf-8')
  with pytest.raises(ValueError, match=r'mine.gin line 3\), of type float'):
    gin_runner.parse([*FILES, str(file)], PLACES)


def test_all_faults_are_told_at_once():
  faults = [f"model.T5Config.{name} = ''" for name in ('embed_dim', 'mlp_dim')]
  with pytest.raises(ValueError, match='embed_dim .*; .*mlp_dim '):
    gin_runner.parse(FILES, [*PLACES, *faults])


def test_the_last_place_counts():
  places = binding_types.find_places(
    [('a.gin', 'X = 1\nf.y = 2'), ('b.gin', 'X = 3')], ['f.y = 4']
  )
  assert places == {'X': 'b.gin line 1', 'f.y': '--gin.f.y'}
