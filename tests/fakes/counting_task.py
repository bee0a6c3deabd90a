"""A task small enough for whole jobs: numbers in words, said again."""

from calm_jax import records
from calm_jax.tokenizer import train_sentencepiece

_WORDS = 'one two three four five six seven eight nine ten'.split()

_TASK = """
from __gin__ import dynamic_registration
from calm_jax import model
from calm_jax import training
from calm_jax.cli import calibrate
from calm_jax.cli import evaluate
from calm_jax.cli import train
from calm_jax.data.seqio import tasks

DATA_DIR = %gin.REQUIRED
MODEL_DIR = %gin.REQUIRED
TASK = @tasks.JsonlTask()
tasks.JsonlTask.name = 'counting'
tasks.JsonlTask.directory = %DATA_DIR
tasks.JsonlTask.paths = {
  'train': 'train.jsonl', 'validation': 'validation.jsonl',
  'test': 'test.jsonl'}
tasks.JsonlTask.vocabulary = %VOCABULARY
tasks.JsonlTask.metrics = ('rouge_l',)
METRICS = ('rouge_l',)
LOSS_METRIC = 'rouge_l'
FEATURE_LENGTHS = {'inputs': 12, 'targets': 12}
LENGTH_BUCKETS = ()
CONFIG = @model.T5Config()
model.T5Config.vocab_size = 64
model.T5Config.embed_dim = 32
model.T5Config.num_heads = 2
model.T5Config.head_dim = 16
model.T5Config.mlp_dim = 32
model.T5Config.num_encoder_layers = 1
model.T5Config.num_decoder_layers = 3
"""


def sentence(number):
  """A number as three words."""
  return ' '.join(_WORDS[int(digit)] for digit in f'{number:03d}')


def write(folder):
  """Writes rows, vocabulary and gin file; returns what jobs are bound to."""
  folder.mkdir(parents=True, exist_ok=True)
  numbers = [(7 * n) % 1000 for n in range(1000)]
  for split, part in (
    ('train', numbers[:700]),
    ('validation', numbers[700:740]),
    ('test', numbers[740:]),
  ):
    rows = [{'inputs': sentence(n), 'targets': sentence(n)} for n in part]
    records.write_jsonl(folder / f'{split}.jsonl', rows)
  texts = [text for n in numbers[:700] for text in 2 * [sentence(n)]]
  train_sentencepiece(texts, folder / 'vocabulary.model', vocab_size=28)
  (folder / 'counting.gin').write_text(_TASK, encoding='utf-8')
  return files_in(folder)


def files_in(folder):
  """What jobs are bound to where `write` has been."""
  return dict(
    DATA_DIR=str(folder),
    MODEL_DIR=str(folder / 'run'),
    VOCABULARY=str(folder / 'vocabulary.model'),
    task=str(folder / 'counting.gin'),
  )


def bindings_of(files):
  """What of `write` is bound by gin."""
  return {name: value for name, value in files.items() if name != 'task'}
