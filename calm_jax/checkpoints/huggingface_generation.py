"""What a folder of Hugging Face's says of generating: ids and rules of outputs.

transformers decodes by generation_config.json, older folders by the same fields
of config.json. Ids that change every token (start, end, padding) must be T5's;
what can be said here too is honoured, and the rest is told, each by its name.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

FILE = 'generation_config.json'
# Where the context of a checkpoint of our own has them.
CONTEXT_FIELD = 'generation'
Fields = Mapping[str, Any]

# Ids that this model computes with, and what they are.
_IDS = {
  'pad_token_id': (0, 'padding'),
  'eos_token_id': (1, 'the end of a text'),
  'decoder_start_token_id': (0, 'what the decoder starts from'),
}
# What is not followed, with the values that ask for nothing, and what to do.
_SEARCH = 'sampler=decoding.BeamSearch(...) searches'
_DRAWING = 'sampler=decoding.Temperature(...) draws'
_LENGTH = 'feature_lengths says how long outputs may be'
_NOT_FOLLOWED = {
  **dict.fromkeys(('num_beams', 'num_beam_groups'), ((1,), _SEARCH)),
  'length_penalty': ((1.0,), _SEARCH),
  'early_stopping': ((False,), _SEARCH),
  'diversity_penalty': ((0.0,), _SEARCH),
  'do_sample': ((False,), _DRAWING),
  'max_length': ((20,), _LENGTH),
  'max_new_tokens': ((), _LENGTH),
  'min_length': ((0,), ''),
  'min_new_tokens': ((0,), ''),
  'repetition_penalty': ((1.0,), ''),
  'encoder_repetition_penalty': ((1.0,), ''),
  'no_repeat_ngram_size': ((0,), ''),
  'encoder_no_repeat_ngram_size': ((0,), ''),
  'begin_suppress_tokens': (([],), ''),
  'forced_eos_token_id': ((), ''),
  'forced_decoder_ids': (([],), ''),
  'sequence_bias': (({},), ''),
  'exponential_decay_length_penalty': ((), ''),
  'guidance_scale': ((1.0,), ''),
  'stop_strings': (([],), ''),
  'renormalize_logits': ((False,), ''),
  'remove_invalid_values': ((False,), ''),
  'task_specific_params': (({},), 'prefix=... puts text in front of inputs'),
}


@dataclasses.dataclass(frozen=True)
class GenerationRules:
  """What outputs of a model begin with and lack, by its own account.

  Attributes:
    suppressed_tokens: ids that are never said, ascending.
    forced_prefix: ids that every output begins with.
  """

  suppressed_tokens: tuple[int, ...] = ()
  forced_prefix: tuple[int, ...] = ()

  @classmethod
  def read(
    cls, where: str, context: Mapping[str, Any], vocab_size: int
  ) -> 'GenerationRules':
    """Returns the rules in the context of a checkpoint of our own.

    Args:
      where: the checkpoint, for messages.
      context: what `write` put there, beside whatever else; nothing is none.
      vocab_size: V of the model.

    Raises:
      ValueError: if the ids of a rule are none of the model's.
    """
    fields = context.get(CONTEXT_FIELD, {})
    names = (field.name for field in dataclasses.fields(cls))
    return cls(
      *(tuple(_ids(where, name, fields, vocab_size)) for name in names)
    )

  def write(self) -> dict[str, Any]:
    """Returns what the context of a checkpoint holds of it, if anything."""
    rules = {
      name: list(ids) for name, ids in dataclasses.asdict(self).items() if ids
    }
    return {CONTEXT_FIELD: rules} if rules else {}

  def describe(self, where: str) -> list[str]:
    """Says what is done about each rule, in sentences."""
    notes = []
    if self.suppressed_tokens:
      notes.append(
        f'{where}: the tokens {list(self.suppressed_tokens)} are never said by '
        'a TextGenerator (suppressed_tokens; decoding.generate takes them, '
        'too).'
      )
    if self.forced_prefix:
      tokens = ', '.join(map(str, self.forced_prefix))
      notes.append(
        f'{where}: every output of a TextGenerator begins with the token '
        f'{tokens} (forced_prefix; decoding.generate takes it, too).'
      )
    return notes


def check_ids(where: str, fields: Fields) -> None:
  """Raises ValueError if padding, start or end have other ids than here."""
  for name, (here, meaning) in _IDS.items():
    found = fields.get(name)
    several = found if isinstance(found, list) and found else [found]
    if found is not None and any(token != here for token in several):
      raise ValueError(
        f'{where}: {name} is {found!r}; here {meaning} is {here}, as in every '
        'published T5, and outputs would be other ones: such a model is not '
        f'read. If it was trained with {here} all the same, say "{name}": '
        f'{here} in that file'
      )
  start, first = (
    fields.get(name) for name in ('decoder_start_token_id', 'bos_token_id')
  )
  if start is None and first not in (None, 0):
    raise ValueError(
      f'{where}: bos_token_id is {first!r}, and without a '
      'decoder_start_token_id the decoder starts from it; here it starts from '
      '0. Say "decoder_start_token_id": 0 there if the model was trained so'
    )


def read_rules(
  where: str, fields: Fields, vocab_size: int
) -> tuple[GenerationRules, list[str]]:
  """Returns the rules that are honoured, and notes of these and of others.

  Args:
    where: the file, for messages.
    fields: what it holds.
    vocab_size: V of the model.

  Raises:
    ValueError: if the ids of a rule are none of the model's.
  """
  suppressed = set(_ids(where, 'suppress_tokens', fields, vocab_size))
  words = fields.get('bad_words_ids') or []
  single = [word for word in words if isinstance(word, list) and len(word) == 1]
  # As there, a bad word is never the end of a text.
  singles = {'bad_words_ids': [token for word in single for token in word]}
  bad = _ids(where, 'bad_words_ids', singles, vocab_size)
  suppressed |= {token for token in bad if token != _IDS['eos_token_id'][0]}
  forced = _ids(where, 'forced_bos_token_id', fields, vocab_size)
  rules = GenerationRules(tuple(sorted(suppressed)), tuple(forced))
  notes = rules.describe(where)
  if len(single) < len(words):
    notes.append(f'{where}: bad_words_ids of several tokens are not followed.')
  return rules, [*notes, *_not_followed(where, fields)]


def _ids(where: str, name: str, fields: Fields, vocab_size: int) -> list[int]:
  """Returns the ids of a field that holds one, several or none."""
  found = fields.get(name)
  if found is None:
    return []
  found = found if isinstance(found, list) else [found]
  for token in found:
    known = isinstance(token, int) and not isinstance(token, bool)
    if not known or not 0 <= token < vocab_size:
      raise ValueError(
        f'{where}: {name} holds {token!r}, which is no token of this model; '
        'get the file again, or take the field out of it'
      )
  return found


def _not_followed(where: str, fields: Fields) -> Iterator[str]:
  for name, (neutral, advice) in _NOT_FOLLOWED.items():
    value = fields.get(name)
    if value is None or value in neutral:
      continue
    shown = f'{value!r}'
    shown = shown if len(shown) <= 60 else f'{shown[:57]}...'
    yield (
      f'{where}: {name} ({shown}) is not followed'
      f'{f": {advice}" if advice else ""}.'
    )


def fields_of(rules: GenerationRules) -> dict[str, Any]:
  """Returns the fields of the generation_config.json that says the rules."""
  fields: dict[str, Any] = {name: here for name, (here, _) in _IDS.items()}
  if rules.suppressed_tokens:
    fields['suppress_tokens'] = list(rules.suppressed_tokens)
  if rules.forced_prefix:
    fields['forced_bos_token_id'] = rules.forced_prefix[0]
  return fields
