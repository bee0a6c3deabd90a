"""The train_draft_head job, and the policy that drafts with what it leaves."""

import pathlib

import pytest
from fakes.counting_task import bindings_of

gin = pytest.importorskip('gin')
pytest.importorskip('seqio', reason='the jobs read seqio Tasks')

from cases.job_cases import call

from calm_jax import records, runs


@pytest.mark.slow
def test_a_head_is_trained_for_a_run_and_drafts(trained):
  evaluation = call(
    'train_draft_head',
    ['runs/train_draft_head.gin', trained['task']],
    **bindings_of(trained),
    TRAIN_STEPS=60,
    BATCH_SIZE=32,
    LEARNING_RATE=1e-2,
    DRAFTS=2,
    **{'training.warmup_cosine.warmup_steps': 10},
  )
  run = pathlib.Path(trained['MODEL_DIR'])
  folder = run / 'draft_head'
  # Other numbers would not be loaded: they have another fingerprint.
  assert runs.load_draft_head(run).entry.shape == (4, 32, 32)
  rows = list(records.read_jsonl(folder / 'train_log.jsonl'))
  losses = [row['loss'] for row in rows if row['kind'] == 'train']
  assert losses[-1] < losses[0]
  assert (folder / 'train_draft_head.gin').exists()
  read = records.read_record(
    folder / 'evaluation.json', records.DraftHeadEvaluation
  )
  assert (read.agreements, read.steps) == (evaluation.agreements, 60)
  assert len(read.kept) == len(read.agreements) == 2
  assert all(a >= b for a, b in zip(read.agreements, read.kept, strict=True))
  given = dict(MODEL_DIR=trained['MODEL_DIR'], INPUTS='one two three')

  def decode(policy, **bindings):
    files = ['runs/generate.gin', f'policies/{policy}.gin']
    (output,) = call('generate', files, **given, **bindings)
    return output

  full = decode('softmax_margin', THRESHOLD=1.0)
  assert decode('draft_head').tokens == full.tokens
