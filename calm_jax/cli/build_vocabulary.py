"""Builds a SentencePiece vocabulary from the train files of a JSONL task.

  python -m calm_jax.cli.build_vocabulary \
    --input=a.train.jsonl.gz,b.train.jsonl --output=runs/x/vocab.model \
    --vocab_size=2000

Reads the `inputs` and `targets` of every row. Give train files only: text of
other splits would leak into the pieces. (Rows that a task holds out of its
train file by `held_out_fraction` are read as well.)
"""

from absl import app, flags

from calm_jax.cli import app_runner
from calm_jax.data.jsonl_files import read_examples, resolve_path
from calm_jax.tokenizer import train_sentencepiece

_INPUT = flags.DEFINE_list(
  'input', None, 'Comma-separated JSONL or JSONL.gz train files.', required=True
)
_OUTPUT = flags.DEFINE_string(
  'output', None, 'Model file to write, e.g. runs/x/vocab.model.', required=True
)
_VOCAB_SIZE = flags.DEFINE_integer(
  'vocab_size', 2000, 'Pieces, padding, EOS and unknown included.'
)
_BYTE_FALLBACK = flags.DEFINE_bool(
  'byte_fallback', False, 'Spell rare characters as bytes (256 more ids).'
)
_COVERAGE = flags.DEFINE_float(
  'character_coverage', 1.0, 'Share of characters that get a piece.', 0.5, 1.0
)
_MAX_LINES = flags.DEFINE_integer(
  'max_lines', 1_000_000, 'Texts used at most, from the start of the files.'
)
_NUM_THREADS = flags.DEFINE_integer('num_threads', 2, 'Trainer threads.')
_PREFIXES = flags.DEFINE_multi_string(
  'prefix', [], 'A task prefix to learn pieces for; may be repeated.'
)


def texts(paths, prefixes=()):
  """Yields the prefixes, then the inputs and targets of all files."""
  yield from prefixes
  for path in paths:
    for example in read_examples(resolve_path(path)):
      yield example.inputs
      yield example.targets


def main(argv):
  """Runs the job that the flags describe."""
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments {argv[1:]}; use --input=FILES')
  with app_runner.in_one_line('build_vocabulary'):
    output = resolve_path(_OUTPUT.value)
    size = train_sentencepiece(
      texts(_INPUT.value, _PREFIXES.value),
      output,
      vocab_size=_VOCAB_SIZE.value,
      byte_fallback=_BYTE_FALLBACK.value,
      character_coverage=_COVERAGE.value,
      max_lines=_MAX_LINES.value,
      num_threads=_NUM_THREADS.value,
    )
  print(f'{output}: {size} pieces')


if __name__ == '__main__':
  app_runner.run(main)
