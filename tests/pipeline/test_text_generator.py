"""Texts through a tiny random model: alignment, batches, streams, samples."""

import jax
import jax.numpy as jnp
import pytest
from cases import text_cases
from cases.text_cases import POLICY, L

from calm_jax import checkpoints, decoding, model, pipeline
from calm_jax.pipeline import requests
from calm_jax.pipeline.streaming import stream_tokens
from calm_jax.tokenizer import (
  ByteTokenizer,
  SentencePieceTokenizer,
  train_sentencepiece,
)

TEXTS = ['one', 'a longer text of 30 characters', 'Ä 日本', 'x', 'zwei']


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  return text_cases.save_run(tmp_path_factory.mktemp('bytes'))


@pytest.fixture(scope='module')
def generator(run):
  return pipeline.TextGenerator.from_run(run, policy=POLICY)


@pytest.fixture(scope='module')
def drawing(run):
  return pipeline.TextGenerator.from_run(
    run, policy=POLICY, sampler=decoding.Temperature(1.0)
  )


@pytest.fixture(scope='module')
def outputs(generator):
  return generator.generate(TEXTS, batch_size=2)


@pytest.mark.slow
def test_tokens_are_aligned_with_the_text(drawing):
  outputs = drawing.generate(TEXTS, num_samples=2, batch_size=2)
  assert [len(samples) for samples in outputs] == [2] * len(TEXTS)
  layers = set()
  for output in (output for samples in outputs for output in samples):
    lengths = {
      len(getattr(output, name))
      for name in ('tokens', 'pieces', 'spans', 'exit_layers', 'confidences')
    }
    assert len(lengths) == 1
    layers.update(output.exit_layers)
    for piece, (start, end) in zip(output.pieces, output.spans, strict=True):
      # Pieces of one character are ASCII; a space is written as its sign.
      if len(piece) == 1:
        assert output.text[start:end] == piece.replace('▁', ' ')
  assert 1 < len(layers) <= L, 'the threshold tells nothing apart'


@pytest.mark.slow
def test_order_batches_and_buckets_change_nothing(generator, outputs):
  for text, output in zip(TEXTS, outputs, strict=True):
    ((alone,),) = generator.generate([text], num_samples=1)
    assert alone.tokens == output.tokens
    assert alone.exit_layers == output.exit_layers
    assert alone.score == pytest.approx(output.score, abs=1e-4)
  assert len({output.tokens for output in outputs}) > 1
  assert generator.generate([]) == []


@pytest.mark.slow
def test_what_is_drawn_depends_on_seed_and_number_alone(drawing):
  few = drawing.generate(TEXTS, batch_size=2, seed=3)
  again = drawing.generate(TEXTS, batch_size=1, seed=3)
  assert [one.tokens for one in few] == [one.tokens for one in again]
  other = drawing.generate(TEXTS, batch_size=2, seed=4)
  assert [one.tokens for one in few] != [one.tokens for one in other]
  several = drawing.generate(TEXTS, batch_size=2, seed=3, num_samples=2)
  assert [one.tokens for one in few] == [one[0].tokens for one in several]
  assert all(one[0].tokens != one[1].tokens for one in several)
  # The same text under another number draws anew.
  first, second = drawing.generate(['x', 'x'], seed=3)
  assert first.tokens != second.tokens


def test_a_stream_says_what_generate_says(generator, drawing, outputs):
  streamed = list(generator.stream(TEXTS[2]))
  assert tuple(one.token for one in streamed) == outputs[2].tokens
  assert tuple(one.exit_layer for one in streamed) == outputs[2].exit_layers
  assert ''.join(one.text for one in streamed) == outputs[2].text
  expected = drawing.generate(TEXTS, batch_size=2, seed=5)[4]
  streamed = list(drawing.stream(TEXTS[4], seed=5, number=4))
  assert tuple(one.token for one in streamed) == expected.tokens
  assert tuple(one.piece for one in streamed) == expected.pieces


def test_streamed_characters_come_whole(run):
  """Whatever tokens a model says, its text only ever grows."""

  class Spelling:
    """Reads each of the first ids as bytes of a fixed text."""

    bytes = [*'é日'.encode(), 0xE6, *b'a', 0x9F]

    def decode(self, ids):
      return bytes(self.bytes[: len(ids)]).decode('utf-8', 'replace')

    def piece(self, token):
      return str(token)

  generator = pipeline.TextGenerator.from_run(run)
  (batch,) = generator.batches([generator.encode(0, 'x')], 1)
  state = decoding.start(
    generator.bound,
    batch.inputs(),
    max_length=len(Spelling.bytes),
    eos_id=-1,
  )
  texts = [one.text for one in stream_tokens(state, Spelling())]
  assert texts == ['', 'é', '', '', '日', '', '\ufffda', '\ufffd']


def test_too_long_texts_are_refused_or_cut(generator):
  long = 'abc ' * 30
  with pytest.raises(ValueError, match='input 1 has 121 tokens .* for 32'):
    generator.generate(['a', long])
  output, cut = generator.generate(['a', long], too_long='truncate')
  assert output.warnings == ()
  assert cut.warnings == ('cut to 32 of 121 tokens (end of sequence included)',)
  (same,) = generator.generate([long[:31]])
  assert same.tokens == cut.tokens
  with pytest.raises(ValueError, match="too_long is 'crop'"):
    generator.generate(['a'], too_long='crop')
  with pytest.raises(ValueError, match='num_samples is 2, and Greedy'):
    generator.generate(['a'], num_samples=2)
  with pytest.raises(ValueError, match='num_samples 0 must'):
    generator.generate(['a'], num_samples=0)
  with pytest.raises(ValueError, match='batch_size is 0'):
    generator.generate(['a'], batch_size=0)


@pytest.mark.parametrize(
  'texts, message',
  [
    ('one', "one text, 'one': give a list"),
    ([3], 'input 0 is 3, no text'),
    (['a', '\ud83d'], 'input 1 holds half of a surrogate pair'),
  ],
  ids=ascii,
)
def test_what_is_no_text_is_refused(generator, texts, message):
  with pytest.raises(ValueError, match=message):
    generator.generate(texts)
  with pytest.raises(ValueError, match='forced prefix is 3, no text'):
    generator.generate(['a'], forced_prefixes=[3])


@pytest.mark.parametrize(
  ('text', 'spelled_out'),
  [
    ('a <extra_id_0> b', ''),
    ('a<extra_id_0>b', '<extra_id_0>'),
    ('a <extra_id_0> b<extra_id_0>', '<extra_id_0>'),
    ('a <extra_id_7> </s>', '</s> <extra_id_7>'),
    ('a < extra_id_0 >', ''),
  ],
)
def test_special_tokens_that_are_spelled_out_are_told(
  tmp_path, text, spelled_out
):
  vocabulary = tmp_path / 'vocab.model'
  train_sentencepiece(['aba bab ab'] * 50, vocabulary, vocab_size=7)
  for tokenizer in (SentencePieceTokenizer(vocabulary, 3), ByteTokenizer(3)):
    request = requests.encode(
      0, text, tokenizer, name='it', input_length=99, max_length=9
    )
    told = spelled_out
    if tokenizer.name == 'bytes' and '<extra_id_0>' in text:
      told = spelled_out or '<extra_id_0>'
    assert len(request.warnings) == bool(told)
    assert all(warning.startswith(told) for warning in request.warnings)


def test_weights_that_are_not_numbers_are_refused(tmp_path):
  params = model.init_params(text_cases.CONFIG, jax.random.key(0))
  scale = params['decoder']['decoder_norm']['scale']
  params['decoder']['decoder_norm']['scale'] = scale.at[3].set(jnp.nan)
  run = text_cases.save_run(tmp_path, params=params)
  load = pipeline.TextGenerator.from_run
  for options in (dict(), dict(vocabulary='bytes', extra_ids=5)):
    with pytest.raises(ValueError, match='decoder_norm/scale of .* 1 values'):
      load(run, **options)
    assert load(run, allow_nonfinite=True, **options).max_length == 8


def make_requests(lengths):
  return [
    requests.Request(number, (5,) * length)
    for number, length in enumerate(lengths)
  ]


@pytest.mark.parametrize('window', [None, 0, 6])
def test_every_request_is_in_one_batch_of_few_shapes(window):
  lengths = [1 + (7 * n) % 40 for n in range(50)]
  buckets = requests.length_buckets(40)
  waiting = []

  def read():
    for request in make_requests(lengths):
      waiting.append(request.number)
      yield request

  seen, shapes = [], set()
  for batch in requests.batches(read(), 4, buckets, window=window):
    shapes.add(batch.inputs().shape)
    assert len(batch.requests) <= batch.num_rows <= 4
    for request in batch.requests:
      assert batch.length // 2 < max(len(request.tokens), 16)
      seen.append(request.number)
      waiting.remove(request.number)
    if window is not None and max(seen) < 49:
      assert max(seen) - min(waiting, default=max(seen)) <= window + 1
  assert sorted(seen) == list(range(50))
  assert shapes <= {(rows, size) for rows in (1, 2, 4) for size in buckets}


@pytest.mark.slow
def test_other_checkpoints_come_with_a_vocabulary(run, tmp_path, outputs):
  target = checkpoints.Target(format='huggingface')
  opened = checkpoints.open_checkpoint(run)
  path = checkpoints.convert(opened, tmp_path / 'hf', target).path
  load = pipeline.TextGenerator.from_run
  lengths = {'inputs': 32, 'targets': 8}
  generator = load(
    path,
    policy=POLICY,
    vocabulary='bytes',
    extra_ids=5,
    feature_lengths=lengths,
  )
  found = generator.generate(TEXTS, batch_size=2)
  assert [one.tokens for one in found] == [one.tokens for one in outputs]
  with pytest.raises(ValueError, match='359 ids .* only 264 rows'):
    load(path, vocabulary='bytes', extra_ids=100)
  with pytest.raises(ValueError, match='bytes with 4 extra ids is not the'):
    load(run, vocabulary='bytes', extra_ids=4)
  with pytest.raises(ValueError, match='feature_lengths is'):
    load(path, vocabulary='bytes', extra_ids=5, feature_lengths={'inputs': 0})
  with pytest.raises(TypeError, match='prefix.* go with `vocabulary`'):
    load(run, prefix='say: ')


@pytest.mark.slow
def test_beams_prefixes_and_suppressed_tokens_reach_the_decoder(run, outputs):
  say = dict(policy=POLICY, sampler=decoding.BeamSearch(num_beams=3))
  generator = pipeline.TextGenerator.from_run(run, **say)
  best = generator.generate(TEXTS[:2], num_samples=2)
  for one, other in best:
    assert one.tokens != other.tokens
    assert one.score >= other.score or len(one.tokens) > len(other.tokens)
  said = set(outputs[0].tokens) - {1}
  generator = pipeline.TextGenerator.from_run(
    run, policy=POLICY, suppressed_tokens=sorted(said)
  )
  first, second = generator.generate(TEXTS[:2], forced_prefixes=['', 'né'])
  assert not said & set(first.tokens)
  assert second.text.startswith('né')
  assert second.exit_layers[:3] == (L, L, L)
  assert not second.certified
  assert (first.prefix_length, second.prefix_length) == (0, 3)
  assert second.chosen_layers == second.exit_layers[3:]
  streamed = generator.stream(TEXTS[1], forced_prefix='né')
  assert tuple(one.token for one in streamed) == second.tokens
  with pytest.raises(ValueError, match='1 forced_prefixes for 2 texts'):
    generator.generate(TEXTS[:2], forced_prefixes=['a'])
