"""The phrases and sentences of the embedded corpus: English in, German out.

A sentence has slots; a slot is filled with a plain phrase, which is translated
where it stands, or with one that must be worked out: a sum, a weekday some days
later, a date across the end of a month, an order. German puts the units of a
number before the tens and the adverbs elsewhere, so even plain slots are not
copied left to right. Number words come from num2words.
"""

import dataclasses
import datetime
import functools
import random
from collections.abc import Callable

from num2words import num2words

# English and German of one phrase or sentence.
Pair = tuple[str, str]

NAMES = ('Anna', 'Ben', 'Clara', 'David', 'Emma', 'Felix', 'Greta', 'Hugo')
THINGS = (
  ('apples', 'Äpfel'),
  ('books', 'Bücher'),
  ('candles', 'Kerzen'),
  ('eggs', 'Eier'),
  ('tickets', 'Karten'),
  ('stamps', 'Marken'),
  ('stones', 'Steine'),
  ('shirts', 'Hemden'),
)
VERBS = (
  ('buys', 'kauft'),
  ('sells', 'verkauft'),
  ('counts', 'zählt'),
  ('finds', 'findet'),
)
WEEKDAYS = (
  ('Monday', 'Montag'),
  ('Tuesday', 'Dienstag'),
  ('Wednesday', 'Mittwoch'),
  ('Thursday', 'Donnerstag'),
  ('Friday', 'Freitag'),
  ('Saturday', 'Samstag'),
  ('Sunday', 'Sonntag'),
)
MONTHS = (
  ('January', 'Januar'),
  ('February', 'Februar'),
  ('March', 'März'),
  ('April', 'April'),
  ('May', 'Mai'),
  ('June', 'Juni'),
  ('July', 'Juli'),
  ('August', 'August'),
  ('September', 'September'),
  ('October', 'Oktober'),
  ('November', 'November'),
  ('December', 'Dezember'),
)
# A year that is no leap year; its dates give day and month arithmetic.
NEW_YEAR = datetime.date(2023, 1, 1)
LARGEST_NUMBER = 99


@dataclasses.dataclass(frozen=True)
class Difficulty:
  """How hard the slots are.

  Attributes:
    hard_fraction: probability in [0, 1] that a slot must be worked out.
    max_steps: the most steps of a sum or of a weekday, 1..4.
    max_operand: the largest number that is added or subtracted, 1..20.
    max_start: the number a sum starts from at most, 2..60.
  """

  hard_fraction: float = 0.5
  max_steps: int = 2
  max_operand: int = 9
  max_start: int = 40

  def __post_init__(self):
    for name, low, high in (
      ('hard_fraction', 0, 1),
      ('max_steps', 1, 4),
      ('max_operand', 1, 20),
      ('max_start', 2, 60),
    ):
      value = getattr(self, name)
      if not low <= value <= high:
        raise ValueError(f'{name} is {value!r}; it must lie in {low}..{high}.')

  def is_hard(self, rng: random.Random) -> bool:
    """Draws whether a slot must be worked out."""
    return rng.random() < self.hard_fraction


Sentence = Callable[[random.Random, Difficulty], Pair]


@functools.cache
def in_words(number: int, language: str, form: str = 'cardinal') -> str:
  """Returns a number in words; num2words is slow, so each is asked once."""
  return num2words(number, lang=language, to=form).replace('-', ' ')


def english(number: int) -> str:
  """Returns a number in English words."""
  return in_words(number, 'en')


def german(number: int) -> str:
  """Returns a number in German words."""
  return in_words(number, 'de')


def number(rng: random.Random, difficulty: Difficulty) -> Pair:
  """'forty seven', or 'thirty plus nine minus two' to be worked out."""
  if not difficulty.is_hard(rng):
    value = rng.randint(2, LARGEST_NUMBER)
    return english(value), german(value)
  value = rng.randint(2, difficulty.max_start)
  source = english(value)
  for _ in range(rng.randint(1, difficulty.max_steps)):
    step = rng.randint(1, difficulty.max_operand)
    if value > step + 1 and rng.random() < 0.5:
      value, source = value - step, f'{source} minus {english(step)}'
    else:
      value, source = value + step, f'{source} plus {english(step)}'
  return source, german(value)


def weekday(rng: random.Random, difficulty: Difficulty) -> Pair:
  """'Friday', or 'five days after Friday' to be worked out."""
  index = rng.randrange(7)
  source = WEEKDAYS[index][0]
  if difficulty.is_hard(rng):
    for _ in range(rng.randint(1, difficulty.max_steps)):
      days = rng.randint(2, 6)
      sign, word = rng.choice(((1, 'after'), (-1, 'before')))
      index = (index + sign * days) % 7
      source = f'{english(days)} days {word} {source}'
  return source, WEEKDAYS[index][1]


def date(rng: random.Random, difficulty: Difficulty) -> Pair:
  """'third of May', or 'six days after thirtieth of May' to be worked out."""
  # Not so late that a step could leave the year.
  day = NEW_YEAR + datetime.timedelta(days=rng.randrange(355))
  source = f'{in_words(day.day, "en", "ordinal")} of {MONTHS[day.month - 1][0]}'
  if difficulty.is_hard(rng):
    days = rng.randint(2, 9)
    day += datetime.timedelta(days=days)
    source = f'{english(days)} days after {source}'
  ordinal = in_words(day.day, 'de', 'ordinal')
  return source, f'{ordinal}n {MONTHS[day.month - 1][1]}'


def clock(rng: random.Random, difficulty: Difficulty) -> Pair:
  """'six forty', or 'twenty minutes after six forty' to be worked out."""
  minutes = 5 * rng.randint(13, 275)
  source = _clock_english(minutes)
  if difficulty.is_hard(rng):
    later = 5 * rng.randint(1, 9)
    minutes += later
    source = f'{english(later)} minutes after {source}'
  return source, _clock_german(minutes)


def _clock_english(minutes: int) -> str:
  hour, minute = divmod(minutes, 60)
  return f'{english(hour)} {english(minute) if minute else "sharp"}'


def _clock_german(minutes: int) -> str:
  hour, minute = divmod(minutes % (24 * 60), 60)
  # 'ein Uhr', not 'eins Uhr'.
  hour_words = 'ein' if hour == 1 else german(hour)
  return f'{hour_words} Uhr {german(minute)}' if minute else f'{hour_words} Uhr'


def trade(rng: random.Random, difficulty: Difficulty) -> Pair:
  """Such as 'On Friday Anna buys forty seven apples'."""
  name, (verb, verb_de) = rng.choice(NAMES), rng.choice(VERBS)
  (thing, thing_de), (count, count_de) = (
    rng.choice(THINGS),
    number(rng, difficulty),
  )
  day, day_de = weekday(rng, difficulty)
  return (
    f'{name} {verb} {count} {thing} on {day}.',
    f'Am {day_de} {verb_de} {name} {count_de} {thing_de}.',
  )


def inventory(rng: random.Random, difficulty: Difficulty) -> Pair:
  """Such as 'Ben has nine books and twenty eggs'."""
  name = rng.choice(NAMES)
  (first, first_de), (second, second_de) = rng.sample(THINGS, 2)
  count, count_de = number(rng, difficulty)
  other, other_de = number(rng, difficulty)
  return (
    f'{name} has {count} {first} and {other} {second}.',
    f'{name} hat {count_de} {first_de} und {other_de} {second_de}.',
  )


def arrival(rng: random.Random, difficulty: Difficulty) -> Pair:
  """Such as 'Clara arrives on the third of May at six forty'."""
  name = rng.choice(NAMES)
  day, day_de = date(rng, difficulty)
  time, time_de = clock(rng, difficulty)
  return (
    f'{name} arrives on {day} at {time}.',
    f'{name} kommt um {time_de} am {day_de} an.',
  )


def meeting(rng: random.Random, difficulty: Difficulty) -> Pair:
  """Such as 'David meets Emma on Monday at noon'."""
  name, other = rng.sample(NAMES, 2)
  day, day_de = weekday(rng, difficulty)
  time, time_de = clock(rng, difficulty)
  return (
    f'{name} meets {other} on {day} at {time}.',
    f'Am {day_de} um {time_de} trifft {name} {other}.',
  )


def order(rng: random.Random, difficulty: Difficulty) -> Pair:
  """'Name forty, seven and nineteen.': in this order or in ascending order."""
  numbers = rng.sample(range(2, LARGEST_NUMBER + 1), 3)
  verb, verb_de = 'Name', 'Nenne'
  said = sorted(numbers) if (hard := difficulty.is_hard(rng)) else numbers
  if hard:
    verb, verb_de = 'Sort', 'Ordne'
  first, second, third = map(english, numbers)
  first_de, second_de, third_de = map(german, said)
  return (
    f'{verb} {first}, {second} and {third}.',
    f'{verb_de} {first_de}, {second_de} und {third_de}.',
  )


SENTENCES: dict[str, Sentence] = {
  'trade': trade,
  'inventory': inventory,
  'arrival': arrival,
  'meeting': meeting,
  'order': order,
}
