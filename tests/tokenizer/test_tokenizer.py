"""The tokenizers against seqio's vocabularies, and their errors."""

import gzip
import json
import pathlib
import random

import pytest
from tools.paths import SHARED_DATA

from calm_jax.tokenizer import (
  ByteTokenizer,
  SentencePieceTokenizer,
  find_tokenizer,
  keep_vocabulary,
  load_tokenizer,
  train_sentencepiece,
  vocabulary_context,
)

TEXTS = (
  '',
  ' ',
  'Anna buys forty seven apples.',
  'two  spaces and a trailing one ',
  'tab\tand\nnewline',
  'Äpfel, Straße, naïve café — “quotes” ½ ﬁne',
  '日本語 и кириллица 🙂',
  'a <extra_id_3> b',
  '<extra_id_0> first and <extra_id_99> last',
  'glued<extra_id_1>word',
  '<extra_id_100> is none',
  '</s> <pad> <unk> ▁',
)


def sentences(count=400):
  rng = random.Random(0)
  nouns = 'apples books Äpfel Straße candles naïveté tickets stones'.split()
  for index in range(count):
    yield f'{rng.choice(nouns)} {index} and {rng.choice(nouns)}, {index % 7}.'


@pytest.fixture(scope='module')
def model_path(tmp_path_factory):
  path = tmp_path_factory.mktemp('tokenizer') / 'folder' / 'vocab.model'
  train_sentencepiece(sentences(), path, vocab_size=80)
  return str(path)


def random_texts(count=100):
  rng = random.Random(1)
  alphabet = 'ab eäß,.39Ω🙂<>_ '
  for _ in range(count):
    yield ''.join(rng.choices(alphabet, k=rng.randint(0, 40)))


@pytest.mark.parametrize('extra_ids', (0, 100))
def test_equals_seqio(model_path, extra_ids):
  seqio = pytest.importorskip('seqio')
  ours = SentencePieceTokenizer(model_path, extra_ids)
  theirs = seqio.SentencePieceVocabulary(model_path, extra_ids=extra_ids)
  assert ours.vocab_size == theirs.vocab_size
  rng = random.Random(2)
  for text in (*TEXTS, *sentences(100), *random_texts()):
    ids = ours.encode(text)
    assert ids == list(theirs.encode(text)), text
    assert ours.decode(ids) == theirs.decode(ids), text
  for _ in range(200):
    # Padding, EOS and ids of padding rows at random places included.
    ids = [rng.randrange(ours.vocab_size + 30) for _ in range(12)]
    assert ours.decode(ids) == theirs.decode(ids), ids


@pytest.mark.parametrize('extra_ids', (0, 125))
def test_bytes_equal_seqio(extra_ids):
  seqio = pytest.importorskip('seqio')
  ours = ByteTokenizer(extra_ids)
  theirs = seqio.ByteVocabulary(extra_ids=extra_ids)
  assert ours.vocab_size == theirs.vocab_size == 259 + extra_ids
  assert (ours.pad_id, ours.eos_id) == (theirs.pad_id, theirs.eos_id)
  for text in (*TEXTS, *sentences(20), *random_texts()):
    ids = ours.encode(text)
    assert ids == list(theirs.encode(text)), text
    assert ours.decode(ids) == theirs.decode(ids) == text
  rng = random.Random(2)
  for _ in range(500):
    # Halves of characters, special ids and padding rows at random places.
    ids = ours.encode('é日🙂 a') + [0, 2, ours.vocab_size, 258, 259]
    ids = rng.choices(ids, k=12) + rng.choices([1, 5], k=2)
    assert ours.decode(ids) == theirs.decode(ids), ids


def shared_lines(step):
  """Yields every step-th text of every file, and the texts of the first."""
  for path in sorted(SHARED_DATA.glob('*.jsonl.gz')):
    with gzip.open(path, 'rt', encoding='utf-8') as file:
      for number, line in enumerate(file):
        if number % step == 0:
          row = json.loads(line)
          yield from {row['inputs'], row['targets'], *row.get('references', ())}


def compare_on_shared_lines(directory, step, vocab_size):
  """Compares both kinds with seqio's; returns the number of texts."""
  seqio = pytest.importorskip('seqio')
  if not any(SHARED_DATA.glob('*.jsonl.gz')):
    pytest.skip(f'the shared data sets are not in {SHARED_DATA}')
  pairs = [(ByteTokenizer(), seqio.ByteVocabulary())]
  for byte_fallback in (False, True):
    path = directory / f'{byte_fallback}.model'
    train_sentencepiece(
      shared_lines(max(step, 20)),
      path,
      vocab_size=vocab_size,
      byte_fallback=byte_fallback,
      character_coverage=0.999,
    )
    theirs = seqio.SentencePieceVocabulary(str(path), extra_ids=100)
    pairs.append((SentencePieceTokenizer(path, 100), theirs))
  count = 0
  for text in shared_lines(step):
    count += 1
    for ours, theirs in pairs:
      ids = ours.encode(text)
      assert ids == list(theirs.encode(text)), text
      assert ours.decode(ids) == theirs.decode(ids), text
  return count


def test_equals_seqio_on_some_lines_of_the_shared_data(tmp_path):
  assert compare_on_shared_lines(tmp_path, 400, 700) > 1000


@pytest.mark.slow
def test_equals_seqio_on_every_line_of_the_shared_data(tmp_path):
  assert compare_on_shared_lines(tmp_path, 1, 8000) > 400_000


def odd_ids(tokenizer, count):
  """Yields ids that no text has: shuffled, cut, with special ones between."""
  rng = random.Random(3)
  text = 'Äpfel 12 日本語 🙂 <extra_id_0> and  naïve'
  whole = [*tokenizer.encode(text), 0, 2, tokenizer.vocab_size]
  for _ in range(count):
    start = rng.randrange(len(whole))
    yield whole[start : start + rng.randint(1, 12)]
    yield rng.choices(whole, k=rng.randint(1, 12))
    yield [*rng.choices(whole, k=8), 1, *whole[:2]]


@pytest.fixture(scope='module', params=['pieces', 'byte_fallback', 'bytes'])
def any_tokenizer(request, model_path):
  if request.param == 'bytes':
    return ByteTokenizer(5)
  if request.param == 'pieces':
    return SentencePieceTokenizer(model_path, 5)
  path = pathlib.Path(model_path).with_name('fallback.model')
  train_sentencepiece(sentences(), path, vocab_size=330, byte_fallback=True)
  return SentencePieceTokenizer(path, 5)


def test_spans_cover_the_text_in_order(any_tokenizer):
  for ids in odd_ids(any_tokenizer, 100):
    text, spans = any_tokenizer.decode(ids), any_tokenizer.spans(ids)
    assert len(spans) == len(ids)
    covered, before = 0, (0, 0)
    for start, end in spans:
      # Either the next part of the text, or the same character again.
      assert start == covered or (start, end) == before
      assert start <= end
      covered, before = max(covered, end), (start, end)
    assert covered == len(text), (ids, text, spans)


def test_spans_are_what_sentencepiece_says(any_tokenizer):
  """The last byte of a character is the one that SentencePiece gives it to."""
  if isinstance(any_tokenizer, ByteTokenizer):
    pytest.skip('not of SentencePiece')
  processor = any_tokenizer._processor
  for ids in odd_ids(any_tokenizer, 60):
    ids = [
      token for token in ids if token > 1 and token < processor.vocab_size()
    ]
    proto = processor.DecodeIds(ids, return_type='proto')
    text, spans = any_tokenizer.decode(ids), any_tokenizer.spans(ids)
    for piece, span in zip(proto.pieces, spans, strict=True):
      if piece.surface:
        assert text[slice(*span)] == piece.surface


def test_every_byte_of_a_character_stands_for_all_of_it():
  tokenizer = ByteTokenizer()
  ids = [*tokenizer.encode('é'), 2, *tokenizer.encode('a🙂')[:-1], 1, 100]
  assert tokenizer.decode(ids) == 'éa'
  assert tokenizer.spans(ids) == [(0, 1), (0, 1), (1, 1), (1, 2), *[(2, 2)] * 5]


def test_bytes_are_written_so_that_a_terminal_can_show_them():
  pieces = ByteTokenizer(2).pieces([0, 1, 2, 100, 35, 198, 13, 259, 260, 261])
  assert pieces == (
    '<pad> </s> <unk> a ▁ <0xC3> <0x0A> <extra_id_1> <extra_id_0> <261>'.split()
  )
  with pytest.raises(ValueError, match='extra_ids is -1'):
    ByteTokenizer(-1)
  with pytest.raises(ValueError, match='-7 is negative'):
    ByteTokenizer().decode([-7])


@pytest.mark.parametrize('kind', ['bytes', 'model'])
def test_a_run_directory_names_its_vocabulary(kind, model_path, tmp_path):
  tokenizer = load_tokenizer('bytes' if kind == 'bytes' else model_path, 4)
  keep_vocabulary(tokenizer, tmp_path)
  assert len(list(tmp_path.iterdir())) == (kind == 'model')
  context = vocabulary_context(tokenizer)
  checkpoint = tmp_path / 'checkpoint_3'
  checkpoint.mkdir()
  found = find_tokenizer(context, checkpoint)
  assert found.fingerprint == tokenizer.fingerprint
  assert type(found) is type(tokenizer)
  with pytest.raises(ValueError, match='not the vocabulary of this checkpoint'):
    find_tokenizer({**context, 'extra_ids': 3}, checkpoint)
  # Only what lies in the run directory is opened, whatever a checkpoint says.
  for name in ('../vocabulary.model', str(checkpoint / 'x'), '', None):
    with pytest.raises(ValueError, match='no plain name of a file'):
      find_tokenizer({**context, 'vocabulary_file': name}, checkpoint)


def test_decode_stops_at_eos_and_drops_padding(model_path):
  tokenizer = SentencePieceTokenizer(model_path)
  ids = tokenizer.encode('books and apples')
  assert tokenizer.decode([0, *ids, 1, 5, 6]) == 'books and apples'
  assert tokenizer.decode([]) == ''
  with pytest.raises(ValueError, match='-1'):
    tokenizer.decode([5, -1])


def test_extra_ids_count_down_from_the_end(model_path):
  tokenizer = SentencePieceTokenizer(model_path, extra_ids=10)
  base = SentencePieceTokenizer(model_path).vocab_size
  assert tokenizer.vocab_size == base + 10
  assert tokenizer.encode('<extra_id_0>') == [base + 9]
  assert tokenizer.piece(base) == '▁<extra_id_9>'
  assert tokenizer.piece(base + 10) == f'<{base + 10}>'


def test_pieces_join_to_the_text(model_path):
  tokenizer = SentencePieceTokenizer(model_path)
  text = 'apples 12 and books, 5.'
  assert (
    ''.join(tokenizer.pieces(tokenizer.encode(text))).replace('▁', ' ').strip()
    == text
  )


def test_fingerprint_names_the_contents(model_path, tmp_path):
  copy = tmp_path / 'copy.model'
  copy.write_bytes(open(model_path, 'rb').read())
  fingerprint = SentencePieceTokenizer(model_path).fingerprint
  assert SentencePieceTokenizer(copy).fingerprint == fingerprint
  assert SentencePieceTokenizer(copy, 5).fingerprint != fingerprint


def test_training_is_deterministic_with_t5_special_ids(model_path, tmp_path):
  again = tmp_path / 'again.model'
  assert train_sentencepiece(sentences(), again, vocab_size=80) == 80
  assert again.read_bytes() == open(model_path, 'rb').read()
  tokenizer = SentencePieceTokenizer(again)
  assert tokenizer.pieces([0, 1, 2]) == ['<pad>', '</s>', '<unk>']
  assert [path.name for path in tmp_path.iterdir()] == ['again.model']


def test_byte_fallback_spells_what_has_no_piece(tmp_path):
  path = tmp_path / 'bytes.model'
  train_sentencepiece(sentences(), path, vocab_size=330, byte_fallback=True)
  tokenizer = SentencePieceTokenizer(path)
  assert tokenizer.decode(tokenizer.encode('日本 apples')) == '日本 apples'


def test_impossible_sizes_say_what_is_possible(tmp_path):
  path = tmp_path / 'vocab.model'
  with pytest.raises(
    ValueError, match=r'too high .* at most (\d+) pieces'
  ) as e:
    train_sentencepiece(sentences(), path, vocab_size=50_000)
  possible = int(str(e.value).split('at most ')[1].split()[0])
  assert train_sentencepiece(sentences(), path, vocab_size=possible) == possible
  with pytest.raises(ValueError, match='too low'):
    train_sentencepiece(sentences(), path, vocab_size=10)
  with pytest.raises(ValueError, match='vocab_size is 2'):
    train_sentencepiece(sentences(), path, vocab_size=2)
  with pytest.raises(ValueError, match='no text'):
    train_sentencepiece(['', '  '], path, vocab_size=100)


def test_bad_model_files(model_path, tmp_path):
  with pytest.raises(FileNotFoundError, match='build_vocabulary'):
    SentencePieceTokenizer(tmp_path / 'none.model')
  with pytest.raises(ValueError, match='is a folder'):
    SentencePieceTokenizer(tmp_path)
  with pytest.raises(ValueError, match='-3'):
    SentencePieceTokenizer(model_path, extra_ids=-3)
  whole = open(model_path, 'rb').read()
  damaged = tmp_path / 'damaged.model'
  lengths = [0, 1, len(whole) // 3, len(whole) // 2, len(whole) * 2 // 3]
  for content in (whole[:length] for length in lengths):
    damaged.write_bytes(content)
    with pytest.raises(ValueError, match='not a whole SentencePiece model'):
      SentencePieceTokenizer(damaged, extra_ids=10)
  for content, match in (
    (b'{"json": 1}', 'no tokenizer.json'),
    (b'{"model": {"type": "BPE", "vocab": {}}}', "'BPE'.*own spiece.model"),
    (b'{"model": {"type": "Unigram", "vocab": []}}', r'pieces \[\]'),
    (b'version https://git-lfs.github.com/spec/v1', 'git lfs pull'),
  ):
    damaged.write_bytes(content)
    with pytest.raises(ValueError, match=match):
      SentencePieceTokenizer(damaged)
  # What lies beside it is named, and nobody is sent to train another.
  (tmp_path / 'tokenizer.json').write_text('{}')
  with pytest.raises(FileNotFoundError, match='Name .*tokenizer.json') as error:
    SentencePieceTokenizer(tmp_path / 'spiece.model')
  assert 'build_vocabulary' not in str(error.value)


def test_other_special_ids_are_refused(tmp_path):
  sentencepiece = pytest.importorskip('sentencepiece')
  corpus = tmp_path / 'corpus.txt'
  corpus.write_text('\n'.join(sentences()), encoding='utf-8')
  sentencepiece.SentencePieceTrainer.Train(
    input=str(corpus),
    model_prefix=str(tmp_path / 'plain'),
    vocab_size=80,
    minloglevel=2,
  )
  with pytest.raises(ValueError, match='padding and EOS'):
    SentencePieceTokenizer(tmp_path / 'plain.model')


def test_bpe_makes_words_of_a_small_lexicon(tmp_path):
  path = tmp_path / 'bpe.model'
  train_sentencepiece(sentences(), path, vocab_size=90, model_type='bpe')
  tokenizer = SentencePieceTokenizer(path)
  assert len(tokenizer.encode('candles')) == 1
  with pytest.raises(ValueError, match="model_type is 'word2'"):
    train_sentencepiece(sentences(), path, vocab_size=90, model_type='word2')
