"""The embedded corpus: a language task that needs no download.

English sentences in, the same in German out; see `phrases`. Most tokens of a
target follow from the tokens before it or from one place of the source, some
must be worked out over several steps, which is what makes exit layers differ.
Everything follows from the arguments: the same definition gives the same rows,
vocabulary and splits on every machine.
"""

import dataclasses
import functools
import hashlib
import os
import random
from collections.abc import Iterator, Mapping, Sequence

from calm_jax.data import phrases
from calm_jax.data.jsonl_files import TextExample, resolve_path
from calm_jax.data.seqio import task_metrics
from calm_jax.data.seqio.tasks import register_once, rows_source
from calm_jax.data.splits import normalised_input_hash
from calm_jax.tokenizer import train_sentencepiece

# Raised when what is generated changes, so that cached vocabularies are remade.
VERSION = 2
VOCABULARY_EXAMPLES = 10_000
# Shorter than German compound numbers, so that they are spelt in parts.
MAX_PIECE_LENGTH = 11


@dataclasses.dataclass(frozen=True)
class EmbeddedCorpus:
  """A generated seqio Task: English sentences in, German out.

  Attributes:
    name: the Task's name.
    directory: where its vocabulary is kept; made if missing.
    seed: of everything that is drawn.
    num_train: distinct inputs to train on.
    num_validation: distinct inputs that select a checkpoint.
    num_calibration: distinct inputs that certify.
    num_test: distinct inputs that report.
    num_sentences: sentences of an example.
    sentence_weights: how often each kind of sentence is drawn; the kinds are
      those of `phrases.SENTENCES`, left out ones are not drawn.
    hard_fraction: probability in [0, 1] that a slot must be worked out.
    max_steps: the most steps of a sum or of a weekday, 1..4.
    max_operand: the largest number added or subtracted, 1..20.
    max_start: the number a sum starts from at most, 2..60.
    vocab_size: pieces of the vocabulary.
    vocabulary_model: path of a SentencePiece model to use instead of training
      one: that of a checkpoint to go on from.
    metrics: as for `JsonlTask`.
  """

  name: str = 'embedded_corpus'
  directory: str = 'runs/embedded_corpus'
  seed: int = 0
  num_train: int = 60_000
  num_validation: int = 1_000
  num_calibration: int = 2_000
  num_test: int = 1_000
  num_sentences: int = 1
  sentence_weights: Mapping[str, float] = dataclasses.field(
    default_factory=lambda: dict.fromkeys(phrases.SENTENCES, 1.0)
  )
  hard_fraction: float = 0.5
  max_steps: int = 2
  max_operand: int = 9
  max_start: int = 40
  vocab_size: int = 512
  vocabulary_model: str | None = None
  metrics: Sequence[str] = ('exact_match', 'rouge_l')

  def __post_init__(self):
    object.__setattr__(self, 'sentence_weights', dict(self.sentence_weights))
    object.__setattr__(self, 'metrics', tuple(self.metrics))
    task_metrics.metric_fns(self.metrics)
    self.difficulty()
    weights = self.sentence_weights
    unknown = sorted(set(weights) - set(phrases.SENTENCES))
    if unknown:
      raise ValueError(
        f'sentence_weights names {unknown}; use {sorted(phrases.SENTENCES)}.'
      )
    if not any(weights.values()) or min(weights.values()) < 0:
      raise ValueError(
        f'sentence_weights is {weights}; weights must be 0 or more and one of '
        'them above 0.'
      )
    for field, least in (
      ('num_train', 1),
      ('num_validation', 0),
      ('num_calibration', 0),
      ('num_test', 0),
      ('num_sentences', 1),
    ):
      if getattr(self, field) < least:
        raise ValueError(
          f'{field} is {getattr(self, field)}; it must be {least} or more.'
        )

  def difficulty(self) -> phrases.Difficulty:
    """Returns how hard the slots are."""
    return phrases.Difficulty(
      self.hard_fraction, self.max_steps, self.max_operand, self.max_start
    )

  @property
  def vocabulary(self) -> str:
    """Path of the SentencePiece model; it exists once `register` has run."""
    if self.vocabulary_model is not None:
      return resolve_path(self.vocabulary_model)
    content = dataclasses.replace(self, name='', directory='', metrics=())
    key = hashlib.sha256(f'{VERSION} {content}'.encode()).hexdigest()[:12]
    return os.path.join(resolve_path(self.directory), f'vocabulary_{key}.model')

  def read_splits(self) -> dict[str, list[TextExample]]:
    """Returns the rows of all splits: distinct inputs, drawn alike.

    Raises:
      ValueError: if the arguments allow too few distinct inputs.
    """
    return dict(self._splits)

  @functools.cached_property
  def _splits(self) -> dict[str, list[TextExample]]:
    """The rows: jobs register a task several times, and it takes a second."""
    sizes = {
      'validation': self.num_validation,
      'calibration': self.num_calibration,
      'test': self.num_test,
      'train': self.num_train,
    }
    rows = self._distinct_examples(sum(sizes.values()))
    splits = {
      name: [next(rows) for _ in range(size)] for name, size in sizes.items()
    }
    return {name: examples for name, examples in splits.items() if examples}

  def register(self):
    """Registers the Task, once, and returns it; trains its vocabulary."""
    if self.vocabulary_model and not os.path.exists(self.vocabulary):
      raise ValueError(
        f'{self.name}: there is no vocabulary_model {self.vocabulary_model!r}; '
        'give the SentencePiece model of a checkpoint, or None to train one'
      )
    if not os.path.exists(self.vocabulary):
      train_sentencepiece(
        (
          text
          for example in self.read_splits()['train'][:VOCABULARY_EXAMPLES]
          for text in (example.inputs, example.targets)
        ),
        self.vocabulary,
        vocab_size=self.vocab_size,
        # The unigram trainer needs a word in several forms to make it a piece.
        model_type='bpe',
        max_piece_length=MAX_PIECE_LENGTH,
      )
    return register_once(
      self,
      lambda: rows_source(self.read_splits()),
      vocabulary=self.vocabulary,
      metrics=self.metrics,
    )

  def _distinct_examples(self, number: int) -> Iterator[TextExample]:
    rng = random.Random(f'{VERSION} {self.seed}')
    seen: set[int] = set()
    repeats = 0
    while len(seen) < number:
      example = self._example(rng)
      key = normalised_input_hash(example.inputs)
      if key not in seen:
        seen.add(key)
        yield example
      elif (repeats := repeats + 1) > 3 * number:
        raise ValueError(
          f'{self.name} cannot draw {number} distinct inputs, found {len(seen)}'
          ': ask for fewer rows or raise hard_fraction or num_sentences.'
        )

  def _example(self, rng: random.Random) -> TextExample:
    kinds = rng.choices(
      list(self.sentence_weights),
      list(self.sentence_weights.values()),
      k=self.num_sentences,
    )
    pairs = [phrases.SENTENCES[kind](rng, self.difficulty()) for kind in kinds]
    inputs, targets = (' '.join(side) for side in zip(*pairs, strict=True))
    return TextExample(inputs, targets, (targets,))
