"""Pieces of a tokenizer, as people read them."""

WORD_START = '\u2581'
END = '</s>'


def opens_word(piece: str) -> bool:
  r"""Says whether a piece is set off from the one before it.

  >>> opens_word('\u2581app'), opens_word('les'), opens_word('</s>')
  (True, False, True)
  """
  return piece.startswith(WORD_START) or piece in (END, '<pad>')


def as_text(piece: str) -> str:
  r"""Returns a piece without the mark that opens a word; never empty.

  >>> as_text('\u2581app'), as_text('a\u2581b'), as_text('\u2581')
  ('app', 'a b', '␣')
  """
  text = piece.removeprefix(WORD_START)
  return text.replace(WORD_START, ' ') or '\u2423'


def printable(piece: str) -> str:
  r"""Returns `as_text`, with letters that print nothing written as numbers.

  >>> printable('\u2581a\n')
  'a\\x0a'
  """
  return shown(as_text(piece))


def shown(text: str) -> str:
  r"""Returns a text that a terminal shows and does not obey.

  What a model says, or a file holds, may move the cursor or change the window.

  >>> shown('red: \x1b[31m')
  'red: \\x1b[31m'
  """
  return ''.join(
    letter if letter.isprintable() else f'\\x{ord(letter):02x}'
    for letter in text
  )
