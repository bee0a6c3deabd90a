"""`python -m t5x.main` with our gin files: train, eval and infer, on end."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from tools import t5x_stack
from tools.paths import ROOT

t5x_stack.skip_without('t5x', 'airio', 'jestimator', 'fiddle')

from calm_jax import (
  checkpoints,
  decoding,
  exits,
  model,
  runs,
  tokenizer,
)
from calm_jax.calibration.certificate import Certificate
from calm_jax.checkpoints import classifiers
from calm_jax.cli import gin_runner

THRESHOLD = 0.85
FILES = (
  't5x/early_exit.gin',
  't5x/task.gin',
  'tasks/embedded_corpus.gin',
)
POLICY = (
  '--gin_file=policies/state_similarity.gin',
  f'--gin.exits.ConstantThreshold.value={THRESHOLD}',
)


def t5x_main(folder, mode, run_file, *bindings, policy=POLICY):
  """Runs T5X on two devices that share every row, in a folder of its own."""
  files = ('t5x/examples/t5/t5_1_1/tiny.gin', run_file, *FILES)
  common = (
    "network.T5Config.dtype='float32'",
    'corpus.EmbeddedCorpus.num_train=300',
    'corpus.EmbeddedCorpus.num_validation=8',
    'corpus.EmbeddedCorpus.num_calibration=0',
    'corpus.EmbeddedCorpus.num_test=6',
    'network.T5Config.num_decoder_layers=4',
    'partitioning.PjitPartitioner.num_partitions=2',
    'DROPOUT_RATE=0.1',
  )
  result = subprocess.run(
    [
      *(sys.executable, '-m', 't5x.main', f'--run_mode={mode}'),
      f'--gin_search_paths={gin_runner.shipped_configs()}',
      *(f'--gin_file={file}' for file in files),
      *policy,
      *(f'--gin.{binding}' for binding in (*common, *bindings)),
    ],
    cwd=folder,
    env={
      **os.environ,
      'PYTHONPATH': os.pathsep.join([str(ROOT), *map(str, sys.path)]),
      'XLA_FLAGS': '--xla_backend_optimization_level=0'
      ' --xla_force_host_platform_device_count=2',
    },
    capture_output=True,
    text=True,
  )
  assert result.returncode == 0, result.stderr[-4000:]


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  folder = tmp_path_factory.mktemp('t5x')
  t5x_main(
    folder,
    'train',
    't5x/configs/runs/pretrain.gin',
    f"MODEL_DIR='{folder}/model'",
    'TRAIN_STEPS=2',
    'BATCH_SIZE=4',
    'train.eval_period=2',
    'train.eval_steps=1',
  )
  return folder


def test_its_checkpoint_is_ours(trained):
  _, config, about = checkpoints.load(str(trained / 'model' / 'checkpoint_2'))
  assert (config.num_decoder_layers, config.vocab_size) == (4, 512)
  assert about['step'] == 2
  names = (trained / 'model' / 'model-info.txt').read_text(encoding='utf-8')
  assert 'decoder/logits_dense/kernel' in names


def test_eval_reports_the_depth(trained):
  t5x_main(
    trained,
    'eval',
    't5x/configs/runs/eval.gin',
    f"CHECKPOINT_PATH='{trained}/model/checkpoint_2'",
    f"EVAL_OUTPUT_DIR='{trained}/eval'",
    'utils.DatasetConfig.batch_size=4',
  )
  (path,) = (trained / 'eval').glob('inference_eval/*-metrics.jsonl')
  metrics = json.loads(path.read_text(encoding='utf-8'))
  assert {'exact_match', 'rouge_l'} < metrics.keys()
  assert 2 < metrics['mean_exit_layer'] < 4


def vocabulary_of(trained):
  (path,) = (trained / 'runs/embedded_corpus').glob('*.model')
  return tokenizer.SentencePieceTokenizer(path)


def infer(trained, name, *bindings, **options):
  """Runs T5X's infer job; returns its rows."""
  t5x_main(
    trained,
    'infer',
    't5x/configs/runs/infer.gin',
    f"CHECKPOINT_PATH='{trained}/model/checkpoint_2'",
    f"INFER_OUTPUT_DIR='{trained}/{name}'",
    "infer.mode='predict_with_aux'",
    'utils.DatasetConfig.batch_size=4',
    *bindings,
    **options,
  )
  (path,) = (trained / name).glob('*-00000-of-00001')
  return [json.loads(line) for line in path.read_text('utf-8').splitlines()]


def assert_decoded_by(policy, trained, rows):
  """Checks the rows' depths against our decoder on the same checkpoint."""
  assert len(rows) == 6
  params, config, _ = checkpoints.load(str(trained / 'model' / 'checkpoint_2'))
  vocabulary = vocabulary_of(trained)
  texts = [row['inputs']['inputs_pretokenized'] for row in rows]
  inputs = np.zeros((6, 26), np.int32)
  for row, text in zip(inputs, texts, strict=True):
    tokens = [*vocabulary.encode(text), 1]
    row[: len(tokens)] = tokens
  result = decoding.generate(
    decoding.bind(model.as_layered_decoder(config), params),
    inputs,
    policy=policy,
    max_length=18,
  )
  found = np.array([row['aux']['exit_layers'] for row in rows])
  np.testing.assert_array_equal(found, result.exit_layers)
  assert len(np.unique(found[found > 0])) > 1


def test_infer_writes_what_our_decoder_says_of_the_same_checkpoint(trained):
  rows = infer(
    trained, 'infer', "utils.RestoreCheckpointConfig.dtype='float32'"
  )
  policy = decoding.ComputePolicy(
    exit_rule=exits.ConfidenceExit(exits.StateSimilarity(), THRESHOLD)
  )
  assert_decoded_by(policy, trained, rows)


def test_infer_exits_by_a_classifier_at_its_certified_threshold(trained):
  vocabulary, run = vocabulary_of(trained), trained / 'run'
  opened = checkpoints.open_checkpoint(trained / 'model' / 'checkpoint_2')
  written = checkpoints.convert(
    opened, run, checkpoints.Target(format='calm_jax')
  )
  random = np.random.default_rng(0)
  classifiers.save_classifier(
    run,
    {
      'kernel': random.normal(size=opened.config.embed_dim).astype('f'),
      'bias': np.float32(0),
    },
    opened.config,
    backbone=written.fingerprint,
    step=2,
  )
  policy = decoding.ComputePolicy(
    exit_rule=exits.ConfidenceExit(
      runs.load_classifier(run),
      exits.DecayingThreshold(1.0, temperature=4.0, max_length=64),
    )
  )
  context = runs.decoding_context(
    policy,
    params=checkpoints.load(run).params,
    tokenizer=vocabulary,
    sampler=decoding.Greedy(),
  ).write()
  Certificate(
    index=0,
    reason='',
    tolerance=0.1,
    error_rate=0.05,
    p_value='hoeffding_bentkus',
    procedure='fixed_sequence',
    num_examples=9,
    settings=(0.6,),
    risks=(0.0,),
    p_values=(0.01,),
    context={**context, 'dtype': 'float32'},
  ).save(run / 'certificate.json')
  rows = infer(
    trained,
    'certified',
    f"MODEL_DIR='{run}'",
    f"CERTIFICATE='{run}/certificate.json'",
    policy=(
      '--gin_file=policies/classifier.gin',
      '--gin_file=t5x/certified.gin',
    ),
  )
  assert_decoded_by(decoding.with_setting(policy, 0.6), trained, rows)
