"""Every shipped gin file parses and binds, alone and with every other kind."""

import importlib.util
import itertools
import pathlib
import re
import shlex

import jax
import numpy as np
import pytest

gin = pytest.importorskip('gin')
pytest.importorskip('seqio', reason='the gin files name seqio Tasks')

from cases import text_cases
from fakes.toy_decoder import toy_decoder

from calm_jax import (
  checkpoints,
  decoding,
  evaluation,
  exits,
  model,
  records,
  runs,
  training,
)
from calm_jax.checkpoints import gate_adapters, router_twins, trained_parts
from calm_jax.cli import command_line, gin_runner
from calm_jax.exit_adapters import ExitAdapters

CONFIGS = gin_runner.shipped_configs()
BY_KIND = {
  # Runs first: what they require is filled in by the files of other kinds.
  kind: sorted(path.name for path in (CONFIGS / kind).glob('*.gin'))
  for kind in ('runs', 'models', 'tasks', 'spaces', 'policies')
}
FILES = [f'{kind}/{name}' for kind, names in BY_KIND.items() for name in names]
REQUIRED = re.compile(r'^([A-Z_]+) = %gin.REQUIRED', re.MULTILINE)
ASSIGNED = re.compile(r'^([A-Z_]+) = (?!%gin.REQUIRED)', re.MULTILINE)


@pytest.fixture(autouse=True)
def _clean_gin():
  yield
  gin.clear_config()


def test_there_are_files_of_every_kind():
  assert all(BY_KIND.values())


def test_every_folder_is_of_a_kind_or_of_t5x():
  """What is in t5x/ needs T5X to parse: tests/interop/test_t5x_jobs.py."""
  folders = {path.parent.name for path in CONFIGS.rglob('*.gin')}
  assert folders == {*BY_KIND, 't5x'}
  for path in (CONFIGS / 't5x').glob('*.gin'):
    text = path.read_text(encoding='utf-8')
    assert 'from calm_jax.interop import t5x as calm_t5x' in text, path


@pytest.mark.skipif(
  importlib.util.find_spec('t5x') is not None, reason='T5X is there'
)
def test_without_t5x_its_files_say_what_is_missing():
  with pytest.raises(ImportError, match='t5x'):
    gin_runner.parse(['t5x/early_exit.gin'])


def parse(files, bindings=()):
  """Parses files and bindings, filling in only what no file gives."""
  texts = [(CONFIGS / file).read_text(encoding='utf-8') for file in files]
  required = {name for text in texts for name in REQUIRED.findall(text)}
  given = {name for text in texts for name in ASSIGNED.findall(text)}
  missing = sorted(required - given)
  filled = [f'{name} = {filler(name)}' for name in missing]
  gin_runner.parse(files, [*filled, *bindings])
  return missing


def filler(name):
  """Returns a literal of the type that a macro of this name has."""
  if name in ('CONFIG', 'POLICY', 'SPACE', 'TASK'):
    return '@gin.singleton'  # some reference
  if name in ('CHOICES', 'FEATURE_LENGTHS', 'LENGTH_BUCKETS', 'METRICS'):
    return {'FEATURE_LENGTHS': "{'inputs': 8, 'targets': 8}"}.get(name, '()')
  return '64' if name.endswith(('SIZE', 'STEPS', 'LENGTH')) else "'x'"


@pytest.mark.parametrize('file', FILES)
def test_each_file_parses(file):
  parse([file])
  assert gin.config_str().strip()


def test_files_of_all_kinds_leave_only_places_to_choose():
  files = ['runs/train.gin', 'models/text_256.gin', 'tasks/e2e_nlg.gin']
  assert parse(files) == ['DATA_DIR', 'MODEL_DIR']
  files = ['runs/evaluate.gin', files[2], 'policies/softmax_margin.gin']
  assert parse(files) == ['DATA_DIR', 'MODEL_DIR']


@pytest.mark.parametrize(
  'kinds', list(itertools.combinations(BY_KIND, 2)), ids='+'.join
)
@pytest.mark.parametrize(
  'some',
  [
    # Every file with some other of the kind, and with all of them.
    pytest.param(True, id='some'),
    pytest.param(False, id='all', marks=pytest.mark.slow),
  ],
)
def test_every_pair_of_kinds_parses(some, kinds):
  first, second = (BY_KIND[kind] for kind in kinds)
  pairs = list(itertools.product(first, second))
  if some:
    cycles = zip(itertools.cycle(first), itertools.cycle(second), strict=False)
    pairs = itertools.islice(cycles, max(len(first), len(second)))
  for names in pairs:
    files = [f'{kind}/{name}' for kind, name in zip(kinds, names, strict=True)]
    parse(files)
    assert gin.config_str().strip()


@pytest.mark.parametrize('file', BY_KIND['models'])
def test_models_build(file):
  parse([f'models/{file}'])
  config = gin.config.query_parameter('%CONFIG').scoped_configurable_fn()
  assert config.num_decoder_layers >= 4


# Policies that read the run.
TRAINED = (
  'adapted_exits.gin',
  'adapted_gate.gin',
  'classifier.gin',
  'draft_head.gin',
  'gate.gin',
  'gate_quantile.gin',
  'lossless_int8.gin',
  'pruned_context.gin',
  'pruned_source.gin',
  'router.gin',
  'tuned.gin',
  'twin_router.gin',
  'twins.gin',
)


@pytest.mark.parametrize(
  'file',
  [
    # Of weights in 8 bits, which take long to make.
    pytest.param(
      file, marks=[pytest.mark.slow] if file == 'lossless_int8.gin' else []
    )
    for file in BY_KIND['policies']
  ],
)
def test_policies_build(file, run_with_parts):
  text = (CONFIGS / 'policies' / file).read_text(encoding='utf-8')
  bindings = []
  if 'MODEL_DIR' in REQUIRED.findall(text):
    bindings += parts_of(file, run_with_parts)
  gin_runner.parse([f'policies/{file}'], bindings)
  policy = gin.config.query_parameter('%POLICY').scoped_configurable_fn()
  full = decoding.ComputePolicy(cache_fill=policy.cache_fill)
  assert decoding.describe(policy) != decoding.describe(full)
  policy.check_composition()


# Of tune_encoder, for a run with heads: tests/cli/test_encoder_classifier.py.
_OF_HEADS = 'encoder_heads.gin'


@pytest.mark.parametrize(
  'file', [file for file in BY_KIND['spaces'] if file != _OF_HEADS]
)
def test_spaces_build(file, run_with_parts):
  """Each policy is a scope, and nothing of one is in another."""
  text = (CONFIGS / 'spaces' / file).read_text(encoding='utf-8')
  given = 'MODEL_DIR' in REQUIRED.findall(text)
  gin_runner.parse(
    ['runs/tune.gin', f'spaces/{file}'],
    [
      f'MODEL_DIR = {run_with_parts if given else "x"!r}',
      'TASK = @gin.singleton',
    ],
  )
  run = gin.get_configurable('calm_jax.cli.tune.run')
  query = gin.config.query_parameter('%SPACE')
  space = [one.scoped_configurable_fn() for one in query]
  assert callable(run) and len(space) >= 3
  assert len({one.name for one in space}) == len(space)
  described = [
    (str(decoding.describe(one.policy)), one.weights) for one in space
  ]
  assert len({*described}) == len(space)
  for one in space:
    planned = not isinstance(one.policy.layer_plan, decoding.EveryLayer)
    exact = not planned and not one.name.startswith(('calm', 'full'))
    assert isinstance(one.policy.cache_fill, decoding.CatchUp) == exact
    assert one.policy.verifies == one.name.startswith('lossless')
    assert (one.weights is not None) == (
      one.name.endswith('int8') and not one.policy.verifies
    )


def test_systems_that_were_not_trained_are_left_out_of_their_space(tmp_path):
  text_cases.save_run(tmp_path)
  gin_runner.parse(
    ['runs/tune.gin', 'spaces/systems.gin'],
    [f'MODEL_DIR = {str(tmp_path)!r}', 'TASK = @gin.singleton'],
  )
  query = gin.config.query_parameter('%SPACE')
  space = [one.scoped_configurable_fn() for one in query]
  missing = [one for one in space if isinstance(one, evaluation.LeftOut)]
  assert [
    re.findall(r'train_\w+', one.reason)[-1].removeprefix('train_')
    for one in missing
  ] == ['router', 'twins', 'source', 'context', 'source']
  assert all(str(tmp_path) in one.reason for one in missing)
  assert len(evaluation.trained_only(space, print)) == 6


@pytest.mark.parametrize(
  'file', ['gate.gin', 'gate_quantile.gin', 'adapted_gate.gin']
)
def test_a_gate_of_its_own_exits_goes_with_projected_kv(file, run_with_parts):
  """As runs/train_gates.gin says to give it."""
  said = (CONFIGS / 'runs/train_gates.gin').read_text(encoding='utf-8')
  (argument,) = re.findall(r"'(--gin\.CACHE_FILL=.*)'", said)
  (flag,) = command_line.rewrite_gin_arguments([argument])
  given = parts_of(file, run_with_parts)
  fills = {(): decoding.CatchUp, (argument,): decoding.ProjectExitState}
  for more, fill in fills.items():
    more = [flag.removeprefix('--gin_bindings=') for _ in more]
    gin_runner.parse([f'policies/{file}'], [*given, *more])
    policy = gin.config.query_parameter('%POLICY').scoped_configurable_fn()
    assert isinstance(policy.cache_fill, fill)
    policy.check_composition()
    gin.clear_config()
  quantile = isinstance(policy.exit_rule, exits.QuantileExit)
  assert quantile == (file == 'gate_quantile.gin')


@pytest.fixture(scope='module')
def run_with_parts(tmp_path_factory):
  folder = tmp_path_factory.mktemp('run')
  save_run_with_parts(folder)
  return str(folder)


@pytest.mark.parametrize('policy', BY_KIND['policies'])
def test_numbers_of_a_policy_follow_the_output_length_of_the_task(
  policy, run_with_parts
):
  """N of Eq. 5 and the length of a budget, for every task there is."""
  trained = parts_of(policy, run_with_parts)
  for task in BY_KIND['tasks']:
    parse(
      [f'tasks/{task}', f'policies/{policy}'],
      trained if policy in TRAINED else (),
    )
    query = gin.config.query_parameter
    length = query('%FEATURE_LENGTHS')['targets']
    made = query('%POLICY').scoped_configurable_fn()
    rule = decoding.at_output_length(made, length).exit_rule
    if isinstance(rule, exits.NeverExit):
      break
    if decays := isinstance(rule.threshold, exits.DecayingThreshold):
      assert rule.threshold.max_length == length, task
    if isinstance(rule, exits.LayerBudget):
      assert (rule.max_length, rule.per_request) == (length, 4 * length), task
    # A decode of the task that is given the policy as it is means the same.
    threshold = made.exit_rule.threshold.check(toy_decoder(), 1, length)
    assert not decays or float(threshold.max_length) == length
    gin.clear_config()


def save_run_with_parts(directory):
  """Saves what a policy that is trained reads of a run directory."""
  config = text_cases.CONFIG
  params = model.init_params(config, jax.random.key(0))
  text_cases.save_run(directory, params=params)
  gate = {'layer_bias': (1, 1), 'bias': (1,), 'state': (1, 3, 1)}
  shapes = {
    'classifier': {'kernel': (3,), 'bias': ()},
    'exit_adapters': {'scale': (1, 3)},
    'gate': gate,
    'beside': gate,
    'draft_head': {'entry': (2, 3, 4), 'bias': (4,), 'back': (4, 3)},
    'router': {'bias': (1,), 'state': (3, 1), 'length_weights': (1,)},
    'small_twins': {'scale': (2, 3), 'gates': (2, 3, 2, 1), 'out': (2, 1, 3)},
    'source_scorer': {'weights': (3,), 'bias': ()},
    'twin_router': {'weights': (2, 3, 3), 'bias': (2, 3), 'costs': (3,)},
    'context_gates': {'queries': (2, 3, 1), 'keys': (2, 3, 1), 'bias': (2,)},
  }

  def ones(of_part):
    return {name: np.ones(shape, 'f4') for name, shape in of_part.items()}

  for part, of_part in shapes.items():
    arrays = ones(of_part)
    adapters = ExitAdapters.identity(2, 3) if part == 'beside' else None
    checkpoints.save(
      directory / part,
      1,
      params={'gate' if part == 'beside' else part: arrays},
      config=config,
      context={
        **trained_parts.backbone_context(params),
        **gate_adapters.adapters_context(adapters),
        **router_twins.twins_context(ones(shapes['small_twins'])),
      },
    )
  save_tuning(directory / records.TUNED_FOLDER)


def save_tuning(folder):
  """Saves what a tuning chose, of which only the policy is looked at."""
  threshold = exits.DecayingThreshold(1.0, temperature=4.0)
  rule = exits.ConfidenceExit(exits.SoftmaxMargin(), threshold)
  policy = decoding.ComputePolicy(exit_rule=rule)
  chosen = records.TunedCandidate(
    policy='margin', setting=1.0, described=decoding.describe(policy, {})
  )
  tuning = records.Tuning(
    **dict.fromkeys(('fingerprint', 'p_value', 'compared'), ''),
    **dict.fromkeys(('promises', 'front', 'sequence', 'left_out'), ()),
    **dict.fromkeys(('screening_ids', 'test_ids'), ()),
    error_rate=0.05,
    seed=0,
    batch_size=1,
    full_milliseconds=1.0,
    candidates=(chosen,),
    paper=None,
    context=records.RunContext(device='cpu', dtype='float32'),
    chosen=0,
  )
  records.write_json(folder / records.TUNED_NAME, tuning)


def parts_of(policy, directory):
  """Returns what a file of policies is told of a run with parts."""
  beside = ["GATE = 'beside'"] if policy == 'adapted_gate.gin' else []
  choices = ['CHOICES = (2, 0)'] if policy == 'twins.gin' else []
  return [f'MODEL_DIR = {str(directory)!r}', *beside, *choices]


def test_run_files_say_how_to_run_them():
  for name in BY_KIND['runs']:
    text = (CONFIGS / 'runs' / name).read_text(encoding='utf-8')
    assert 'python -m calm_jax.cli.' in text or 'scripts/' in text, name
    assert '# Expected:' in text, name


@pytest.mark.parametrize(
  'arguments, expected',
  [
    (['--gin.X=3'], ['--gin_bindings=X = 3']),
    (['--gin.A.b=runs/x'], ["--gin_bindings=A.b = 'runs/x'"]),
    (['--gin.A="q"'], ['--gin_bindings=A = "q"']),
    (['--gin.A=@f()'], ['--gin_bindings=A = @f()']),
    (['--gin.A=(1, 2)'], ['--gin_bindings=A = (1, 2)']),
    (['--other=1', 'x'], ['--other=1', 'x']),
  ],
)
def test_gin_arguments_are_rewritten(arguments, expected):
  assert command_line.rewrite_gin_arguments(arguments) == expected


def test_a_file_that_is_nowhere_is_named_with_the_known_ones():
  with pytest.raises(ValueError, match=r"'runs/trian.gin'.*runs/train.gin"):
    gin_runner.parse(['runs/trian.gin'])


@pytest.mark.parametrize(
  'job, moved, remedy',
  [
    ('generate', 'batch_size', 'LineOptions, to which options is bound, has'),
    ('calibrate', 'tolerance', 'CalibrationPlan, to which plan is bound, has'),
    ('export', 'platforms', 'ProgramPlan, to which program is bound, has'),
    ('export', 'plattforms', 'it has .*, program'),
  ],
)
def test_what_a_plan_holds_is_no_parameter_of_the_job(job, moved, remedy):
  message = f"'{job}.run' doesn't have a parameter named '{moved}'"
  with pytest.raises(ValueError, match=rf'(?s){message}.*{remedy}'):
    gin_runner.parse([f'runs/{job}.gin'], [f'{job}.run.{moved} = 3'])


def test_a_checkpoint_says_from_the_command_line_how_it_reads():
  gin_runner.parse(
    ['runs/generate.gin', 'policies/softmax_margin.gin'],
    [
      "MODEL_DIR = 'byt5'",
      "INPUTS = 'a text'",
      'generate.run.vocabulary = @runs.TextFeatures()',
      "runs.TextFeatures.vocabulary = 'bytes'",
      'runs.TextFeatures.extra_ids = 125',
    ],
  )
  query = gin.config.query_parameter
  texts = query('generate.run.vocabulary').scoped_configurable_fn()
  assert texts == runs.TextFeatures('bytes', extra_ids=125)
  files = query('generate.run.files').scoped_configurable_fn()
  assert (files.inputs, files.input_file) == (['a text'], None)


def test_a_misspelt_parameter_is_refused_with_its_place():
  with pytest.raises(ValueError, match='run_steps'):
    gin_runner.parse(['runs/train.gin'], ['train.run.run_steps = 3'])


@pytest.mark.parametrize(
  ('binding', 'wanted'),
  [
    ('layer_weights = @training.uniform_weights', 'training.Objective'),
    ('max_to_keep = 3', 'training.Plan'),
    ('pack = True', 'data.DataPlan'),
  ],
)
def test_what_belongs_to_a_plan_is_refused_by_name_elsewhere(binding, wanted):
  files = ['runs/train.gin']
  name = binding.split(' = ')[0]
  with pytest.raises(ValueError, match=f"train.run' doesn't have .*'{name}'"):
    gin_runner.parse(files, [f'train.run.{binding}'])
  macros = [
    f'{macro} = {filler(macro)}'
    for macro in REQUIRED.findall(
      (CONFIGS / files[0]).read_text(encoding='utf-8')
    )
  ]
  gin_runner.parse(files, [*macros, f'{wanted}.{binding}'])


ROOT = pathlib.Path(__file__).parents[1]
# README of a part -> the files whose job its table of options is about.
OPTIONS = {
  'training': ['runs/train.gin', 'models/text_256.gin', 'tasks/e2e_nlg.gin'],
  'training/objectives': [
    'runs/train.gin',
    'models/text_256.gin',
    'tasks/e2e_nlg.gin',
  ],
  'calibration': [
    'runs/calibrate.gin',
    'tasks/e2e_nlg.gin',
    'policies/softmax_margin.gin',
  ],
  'pipeline/files': ['runs/generate.gin', 'policies/softmax_margin.gin'],
}


# What a parameter's name begins with -> the file of runs/ whose jobs have it.
JOB_OF = dict.fromkeys(
  ('training', 'data', 'model', 'decoding_evaluator'), 'train'
)
JOB_OF['calibration'] = 'calibrate'
# Those of T5X's jobs, and of the files of policies and tasks.
NOT_OF_RUNS = {'decoding', 'exits', 'infer', 'tasks'}


def bindings_in(line):
  """Returns what the code in a line of Markdown would have gin bind."""
  return [
    argument
    for code in re.findall('`([^`]+)`', line)
    for argument in shlex.split(code)
    if argument.startswith('--gin.')
  ]


@pytest.mark.parametrize('part', OPTIONS)
def test_what_the_readmes_say_to_bind_binds(part):
  """Every option in a table of options, alone."""
  text = (ROOT / 'calm_jax' / part / 'README.md').read_text(encoding='utf-8')
  lines = [line for line in text.splitlines() if line.startswith('| ')]
  arguments = [argument for line in lines for argument in bindings_in(line)]
  assert len(arguments) >= 5
  given = ["MODEL_DIR = 'run'"]
  if any(file.startswith('tasks/') for file in OPTIONS[part]):
    given.append("DATA_DIR = 'data'")
  for argument in arguments:
    (flag,) = command_line.rewrite_gin_arguments([argument])
    gin_runner.parse(
      OPTIONS[part], [*given, flag.removeprefix('--gin_bindings=')]
    )


def test_objectives_are_around_the_one_that_has_the_numbers():
  gin_runner.parse(
    OPTIONS['training/objectives'],
    [
      "MODEL_DIR = 'run'",
      "DATA_DIR = 'data'",
      'TRAIN_STEPS = 70',
      'train.run.objective = @training.LayerDropout()',
      'training.Objective.num_microbatches = 4',
      'training.RotatedExits.rotation = 3',
    ],
  )
  reference = gin.config.query_parameter('train.run.objective')
  objective = reference.scoped_configurable_fn()
  assert objective == training.LayerDropout(
    objective=training.RotatedExits(
      objective=training.Objective(num_microbatches=4), rotation=3
    ),
    curriculum_steps=70,
  )


def test_parameters_in_the_commands_of_readmes_are_there():
  """Those with dots; macros are in the tables above or in the files' heads."""
  readmes = [*ROOT.glob('*/README.md'), *ROOT.glob('calm_jax/**/README.md')]
  bindings = {
    (name, value)
    for path in readmes
    for name, value in re.findall(
      r'--gin\.((?:\w+\.)+\w+)=([\w.@]+(?:\(\))?)(?=[\s"`\'])',
      path.read_text(encoding='utf-8'),
    )
    if name.split('.')[0] not in NOT_OF_RUNS
  }
  assert len(bindings) >= 8
  for name, value in bindings:
    job = JOB_OF.get(name.split('.')[0], name.split('.')[0])
    flags = command_line.rewrite_gin_arguments([f'--gin.{name}={value}'])
    parse(
      [f'runs/{job}.gin', 'models/text_256.gin'],
      [flag.removeprefix('--gin_bindings=') for flag in flags],
    )


def test_the_task_of_ones_own_goes_with_every_other_kind(tmp_path):
  """As gin_configs/README.md writes it."""
  text = (ROOT / 'gin_configs' / 'README.md').read_text(encoding='utf-8')
  task, _ = re.findall(r'^```gin\n(.*?)^```$', text, re.M | re.S)
  (tmp_path / 'mine.gin').write_text(task, encoding='utf-8')
  mine = str(tmp_path / 'mine.gin')
  for files in (
    ['runs/train.gin', 'models/text_256.gin', mine],
    ['runs/calibrate.gin', mine, 'policies/softmax_margin.gin'],
    ['runs/evaluate.gin', mine, 'policies/softmax_margin.gin'],
  ):
    gin_runner.parse(files, ["MODEL_DIR = 'run'"])
    gin.clear_config()


def test_the_space_of_ones_own_is_one(tmp_path, run_with_parts):
  """As gin_configs/README.md writes it."""
  text = (ROOT / 'gin_configs' / 'README.md').read_text(encoding='utf-8')
  _, space = re.findall(r'^```gin\n(.*?)^```$', text, re.M | re.S)
  (tmp_path / 'space.gin').write_text(space, encoding='utf-8')
  gin_runner.parse(
    ['runs/tune.gin', str(tmp_path / 'space.gin')],
    [f'MODEL_DIR = {run_with_parts!r}', 'TASK = @gin.singleton'],
  )
  query = gin.config.query_parameter('%SPACE')
  margin, gate = (one.scoped_configurable_fn() for one in query)
  assert (margin.name, gate.name) == ('margin', 'gate')
  assert isinstance(margin.policy.exit_rule.measure, exits.SoftmaxMargin)
  assert isinstance(gate.policy.exit_rule.measure, exits.Gate)
