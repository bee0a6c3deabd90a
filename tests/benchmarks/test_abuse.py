"""The test of abuse: inputs of every kind, with and without a budget."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest
from cases import encoding_cases, policy_cases

from calm_jax import (
  checkpoints,
  decoding,
  evaluation,
  exits,
  model,
  training,
)
from calm_jax.benchmarks import (
  abuse,
  abuse_batches,
  abuse_rows,
  abuse_table,
  abuse_targets,
)
from calm_jax.calibration import calibrate
from calm_jax.encoder_heads import EncoderHeads
from calm_jax.evaluation import decode_store
from calm_jax.tokenizer import ByteTokenizer, vocabulary_context

CONFIG = model.T5Config(
  vocab_size=264,
  embed_dim=16,
  num_heads=2,
  head_dim=8,
  mlp_dim=16,
  num_encoder_layers=1,
  num_decoder_layers=3,
)
KINDS = ['real', 'shuffled', 'random', 'searched, per token']
KINDS += ['searched, per output', 'gradients, per token']


@pytest.fixture
def arguments(tmp_path):
  params = model.init_params(CONFIG, jax.random.key(3))
  checkpoints.save(
    tmp_path / 'run',
    1,
    params=params,
    config=CONFIG,
    context={
      **vocabulary_context(ByteTokenizer(5)),
      'feature_lengths': {'inputs': 16, 'targets': 6},
    },
  )
  rng = np.random.default_rng(0)
  examples = [
    {'inputs': [*rng.integers(2, 30, size), 1], 'targets': [30, 1]}
    for size in rng.integers(2, 14, 7)
  ]
  tokens = str(tmp_path / 'test.npz')
  training.write_npz(tokens, examples)
  assert set(abuse.read_token_ids(tokens)) <= {*range(2, 31)}
  assert 30 in abuse.read_token_ids(tokens)
  return [
    f'--run_dir={tmp_path / "run"}',
    f'--tokens={tokens}',
    '--num_inputs=6',
    '--batch_size=4',
    '--max_length=6',
    '--num_rounds=2',
    '--variants=4',
  ]


@pytest.mark.slow
def test_it_reads_a_run_and_a_token_file(arguments, tmp_path, capsys):
  output = tmp_path / 'rows.json'
  flags = ['--threshold=0.002', '--per_request=10', '--per_token=2']
  abuse.main([*arguments, *flags, f'--output={output}'])
  printed, notes = capsys.readouterr()
  assert 'no tokens that are words' in notes
  rows = json.loads(output.read_text())['rows']
  without, budgeted = rows[::2], rows[1::2]
  assert [row['inputs'] for row in without] == KINDS
  assert [row['inputs'] for row in budgeted] == KINDS
  assert without[0]['saving_lost'] == 0.0
  for row in without:
    assert not row['budget'] and row['use'] is None
    assert row['same_outputs'] == 1.0
    assert 0 <= row['replaced'] <= 1 and 0 <= row['meaning_kept'] <= 1
    assert row['saving'] == pytest.approx(1 - row['mean_exit_layer'] / 3)
  for row in budgeted:
    assert row['largest_request'] <= 10 and row['largest_token'] <= 2
    assert row['use']['largest_request'] == row['largest_request']
  assert f'at most {budgeted[0]["largest_request"]}' in printed
  assert without[0]['replaced'] == 0 and without[0]['meaning_kept'] == 1
  # Two rounds change two tokens of an input at most.
  assert 0 < without[5]['replaced'] < 1
  # What is searched for is not cheaper than what it is made of.
  assert without[4]['mean_request'] >= without[0]['mean_request']
  with pytest.raises(SystemExit, match='per_request 5 .*6 tokens takes'):
    abuse.main([*arguments, '--threshold=0.002', '--per_request=5'])
  with pytest.raises(SystemExit, match='neither per_request nor per_token'):
    abuse.main([*arguments, '--threshold=0.002'])
  with pytest.raises(SystemExit, match='num_inputs 0 must be'):
    abuse.main([*arguments, *flags, '--num_inputs=0'])
  with pytest.raises(SystemExit, match='batch_size 0 must be'):
    abuse.main([*arguments, *flags, '--batch_size=0'])
  with pytest.raises(SystemExit, match='either --threshold or --certificate'):
    abuse.main(arguments)


def test_a_certificate_brings_its_rule_and_its_budget(tmp_path):
  rule = exits.ConfidenceExit(
    exits.StateSimilarity(),
    exits.DecayingThreshold(0.5, temperature=4.0, max_length=6),
  )
  budget = exits.LayerBudget(rule, per_request=12, per_token=2)
  for wrapped in (rule, budget):
    policy = decoding.ComputePolicy(exit_rule=wrapped)
    path = str(tmp_path / f'{type(wrapped).__name__}.json')
    calibrate(
      np.zeros((200, 1)),
      [0.5],
      tolerance=0.1,
      error_rate=0.05,
      context={'policy': decoding.describe(policy)},
    ).save(path)
    given = dict(threshold=None, certificate=path, run_dir='nowhere')
    made = abuse.make_rule(**given, per_request=9, per_token=None)
    assert made.rule == rule and made.per_request == 9
    assert made.per_token == (2 if wrapped is budget else None)
  assert abuse.make_rule(**given, per_request=None, per_token=None) == budget


class Words:
  """A tokenizer whose tokens from 5 on are words, if even, or go on."""

  vocab_size = 38

  def piece(self, token):
    return f'{"" if token % 2 else "▁"}{chr(92 + token)}' if token > 4 else '<>'

  def encode(self, text):
    return [8] if text else []


def test_words_are_those_of_the_tokenizer():
  run = types.SimpleNamespace(tokenizer=Words(), prefix='say: ')
  table = np.random.default_rng(0).normal(size=(40, 3))
  words = abuse_batches.few_words(run, table, 2)
  assert words.keep == 1 and words.neighbours.shape == (40, 2)
  # Letters as `str.isalpha` has them; rows behind the vocabulary are nothing.
  letters = [t for t in range(5, 38) if chr(92 + t).isalpha()]
  assert list(np.flatnonzero(words.words)) == [t for t in letters if t % 2 == 0]
  assert list(np.flatnonzero(words.continues)) == [t for t in letters if t % 2]
  run = types.SimpleNamespace(tokenizer=ByteTokenizer(5), prefix='')
  assert abuse_batches.few_words(run, np.zeros((264, 3)), None) is None


@pytest.mark.slow
def test_an_encoder_is_aimed_at():
  """Rows of every kind; what gradients take of the saving a budget bounds."""
  sources = [np.append(s[s > 0], 1) for s in encoding_cases.inputs()]
  heads = EncoderHeads(
    kernel=np.random.default_rng(1).normal(size=(4, 16, 3)).astype('f4'),
    bias=np.zeros((4, 3), 'f4'),
  )
  target = abuse_targets.EncoderExits(
    classifier=evaluation.DatasetClassifier(
      encoder=encoding_cases.ENCODER,
      params=encoding_cases.params(),
      heads=heads,
      class_texts=('a', 'b', 'c'),
    ),
    source_length=8,
    batch_size=12,
  )
  ids = np.arange(2, 40)
  edits = evaluation.FewWords(np.arange(40) > 1, np.zeros(40, bool), least=2)
  compared = abuse_rows.searches(target, ids, edits, by_output=False)
  assert 'searched, per output' not in compared
  names = ['few words, searched', 'few words, gradients']
  rule = exits.LayerBudget(
    exits.ConfidenceExit(exits.SoftmaxMargin(), 0.8), per_request=2
  )
  rows = abuse_rows.measure(
    target,
    sources,
    ids,
    rule=rule,
    compared={name: compared[name] for name in names},
    effort=abuse_rows.Effort(2, 5),
  )
  assert [row.inputs for row in rows[::2]] == [*KINDS[:3], *names]
  real = rows[0]
  assert real.replaced == 0 and real.meaning_kept == 1
  assert real.mean_exit_layer < 4 and real.num_tokens == len(sources)
  guided, capped = rows[-2:]
  assert guided.saving_lost > 0 and 0 < guided.replaced < 1
  assert capped.largest_request <= 2 < guided.largest_request
  assert capped.mean_exit_layer < guided.mean_exit_layer
  measured = types.SimpleNamespace(rows=rows)
  table = abuse_table.table(measured)
  assert table.header[1:3] == ('replaced', 'meaning kept')
  assert table.rows[0][1:4] == ('0%', '100%', 'no')
  # A file of an earlier version has neither.
  plain = [
    dataclasses.replace(row, replaced=None, meaning_kept=None) for row in rows
  ]
  table = abuse_table.table(types.SimpleNamespace(rows=plain))
  assert table.header[1] == 'budget' and len(table.rows[0]) == 9


@pytest.mark.parametrize(
  'plan',
  [
    decoding.KeepLayers(3),
    pytest.param(decoding.SkipDecode(4, 2), marks=pytest.mark.slow),
  ],
  ids=['kept', 'SkipDecode'],
)
@pytest.mark.slow
def test_layers_by_position_are_immune(plan):
  """No input has a say in what a position costs: there is nothing to find."""

  def decode(inputs):
    return evaluation.decode_dataset(
      policy_cases.bound(policy_cases.WHILE),
      abuse_batches.batches_of(inputs, 8, policy_cases.S),
      detokenize=str,
      max_length=4,
      eos_id=-1,
      policy=decoding.ComputePolicy(layer_plan=plan),
    )

  sources = [row[row > 0] for row in np.asarray(policy_cases.inputs())]
  seen = []

  def cost(decoded):
    seen.append(decoded)
    return decoded.work[:, decode_store.WORK.index('attention')]

  found = evaluation.delayed_inputs(
    sources,
    evaluation.RandomSearch(evaluation.AnyTokens(np.arange(5, 40))),
    decode,
    cost,
    num_rounds=1,
    variants=4,
    seed=0,
  )
  for one, source in zip(found, sources, strict=True):
    np.testing.assert_array_equal(one, source)
  # Other outputs, and the same work in every column.
  work = np.concatenate([decoded.work for decoded in seen])
  assert len(np.unique(np.concatenate([d.tokens for d in seen]), axis=0)) > 1
  np.testing.assert_array_equal(work, np.broadcast_to(work[:1], work.shape))
