"""Certificates give back the policy that they were made for."""

import dataclasses
import pathlib
import shutil

import jax
import numpy as np
import pytest
from cases import text_cases

from calm_jax import checkpoints, decoding, exits, model, runs
from calm_jax.calibration import calibrate
from calm_jax.calibration.certificate import Certificate
from calm_jax.checkpoints import classifiers, gate_adapters, trained_parts
from calm_jax.exit_adapters import ExitAdapters
from calm_jax.exit_layers import ExitLayers

STORED = pathlib.Path(__file__).with_name('stored_certificate.json')
DECAYING = exits.DecayingThreshold(1.0, temperature=4.0, max_length=6)
MARGIN = exits.ConfidenceExit(
  exits.SoftmaxMargin(), DECAYING, minimum_exit_layer=2
)
WEIGHTS = {
  'kernel': np.linspace(-1, 1, 16, dtype=np.float32),
  'bias': np.float32(0.25),
}
ADAPTERS = {
  'scale': np.linspace(0.5, 1.5, 16, dtype=np.float32)[None],
  'down': np.linspace(-1, 1, 32, dtype=np.float32).reshape(1, 16, 2),
  'up': np.linspace(1, -1, 32, dtype=np.float32).reshape(1, 2, 16),
}
LAYERS = {
  'scale': ADAPTERS['scale'],
  'gates': np.linspace(-1, 1, 96, dtype=np.float32).reshape(1, 16, 2, 3),
  'out': np.linspace(1, -1, 48, dtype=np.float32).reshape(1, 3, 16),
}
GATE = {
  'layer_bias': np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4),
  'bias': np.ones(1, np.float32),
  'out': np.ones((1, 4), np.float32),
  'state': np.ones((1, 16, 4), np.float32),
}


def with_rule(rule, **slots):
  return decoding.ComputePolicy(exit_rule=rule, **slots)


def with_measure(measure, threshold=DECAYING, **options):
  return with_rule(exits.ConfidenceExit(measure, threshold, **options))


POLICIES = {
  'margin': with_rule(MARGIN),
  'maximum': with_measure(
    exits.SoftmaxMaximum(), exits.ConstantThreshold(1.0), interval=2
  ),
  'similarity': with_measure(exits.StateSimilarity(), 1.0),
  'release decay': with_measure(
    exits.SoftmaxMargin(),
    exits.ReleaseDecayThreshold(1.0, temperature=4.0, max_length=6),
  ),
  'classifier': with_measure(exits.Classifier(**WEIGHTS)),
  'gate': with_measure(exits.Gate(**GATE)),
  'tempered': with_measure(
    exits.Tempered(exits.SoftmaxMargin(), (1.5, 1.25, 1.0))
  ),
  'quantile': with_rule(
    exits.QuantileExit(exits.Gate(**GATE), 1.0, interval=2),
    cache_fill=decoding.CatchUp((1, 2)),
  ),
  'budget': with_rule(exits.LayerBudget(MARGIN, per_request=64, per_token=7)),
  'pruned': with_rule(
    MARGIN, readout=decoding.PrunedVocabulary(num_blocks=3, final='full')
  ),
  'streamed': with_rule(MARGIN, readout=decoding.StreamedVocabulary()),
  'first exit': with_rule(MARGIN, cache_fill=decoding.ProjectFirstExitState()),
  'deferred': with_rule(MARGIN, cache_fill=decoding.DeferredExitState()),
  'exact': with_rule(MARGIN, cache_fill=decoding.CatchUp((2, 8))),
  'adapted': with_rule(
    MARGIN,
    readout=decoding.AdaptedVocabulary(ExitAdapters(**ADAPTERS)),
    cache_fill=decoding.CatchUp(),
  ),
  'adapted and pruned': with_rule(
    MARGIN,
    readout=decoding.AdaptedVocabulary(
      ExitAdapters(**ADAPTERS), decoding.PrunedVocabulary(num_blocks=3)
    ),
  ),
  'exit layers': with_rule(
    MARGIN, readout=decoding.AdaptedVocabulary(ExitLayers(**LAYERS))
  ),
  'adapted gate': with_rule(
    exits.ConfidenceExit(exits.Gate(**GATE), DECAYING),
    readout=decoding.AdaptedVocabulary(ExitAdapters(**ADAPTERS)),
    cache_fill=decoding.CatchUp(),
  ),
  'lossless': with_rule(
    MARGIN,
    cache_fill=decoding.CatchUp(),
    verification=decoding.VerifyEvery(5, stop_below=0.25),
  ),
  'two exits': with_rule(
    exits.ConfidenceExit(
      exits.SoftmaxMargin(),
      exits.ConstantThreshold(1.0),
      minimum_exit_layer=2,
      interval=1000,
    ),
    cache_fill=decoding.CatchUp(),
  ),
  'a plan': decoding.ComputePolicy(
    layer_plan=decoding.SkipSaturatedFeedForward(1.0, measure='update')
  ),
  'all at once': with_rule(
    exits.LayerBudget(
      exits.ConfidenceExit(exits.Classifier(**WEIGHTS), DECAYING), 64
    ),
    readout=decoding.PrunedVocabulary(num_blocks=3),
    cache_fill=decoding.DeferredExitState(),
  ),
}


@pytest.fixture(scope='module')
def run_dir(tmp_path_factory):
  """A run with a classifier, a gate and exit adapters."""
  folder = text_cases.save_run(tmp_path_factory.mktemp('run'))
  config = text_cases.CONFIG
  params = model.init_params(config, jax.random.key(0))
  classifiers.save_classifier(
    folder,
    WEIGHTS,
    config,
    backbone=checkpoints.parameter_fingerprint(params),
  )
  for name, arrays in (('exit_adapters', ADAPTERS), ('layers', LAYERS)):
    checkpoints.save(
      pathlib.Path(folder) / name,
      1,
      params={'exit_adapters': arrays},
      config=config,
      context=trained_parts.backbone_context(params),
    )
  checkpoints.save(
    pathlib.Path(folder) / 'gate',
    1,
    params={'gate': GATE},
    config=config,
    # Trained beside the adapters, which certificates look up by themselves.
    context={
      **trained_parts.backbone_context(params),
      **gate_adapters.adapters_context(ExitAdapters(**ADAPTERS)),
    },
  )
  return folder


def certify(policy, *, losses=0.0, settings=(0.5,), context=None):
  return calibrate(
    np.full((200, len(settings)), losses),
    settings,
    tolerance=0.1,
    error_rate=0.05,
    context=context or {'policy': decoding.describe(policy)},
  )


def assert_equal_policies(found, expected):
  assert decoding.describe(found) == decoding.describe(expected)
  leaves = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
  for one, other in leaves:
    np.testing.assert_array_equal(one, other)
  assert jax.tree.structure(found) == jax.tree.structure(expected)


@pytest.mark.parametrize('name', POLICIES)
def test_there_and_back(run_dir, tmp_path, name):
  policy = POLICIES[name]
  path = tmp_path / 'certificate.json'
  certify(policy).save(path)
  found = runs.policy_of(Certificate.load(path), run_dir)
  assert_equal_policies(found, decoding.with_setting(policy, 0.5))


@pytest.mark.parametrize(
  ('slot', 'path', 'numbers'),
  [
    ({'exit_rule': exits.PatienceExit(9)}, 'exit_rule.patience', (3, 1)),
    (
      {'layer_plan': decoding.KeepLayers(4)},
      'layer_plan.num_layers',
      (3, 2),
    ),
    (
      {'layer_plan': decoding.SkipDecode(4, 4)},
      'layer_plan.min_layers',
      (3, 2),
    ),
  ],
)
def test_whole_numbers_are_certified(run_dir, slot, path, numbers):
  settings = tuple({path: number} for number in numbers)
  policy = decoding.ComputePolicy(**slot)
  certificate = certify(
    policy,
    losses=np.zeros((200, 2)),
    settings=settings,
    context={'policy': decoding.describe(policy, settings[0])},
  )
  found = runs.policy_of(certificate, run_dir)
  assert found == decoding.with_setting(policy, settings[-1])


def test_the_policy_of_what_was_certified_can_be_applied(run_dir):
  """Threshold and guarantee are the certificate's, also where it has none."""
  loaded = runs.load_run(run_dir)
  made_for = dict(params=loaded.params, tokenizer=loaded.tokenizer)
  for losses, expected in (
    (0.0, decoding.with_setting(POLICIES['classifier'], 0.5)),
    (0.9, decoding.ComputePolicy()),
  ):
    certificate = certify(
      POLICIES['classifier'],
      losses=losses,
      context=runs.decoding_context(POLICIES['classifier'], **made_for).write(),
    )
    policy = runs.policy_of(certificate, run_dir)
    applied = runs.apply_certificate(
      certificate, policy, runs.decoding_context(**made_for)
    )
    assert_equal_policies(applied, expected)


def test_at_one_in_8_bits_the_policy_stays_what_was_certified(run_dir):
  """In float that is the full model, of which it would be another one."""
  loaded = runs.load_run(run_dir)
  made_for = dict(params=loaded.params, tokenizer=loaded.tokenizer)
  policy = POLICIES['classifier']
  for weights, expected in (
    ('float', decoding.ComputePolicy()),
    ({'type': 'int8'}, decoding.with_setting(policy, 1.0)),
  ):
    context = runs.decoding_context(policy, weights=weights, **made_for)
    certificate = certify(
      policy, settings=(1.0,), losses=0.0, context=context.write()
    )
    applied = runs.apply_certificate(certificate, policy, context)
    assert_equal_policies(applied, expected)
    runs.check_covered(certificate, applied, context)


def test_other_adapters_make_another_policy(run_dir):
  """They are compared whole, as all of a policy, and refused by what differs.

  Where they are in place of none, or the other way round, too.
  """
  loaded = runs.load_run(run_dir)
  made_for = dict(params=loaded.params, tokenizer=loaded.tokenizer)
  policy = POLICIES['adapted']
  context = runs.decoding_context(policy, **made_for)
  certificate = certify(policy, context=context.write())
  found = runs.apply_certificate(certificate, policy, context)
  assert_equal_policies(found, decoding.with_setting(policy, 0.5))
  other = ExitAdapters(**{**ADAPTERS, 'up': ADAPTERS['up'] + 1e-6})
  of_other = dataclasses.replace(
    policy, readout=decoding.AdaptedVocabulary(other)
  )
  plain = dataclasses.replace(policy, readout=decoding.FullVocabulary())
  for given, words in (
    (of_other, r'policy\.readout\.adapters\.up: certified for .*sha256'),
    (plain, r'policy\.readout: certified for .*AdaptedVocabulary'),
  ):
    with pytest.raises(ValueError, match=words):
      runs.apply_certificate(certificate, given, context)
    with pytest.raises(ValueError, match='does not hold for this policy'):
      runs.check_covered(
        certificate, decoding.with_setting(given, 0.5), context
      )


def test_a_certificate_that_was_stored_gives_its_policy():
  certificate = Certificate.load(STORED)
  assert certificate.threshold == 0.8
  rule = exits.ConfidenceExit(
    exits.SoftmaxMargin(),
    exits.DecayingThreshold(0.8, temperature=4.0, max_length=64),
    minimum_exit_layer=2,
  )
  assert runs.policy_of(certificate, 'nowhere') == decoding.ComputePolicy(
    exit_rule=exits.LayerBudget(rule, per_request=256),
    readout=decoding.PrunedVocabulary(num_blocks=32, final='full'),
  )


def test_a_part_is_found_by_its_weights_and_not_by_its_folder(
  run_dir, tmp_path
):
  folder = tmp_path / 'run'
  shutil.copytree(run_dir, folder)
  other = {**GATE, 'bias': np.full(1, 3.0, np.float32)}
  config = text_cases.CONFIG
  backbone = trained_parts.backbone_context(
    model.init_params(config, jax.random.key(0))
  )
  checkpoints.save(
    folder / 'seed_2',
    1,
    params={'gate': other},
    config=config,
    context=backbone,
  )
  for weights in (GATE, other):
    policy = with_measure(exits.Gate(**weights))
    found = runs.policy_of(certify(policy), folder)
    np.testing.assert_array_equal(found.exit_rule.measure.bias, weights['bias'])
  assert {'gate', 'seed_2'} <= set(trained_parts.part_folders(folder))


@dataclasses.dataclass(frozen=True)
class Unheard:
  """A measure of somebody else's."""

  strength: float = 1.0


def test_what_cannot_be_made_again_is_refused(run_dir, tmp_path):
  others = exits.Classifier(kernel=np.ones(16, np.float32), bias=0.0)
  per_row = exits.LayerBudget(MARGIN, np.full(3, 20))
  for policy in (
    with_measure(Unheard()),
    with_measure(others),
    with_rule(
      MARGIN,
      readout=decoding.AdaptedVocabulary(ExitAdapters(ADAPTERS['scale'])),
    ),
    with_rule(per_row),
  ):
    with pytest.raises(ValueError, match='cannot be made again from .*Give'):
      runs.policy_of(certify(policy), run_dir)
  bare = text_cases.save_run(tmp_path / 'bare')
  with pytest.raises(FileNotFoundError, match='no set of exit adapters in'):
    runs.policy_of(certify(POLICIES['adapted']), bare)
  for name in ('classifier', 'gate'):
    with pytest.raises(FileNotFoundError, match=f'no {name} in'):
      runs.policy_of(certify(POLICIES[name]), bare)
  with pytest.raises(FileNotFoundError, match='no checkpoint at'):
    runs.policy_of(certify(POLICIES['gate']), tmp_path)
  nameless = dataclasses.replace(certify(POLICIES['margin']), context={})
  with pytest.raises(ValueError, match='does not say which policy'):
    runs.policy_of(nameless, run_dir)
  blocks = certify(POLICIES['pruned'], settings=({'num_blocks': 3},))
  with pytest.raises(ValueError, match='ComputePolicy has no such field'):
    runs.policy_of(blocks, run_dir)
