"""The tune job: a run, a space in gin, what is written, and who takes it."""

import dataclasses
import pathlib
import shutil

import pytest
from fakes.counting_task import bindings_of
from fakes.told_clock import time_decode_like

pytest.importorskip('gin')
pytest.importorskip('seqio', reason='the jobs read seqio Tasks')
pytest.importorskip('matplotlib')
pytest.importorskip('jinja2')

from cases.job_cases import call

import calm_jax
from calm_jax import decoding, exits, pipeline, records, runs
from calm_jax.calibration.certificate import Certificate
from calm_jax.cli import validate
from calm_jax.evaluation import tuning_clock

_SPACE = """
from __gin__ import dynamic_registration
from calm_jax import evaluation
SPACE = (@calm/evaluation.Candidates(), {more})
THRESHOLDS = (0.6, 0.2)
lossless/evaluation.Candidates.settings = (0.5,)
"""


def tune(files, folder, more='', **bindings):
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'space.gin').write_text(_SPACE.format(more=more), encoding='utf-8')
  return call(
    'tune',
    [
      'runs/tune.gin',
      'spaces/margins.gin',
      str(folder / 'space.gin'),
      files['task'],
    ],
    **bindings_of(files),
    **{
      'TOLERANCE': 0.5,
      'evaluation.BatchLayout.batch_size': 26,
      'evaluation.TuningPlan.timed_batches': 1,
      'evaluation.TuningPlan.repeats': 1,
      **bindings,
    },
  )


@pytest.fixture(scope='module')
def tuned(calibrated, tmp_path_factory):
  """A run of the module, tuned by a clock that is told, and the result."""
  told = {'calm, threshold 0.2': 5.0, 'calm, threshold 0.6': 7.0}
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(tuning_clock, 'time_decode', time_decode_like(told))
    found = tune(calibrated, tmp_path_factory.mktemp('space'))
  return calibrated, found


def test_all_of_it_is_written(tuned):
  files, tuning = tuned
  folder = pathlib.Path(files['MODEL_DIR']) / 'tuned'
  read = runs.read_tuning(files['MODEL_DIR'])
  assert records.to_jsonable(read) == records.to_jsonable(tuning)
  assert [one.label for one in tuning.candidates] == [
    'calm, threshold 0.2',
    'calm, threshold 0.6',
  ]
  for one in tuning.candidates:
    assert one.speed_up == pytest.approx(
      tuning.full_milliseconds / one.milliseconds
    )
  page = (folder / 'tuned.html').read_text(encoding='utf-8')
  assert tuning.sentence.split(',')[0].split(':')[0] in page
  assert (folder / 'front.png').stat().st_size > 1000
  screened = records.read_loss_table(folder / 'screening_table.npz')
  tested = records.read_loss_table(folder / 'loss_table.npz')
  assert screened.num_examples + tested.num_examples > 100
  assert not {*screened.example_ids} & {*tested.example_ids}
  (use,) = [
    records.read_record(path, records.RowUse)
    for path in (folder.parent / records.ROW_USES_NAME).glob('*.json')
    if 'tuning' in path.read_text(encoding='utf-8')
  ]
  assert len(use.settings) == len(tuning.sequence) > 0


def test_what_was_chosen_decodes(tuned):
  files, tuning = tuned
  generator = calm_jax.load(files['MODEL_DIR'], certificate='tuned')
  (text,) = generator.generate(['one two three'])
  choice = tuning.choice
  assert choice.label == 'calm, threshold 0.2'
  assert generator.certificate.setting == choice.setting
  assert decoding.describe(generator.policy, {}) == choice.described
  assert text.certified


def test_it_is_served_in_the_depth_loop_that_was_the_fastest(
  calibrated, tmp_path, monkeypatch
):
  run = tmp_path / 'run'
  shutil.copytree(calibrated['MODEL_DIR'], run)
  shutil.rmtree(run / 'tuned', ignore_errors=True)
  timed = time_decode_like(
    {'calm, threshold 0.2': 5.0, 'calm, threshold 0.6': 7.0}
  )

  def time_decode(bound, batches, policies, **options):
    assert [*bound] == ['unrolled', 'shrinking']
    return tuple(
      dataclasses.replace(row, depth_loop='shrinking')
      for row in timed(bound, batches, policies, **options)
    )

  monkeypatch.setattr(tuning_clock, 'time_decode', time_decode)
  tuning = tune(
    {**calibrated, 'MODEL_DIR': str(run)},
    tmp_path,
    BATCH_SIZE=4,
    DEPTH_LOOPS=('unrolled', 'shrinking'),
  )
  assert tuning.depth_loop == 'shrinking'
  assert "in the depth loop 'shrinking'" in tuning.sentence
  found = runs.tuned_depth_loop(run)
  assert found == decoding.ShrinkingBatch()
  generator = calm_jax.load(run, certificate='tuned')
  assert generator.bound.depth_loop == found
  # What the certificate was made with is what serves it.
  assert not any('depth' in line for line in generator.cautions)
  bound = []

  def load(*arguments, depth_loop, **options):
    bound.append(depth_loop)
    return generator

  monkeypatch.setattr(pipeline, 'load', load)
  call(
    'generate',
    ['runs/generate.gin', 'policies/tuned.gin'],
    MODEL_DIR=str(run),
    INPUTS=['one two three'],
  )
  assert bound == [found]


def test_jobs_take_it(tuned):
  files, _ = tuned
  (text,) = call(
    'generate',
    ['runs/generate.gin', 'policies/tuned.gin'],
    MODEL_DIR=files['MODEL_DIR'],
    INPUTS=['one two three'],
  )
  assert text.certified and max(text.exit_layers) <= 3
  with pytest.raises(
    FileNotFoundError, match=r'tune writes it when it is done'
  ):
    runs.load_tuned_policy(files['MODEL_DIR'], tuned='elsewhere')


def test_its_promises_are_counted_on_draws(tuned, tmp_path, capsys):
  folder = str(pathlib.Path(tuned[0]['MODEL_DIR']) / 'tuned')
  found = validate.run_tuned(folder, num_draws=40, output_dir=str(tmp_path))
  first, *near = found.counts
  assert (first.near_setting, first.num_draws) == (None, 40)
  assert first.draw_size == 122 and first.num_certified == 40
  assert {one.near_setting['policy'] for one in near} <= {'calm'}
  said = capsys.readouterr().out
  assert '40 tunings break it' in said and 'policies by hand' in said
  by_hand = found.by_hand
  assert by_hand.num_draws == 40 and by_hand.tuned_certified == 1.0
  assert by_hand.tuned_speed_up >= by_hand.least_speed_up >= 1.0
  text = (tmp_path / 'validation.md').read_text(encoding='utf-8')
  assert 'as promised' in text and 'calibrated by hand' in text
  with pytest.raises(FileNotFoundError, match='a folder that calm_jax'):
    validate.run_tuned(str(tmp_path / 'nowhere'), num_draws=3)


def test_started_again_it_decodes_nothing(tuned, tmp_path, monkeypatch, capsys):
  files, tuning = tuned

  def refuse(*arguments, **keywords):
    raise AssertionError('decoded again')

  monkeypatch.setattr(decoding, 'generate', refuse)
  again = tune(files, tmp_path)
  # Encoder layers that nobody counted are nan, which equals nothing.
  assert repr(again.candidates) == repr(tuning.candidates)
  assert again.sentence == tuning.sentence
  assert 'were screened before' in capsys.readouterr().out


def test_bad_configurations_are_refused(trained, tmp_path):
  for bindings, message in (
    ({'evaluation.BatchLayout.weights': 'int8'}, 'each policy of the space'),
    ({'tune.run.split': 'validation'}, "use 'calibration'"),
    ({'TOLERANCE': 1.5}, r'tolerance 1\.5'),
    ({'SPACE': ()}, 'the space is empty'),
    ({'calm/evaluation.Candidates.settings': (0.1, 0.5)}, 'out of order'),
  ):
    with pytest.raises(ValueError, match=message):
      tune(trained, tmp_path, **bindings)


@pytest.mark.slow
def test_a_lossless_choice_needs_no_certificate(tuned, tmp_path):
  """And the full model neither, nor one that nothing was certified of."""
  files, tuning = tuned
  run = tmp_path / 'run'
  shutil.copytree(files['MODEL_DIR'], run)
  lossless = decoding.ComputePolicy(
    exit_rule=exits.ConfidenceExit(exits.SoftmaxMargin(), 0.5),
    cache_fill=decoding.CatchUp(),
    verification=decoding.VerifyEvery(3),
  )
  drafts = records.TunedCandidate(
    policy='drafts',
    setting=0.5,
    described=decoding.describe(lossless, {}),
    lossless=True,
    milliseconds=1.0,
  )
  path = run / 'tuned' / records.TUNED_NAME
  content = records.to_jsonable(tuning)
  write = dict(content, certificate=None, chosen=0)
  write['candidates'] = records.to_jsonable([drafts])
  records.write_json(path, write)
  generator = calm_jax.load(run, certificate='tuned')
  assert generator.policy.verifies and generator.certificate is None
  assert decoding.describe(generator.policy, {}) == drafts.described
  records.write_json(path, dict(write, chosen=None))
  full = calm_jax.load(run, certificate='tuned')
  assert full.policy == decoding.ComputePolicy() and full.certificate is None
  texts = [one.generate(['one two three'])[0].text for one in (generator, full)]
  assert texts[0] == texts[1]


@pytest.mark.slow
def test_the_shipped_space_is_tuned(calibrated, tmp_path):
  tuning = tune(
    calibrated,
    tmp_path / 'all',
    more='@exact/evaluation.Candidates(), @lossless/evaluation.Candidates()',
    OUTPUT_DIR=str(tmp_path / 'tuned'),
    TOLERANCE=0.1,
    PROMISES=(('textual', 0.9), ('signed', 0.5)),
    BATCH_SIZE=4,
    MINUTES=30.0,
  )
  assert {one.policy for one in tuning.candidates} == {
    'calm',
    'exact',
    'lossless',
  }
  assert [one.loss for one in tuning.promises] == ['textual', 'signed']
  name = tuning.certificate
  if name is not None:
    certificate = Certificate.load(tmp_path / 'tuned' / name)
    assert certificate.certified == (tuning.choice is not None)


@pytest.mark.slow
def test_8_bits_compete(calibrated, tmp_path):
  found = call(
    'tune',
    ['runs/tune.gin', 'spaces/int8.gin', calibrated['task']],
    **bindings_of(calibrated),
    THRESHOLDS=(0.5,),
    TOLERANCE=0.9,
    OUTPUT_DIR=str(tmp_path / 'tuned'),
    DRAFT_LAYERS=1,
    **{
      'evaluation.BatchLayout.batch_size': 26,
      'evaluation.TuningPlan.timed_batches': 1,
    },
  )
  weights = {one.policy: one.weights for one in found.candidates}
  assert weights['calm'] == 'float' != weights['calm_int8']
  assert weights['lossless_int8'] == 'float'
  generator = calm_jax.load(
    calibrated['MODEL_DIR'],
    policy=runs.load_tuned_policy(
      calibrated['MODEL_DIR'], tuned=str(tmp_path / 'tuned')
    ),
    certificate=runs.tuned_certificate(
      calibrated['MODEL_DIR'], tuned=str(tmp_path / 'tuned')
    ),
  )
  assert generator.generate(['one two three'])[0].text
