"""What gin would take in silence: names that nothing reads, texts, `~`."""

import ast
import random
import re

import pytest

gin = pytest.importorskip('gin')
pytest.importorskip('seqio', reason='the gin files name seqio Tasks')

from calm_jax.cli import command_line, gin_runner

FILES = ['runs/generate.gin', 'policies/softmax_margin.gin']
GIVEN = ("MODEL_DIR = 'run'", "INPUTS = 'a'")


@pytest.fixture(autouse=True)
def _clean_gin():
  yield
  gin.clear_config()


def parse(*bindings, files=FILES):
  gin_runner.parse(files, [*GIVEN, *bindings])


def bound(name):
  return gin.config.query_parameter(name)


@pytest.mark.parametrize(
  ('binding', 'message'),
  [
    ('BATCHSIZE = 4', 'no file refers to a macro BATCHSIZE .*BATCH_SIZE'),
    ('Seed = 4', 'a macro Seed.*macros here: .*MAX_LENGTH'),
    ('TRAIN_STEPS = 4', 'none of these files refers to TRAIN_STEPS, only runs'),
    ('decoding.Temperature.temperature = 2.0', 'nothing here makes a Temper'),
    ('X = 3', 'no file refers to a macro X'),
  ],
)
def test_what_does_nothing_is_refused(binding, message):
  with pytest.raises(ValueError, match=f'--gin.*{message}'):
    parse(binding)


def test_what_is_read_by_way_of_another_name_is_in_use():
  parse('MINE = 3', 'SEED = %MINE', 'files.LineOptions.batch_size = 2')
  parse(
    'SAMPLER = @decoding.Temperature()',
    'decoding.Temperature.temperature = 2.0',
  )


def test_files_may_serve_several_jobs_but_not_misspell(tmp_path):
  mine = tmp_path / 'mine.gin'
  mine.write_text('\ufeffLOSS_METRIC = "chrf"\nSEED = 3\n', encoding='utf-8')
  parse(files=[*FILES, str(mine)])
  assert bound('files.LineOptions.seed') is not None
  mine.write_text('LOSS_METRICS = "chrf"\n', encoding='utf-8')
  with pytest.raises(ValueError, match='mine.gin line 1.*LOSS_METRIC'):
    parse(files=[*FILES, str(mine)])


@pytest.mark.parametrize(
  ('binding', 'message'),
  [
    ('SAMPLER = @decoding.BeamSearch', r'write @decoding.BeamSearch\(\) for'),
    ('SAMPLER = @decoding.Beam()', 'did you mean BeamSearch'),
    ('SAMPLER = @decoding.TopP()', 'did you mean TopK'),
    ('POLICY = @decoding.as_policy', r'write @decoding.as_policy\(\)'),
    ('POLICY = @decoding.with_setting()', r'needs a value for decoding.with'),
  ],
)
def test_references_say_what_to_write(binding, message):
  with pytest.raises((ValueError, AttributeError), match=message):
    parse(binding)


def test_what_is_required_is_asked_for():
  with pytest.raises(ValueError, match='file that binds MODEL_DIR, or --gin.M'):
    gin_runner.parse(FILES, ["INPUTS = 'a'"])


def test_functions_may_be_passed_themselves():
  files = ['runs/calibrate.gin', 'policies/softmax_margin.gin']
  task = 'tasks/embedded_corpus.gin'
  given = ["MODEL_DIR = 'run'", 'P_VALUE = @calibration.betting']
  gin_runner.parse([*files, task], given)
  with pytest.raises(ValueError, match='@calibration.betting for the function'):
    gin_runner.parse([*files, task], [given[0], f'{given[1]}()'])


def random_texts(count=2000):
  rng = random.Random(0)
  letters = '@%~ab1.3 ()[]{}"\'\\\n,:_/=#é'
  for _ in range(count):
    yield ''.join(rng.choices(letters, k=rng.randint(1, 9)))


def test_a_text_of_the_command_line_stays_that_text():
  """Unless it is a literal in quotes or brackets, or one of gin's names."""
  kept = 0
  for text in [
    '3.10',
    '007',
    '1e5',
    'None',
    '@anna hi',
    '%50',
    *random_texts(),
  ]:
    (flag,) = command_line.rewrite_gin_arguments([f'--gin.INPUTS={text}'])
    value = flag.removeprefix('--gin_bindings=INPUTS = ')
    if re.fullmatch(r'[@%][A-Za-z_][\w./]*(\(\))?', text):
      assert value == text
      assert '"' in command_line.text_remedy(f'INPUTS = {value}')
    elif text[0] not in '"\'([{ \n' and '"' != text[1:2] != "'":
      assert ast.literal_eval(value) == text
      kept += 1
  assert kept > 1000


def test_references_may_stand_in_lists():
  for value in ('[@a.B(), @a.c]', "{'x': %Y}", '(@f, 1)'):
    assert command_line.as_gin('X.y', value) == value
  for value in ('(see @anna)', '[50 %', '{a}', '...', '{1, 2}', '3j', "b'a'"):
    assert command_line.as_gin('X.y', value) == repr(value)


def test_homes_are_expanded_in_places_and_not_in_texts(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  mine = tmp_path / 'mine.gin'
  mine.write_text("INPUT_FILE = '~/in.txt'\n", encoding='utf-8')
  gin_runner.parse(
    [*FILES, str(mine)], ["MODEL_DIR = '~/run'", "OUTPUT_FILE = '~'"]
  )
  assert bound('%MODEL_DIR') == f'{tmp_path}/run'
  assert bound('%INPUT_FILE') == f'{tmp_path}/in.txt'
  assert bound('%OUTPUT_FILE') == str(tmp_path)
  parse("INPUTS = '~ about'", "generate.run.forced_prefix = '~/'")
  assert bound('%INPUTS') == '~ about'
  assert bound('generate.run.forced_prefix') == '~/'
