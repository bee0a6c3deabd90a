"""The embedded corpus: right German, reproducible rows, disjoint splits."""

import collections
import dataclasses
import datetime
import random
import re

import pytest

pytest.importorskip('seqio')
num2words = pytest.importorskip('num2words').num2words

from calm_jax.data import phrases
from calm_jax.data.seqio import corpus, tasks
from calm_jax.data.splits import normalised_input_hash
from calm_jax.tokenizer import SentencePieceTokenizer

HARD = phrases.Difficulty(
  hard_fraction=1.0, max_steps=4, max_operand=20, max_start=60
)
SMALL = {
  'num_train': 3000,
  'num_validation': 50,
  'num_calibration': 100,
  'num_test': 60,
  'vocab_size': 200,
}
ENGLISH_NUMBERS = {
  num2words(value).replace('-', ' '): value for value in range(1, 400)
}


def draws(phrase, difficulty=HARD, count=300):
  rng = random.Random(0)
  return [phrase(rng, difficulty) for _ in range(count)]


def test_sums_are_right():
  for source, target in draws(phrases.number):
    terms = re.split(r' (plus|minus) ', source)
    value = ENGLISH_NUMBERS[terms[0]]
    for sign, term in zip(terms[1::2], terms[2::2], strict=True):
      step = ENGLISH_NUMBERS[term]
      value += step if sign == 'plus' else -step
    assert value >= 1
    assert target == num2words(value, lang='de')


def test_weekdays_are_right():
  english = [pair[0] for pair in phrases.WEEKDAYS]
  for source, target in draws(phrases.weekday):
    *steps, start = re.split(r' days (after|before) ', source)
    index = english.index(start)
    for days, word in zip(steps[::2], steps[1::2], strict=True):
      index += ENGLISH_NUMBERS[days] * (1 if word == 'after' else -1)
    assert target == phrases.WEEKDAYS[index % 7][1]


def test_dates_are_right():
  english = [pair[0] for pair in phrases.MONTHS]
  german = [pair[1] for pair in phrases.MONTHS]
  ordinals = {
    num2words(day, to='ordinal').replace('-', ' '): day for day in range(1, 32)
  }
  crossings = 0
  for source, target in draws(phrases.date):
    days, day, month = re.match(
      r'(.+) days after (.+) of (.+)', source
    ).groups()
    start = datetime.date(2023, english.index(month) + 1, ordinals[day])
    end = start + datetime.timedelta(days=ENGLISH_NUMBERS[days])
    crossings += start.month != end.month
    ordinal = num2words(end.day, lang='de', to='ordinal')
    assert target == f'{ordinal}n {german[end.month - 1]}'
  assert crossings


def test_clock_times_are_right():
  for source, target in draws(phrases.clock):
    later, time = source.split(' minutes after ')
    hour, minute = next(
      (hour, minute)
      for hour in range(24)
      for minute in range(60)
      if hour
      and time
      == f'{phrases.english(hour)} '
      + (phrases.english(minute) if minute else 'sharp')
    )
    end = hour * 60 + minute + ENGLISH_NUMBERS[later]
    hour, minute = end // 60 % 24, end % 60
    hour_words = 'ein' if hour == 1 else num2words(hour, lang='de')
    words = f' {num2words(minute, lang="de")}' if minute else ''
    assert target == f'{hour_words} Uhr{words}'


def test_sorted_numbers_come_in_order():
  german = {num2words(value, lang='de'): value for value in range(2, 100)}
  for _, target in draws(phrases.order):
    values = [german[word] for word in re.split(', | und ', target[6:-1])]
    assert target.startswith('Ordne ') and values == sorted(values)


@pytest.mark.parametrize('kind', sorted(phrases.SENTENCES))
def test_plain_sentences_need_no_working_out(kind):
  easy = dataclasses.replace(HARD, hard_fraction=0.0)
  for source, target in draws(phrases.SENTENCES[kind], easy, 100):
    assert not re.search('plus|minus|after|before|Sort', source)
    assert source.endswith('.') and target.endswith('.')


def test_rows_are_drawn_once():
  definition = corpus.EmbeddedCorpus(**SMALL)
  first = definition.read_splits()
  first.pop('train')
  again = definition.read_splits()
  assert again['test'] is first['test'] and len(again['train']) == 3000


def test_rows_are_reproducible_and_splits_disjoint(tmp_path):
  made = corpus.EmbeddedCorpus(directory=str(tmp_path), **SMALL).read_splits()
  again = corpus.EmbeddedCorpus(directory='other', **SMALL).read_splits()
  assert made == again
  other = corpus.EmbeddedCorpus(**SMALL, seed=1).read_splits()
  assert other['test'] != made['test']
  assert {name: len(rows) for name, rows in made.items()} == {
    'validation': 50,
    'calibration': 100,
    'test': 60,
    'train': 3000,
  }
  counts = collections.Counter(
    normalised_input_hash(row.inputs) for rows in made.values() for row in rows
  )
  assert set(counts.values()) == {1}


def test_global_random_state_is_left_alone():
  random.seed(5)
  before = random.getstate()
  corpus.EmbeddedCorpus(**SMALL).read_splits()
  assert random.getstate() == before


def test_targets_have_a_useful_length(tmp_path):
  made = corpus.EmbeddedCorpus('useful_length', str(tmp_path), **SMALL)
  made.register()
  tokenizer = SentencePieceTokenizer(made.vocabulary)
  lengths = [
    len(tokenizer.encode(row.targets)) for row in made.read_splits()['test']
  ]
  assert 10 <= sum(lengths) / len(lengths) <= 25
  # Compound numbers are spelt in parts.
  assert len(tokenizer.encode('siebenundvierzig')) > 1


def test_vocabulary_is_cached_and_reproducible(tmp_path):
  one, two = (
    corpus.EmbeddedCorpus(f'cached_{name}', str(tmp_path / name), **SMALL)
    for name in 'ab'
  )
  one.register()
  two.register()
  with open(one.vocabulary, 'rb') as left, open(two.vocabulary, 'rb') as right:
    assert left.read() == right.read()
  assert one.vocabulary.endswith(two.vocabulary.rpartition('/')[2])
  changed = dataclasses.replace(one, max_operand=5)
  assert changed.vocabulary != one.vocabulary
  assert one.register() is tasks.as_task(one.name)
  with pytest.raises(ValueError, match='registered already'):
    changed.register()


def test_a_vocabulary_that_there_is_may_be_given(tmp_path):
  own = corpus.EmbeddedCorpus('own_vocabulary', str(tmp_path / 'own'), **SMALL)
  own.register()
  given = dataclasses.replace(
    own,
    name='given_vocabulary',
    directory=str(tmp_path / 'given'),
    vocabulary_model=own.vocabulary,
  )
  given.register()
  assert given.vocabulary == own.vocabulary
  assert not (tmp_path / 'given').exists()
  assert given.read_splits() == own.read_splits()
  missing = dataclasses.replace(
    given, name='missing_vocabulary', vocabulary_model='nowhere.model'
  )
  with pytest.raises(ValueError, match=r"no vocabulary_model 'nowhere\.model'"):
    missing.register()


@pytest.mark.parametrize(
  'arguments, message',
  [
    ({'hard_fraction': 1.5}, 'hard_fraction is 1.5'),
    ({'max_steps': 0}, 'max_steps is 0'),
    ({'max_operand': 21}, 'max_operand is 21'),
    ({'max_start': 1}, 'max_start is 1'),
    ({'num_train': 0}, 'num_train is 0'),
    ({'num_sentences': 0}, 'num_sentences is 0'),
    ({'sentence_weights': {'poem': 1}}, 'poem'),
    ({'sentence_weights': {'trade': 0}}, 'above 0'),
    ({'metrics': ('meteor',)}, 'meteor'),
  ],
)
def test_bad_arguments_are_named(arguments, message):
  with pytest.raises(ValueError, match=message):
    corpus.EmbeddedCorpus(**arguments)


def test_too_few_distinct_inputs(monkeypatch):
  # Two people, seven days and 263 times of day make 3,682 plain meetings.
  monkeypatch.setattr(phrases, 'NAMES', ('Anna', 'Ben'))
  few = corpus.EmbeddedCorpus(
    sentence_weights={'meeting': 1}, hard_fraction=0.0, num_train=4000
  )
  with pytest.raises(ValueError, match='cannot draw 8000 distinct inputs'):
    few.read_splits()
  enough = dataclasses.replace(few, num_train=10, num_calibration=10)
  assert len(enough.read_splits()['train']) == 10
