"""Makes a task of long inputs and short labels: what kind of answer is wanted?

  python -m calm_jax.benchmarks.answer_kinds --data=../shared/data \
    --output=runs/answer_kinds/data

From questions with their paragraph (squad_v1_short.*.jsonl.gz): the inputs stay
as they are, some 150 tokens, and the answer's kind stands for the answer: a
`date`, a `number`, a `name` or a `phrase`. Kinds are told by spelling, so some
are wrong; what early encoder layers are worth against the last one does not
depend on that. The files are read by tasks/answer_kinds.gin.
"""

import collections
import gzip
import json
import os
import re
import sys
from collections.abc import Sequence

from calm_jax.benchmarks.arguments import Arguments
from calm_jax.data.jsonl_files import read_examples

SPLITS = ('train', 'validation', 'test')
_DATE = re.compile(
  r'\b(1\d{3}|20\d\d)s?\b|\b(January|February|March|April|May|June|July|August'
  r'|September|October|November|December)\b|\b(century|BC|AD)\b'
)
_NUMBER = re.compile(
  r'\d|\b(one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty'
  r'|thirty|forty|fifty|hundred|thousand|million|billion|half|third|dozen)\b',
  re.IGNORECASE,
)
# Words that may stand between those of a name.
_SMALL = frozenset('the of and a an in de for at on to'.split())


def kind_of(answer: str) -> str:
  """Returns what kind of answer a text is, by its spelling.

  >>> [kind_of(answer) for answer in ('in 1973', '55 mph', 'Ted Heath', 'oil')]
  ['date', 'number', 'name', 'phrase']
  """
  if _DATE.search(answer):
    return 'date'
  if _NUMBER.search(answer):
    return 'number'
  words = re.findall(r"[^\W\d_][\w'-]*", answer)
  words = [word for word in words if word.lower() not in _SMALL]
  named = bool(words) and all(word[0].isupper() for word in words)
  return 'name' if named else 'phrase'


def write_split(
  source: str | os.PathLike, target: str | os.PathLike
) -> collections.Counter[str]:
  """Writes the rows of a file with kinds in place of answers.

  Args:
    source: a JSONL(.gz) file of `inputs` and `targets`.
    target: the JSONL.gz file to write; it is there once it is whole.

  Returns:
    How many rows there are of each kind.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: for a bad line.
  """
  counts: collections.Counter[str] = collections.Counter()
  target = os.fspath(target)
  unfinished = f'{target}.unfinished'
  with gzip.open(unfinished, 'wt', encoding='utf-8') as file:
    for example in read_examples(source):
      kind = kind_of(example.targets)
      counts[kind] += 1
      row = dict(inputs=example.inputs, targets=kind)
      file.write(json.dumps(row, ensure_ascii=False) + '\n')
  os.replace(unfinished, target)
  return counts


def main(arguments: Sequence[str] | None = None) -> None:
  """Writes the three files and says what is in them."""
  parser = Arguments('answer_kinds', __doc__)
  parser.add('data', '../shared/data', 'the folder of squad_v1_short.*')
  parser.add('output', 'runs/answer_kinds/data', 'the folder to write into')
  flags = parser.parse_args(arguments)
  try:
    os.makedirs(flags.output, exist_ok=True)
    for split in SPLITS:
      source = os.path.join(flags.data, f'squad_v1_short.{split}.jsonl.gz')
      target = os.path.join(flags.output, f'answer_kinds.{split}.jsonl.gz')
      counts = write_split(source, target)
      print(f'{target}: {counts.total()} rows, {dict(sorted(counts.items()))}')
  except (OSError, ValueError) as error:
    sys.exit(f'answer_kinds: {error}')


if __name__ == '__main__':
  main()
