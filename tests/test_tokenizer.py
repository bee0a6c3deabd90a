"""The tokenizer against seqio's vocabulary, and its errors."""

import random

import pytest

from calm_jax.tokenizer import SentencePieceTokenizer, train_sentencepiece

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
  for content in (*(whole[:length] for length in lengths), b'{"json": 1}'):
    damaged.write_bytes(content)
    with pytest.raises(ValueError, match='not a whole SentencePiece model'):
      SentencePieceTokenizer(damaged, extra_ids=10)


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
