"""`python -m t5x.main` with our gin files: train, eval and infer, on end."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import t5x_stack

t5x_stack.skip_without('t5x', 'airio', 'jestimator', 'fiddle')

from calm_jax import checkpoints, decoding, exits, model, tokenizer  # noqa: E402
from calm_jax.cli import gin_runner  # noqa: E402

THRESHOLD = 0.85
FILES = (
  't5x/early_exit.gin',
  't5x/task.gin',
  'tasks/embedded_corpus.gin',
  'policies/state_similarity.gin',
)


def t5x_main(folder, mode, run_file, *bindings):
  """Runs T5X on two devices that share every row, in a folder of its own."""
  files = ('t5x/examples/t5/t5_1_1/tiny.gin', run_file, *FILES)
  common = (
    "network.T5Config.dtype='float32'",
    f'exits.ConstantThreshold.value={THRESHOLD}',
    'corpus.EmbeddedCorpus.num_train=300',
    'corpus.EmbeddedCorpus.num_validation=8',
    'corpus.EmbeddedCorpus.num_calibration=0',
    'corpus.EmbeddedCorpus.num_test=6',
    'network.T5Config.num_decoder_layers=4',
    'partitioning.PjitPartitioner.num_partitions=2',
    'DROPOUT_RATE=0.1',
  )
  here = pathlib.Path(__file__).parents[2]
  result = subprocess.run(
    [
      *(sys.executable, '-m', 't5x.main', f'--run_mode={mode}'),
      f'--gin_search_paths={gin_runner.shipped_configs()}',
      *(f'--gin_file={file}' for file in files),
      *(f'--gin.{binding}' for binding in (*common, *bindings)),
    ],
    cwd=folder,
    env={
      **os.environ,
      'PYTHONPATH': os.pathsep.join([str(here), *map(str, sys.path)]),
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


def test_infer_writes_what_our_decoder_says_of_the_same_checkpoint(trained):
  t5x_main(
    trained,
    'infer',
    't5x/configs/runs/infer.gin',
    f"CHECKPOINT_PATH='{trained}/model/checkpoint_2'",
    f"INFER_OUTPUT_DIR='{trained}/infer'",
    "infer.mode='predict_with_aux'",
    "utils.RestoreCheckpointConfig.dtype='float32'",
    'utils.DatasetConfig.batch_size=4',
  )
  (path,) = (trained / 'infer').glob('*-00000-of-00001')
  rows = [json.loads(line) for line in path.read_text('utf-8').splitlines()]
  assert len(rows) == 6
  params, config, _ = checkpoints.load(str(trained / 'model' / 'checkpoint_2'))
  (vocabulary,) = (trained / 'runs/embedded_corpus').glob('*.model')
  vocabulary = tokenizer.SentencePieceTokenizer(vocabulary)
  texts = [row['inputs']['inputs_pretokenized'] for row in rows]
  inputs = np.zeros((6, 26), np.int32)
  for row, text in zip(inputs, texts, strict=True):
    tokens = [*vocabulary.encode(text), 1]
    row[: len(tokens)] = tokens
  result = decoding.generate(
    model.as_layered_decoder(config),
    params,
    inputs,
    policy=decoding.ComputePolicy(
      exit_rule=exits.ConfidenceExit(exits.StateSimilarity(), THRESHOLD)
    ),
    max_length=18,
  )
  found = np.array([row['aux']['exit_layers'] for row in rows])
  np.testing.assert_array_equal(found, result.exit_layers)
  assert len(np.unique(found[found > 0])) > 1
