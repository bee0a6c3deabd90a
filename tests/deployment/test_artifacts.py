"""Exported decoders: they say what `generate` says, or are refused."""

import dataclasses
import datetime
import functools
import json
import shutil

import jax
import numpy as np
import pytest
from cases.training_cases import CONFIG
from fakes import toy_decoder as toy

from calm_jax import decoding, deployment, exits, model, records
from calm_jax.deployment import compatibility_window, programs
from calm_jax.draft_heads import DraftHead

MARGIN = decoding.ComputePolicy(
  exit_rule=exits.ConfidenceExit(
    measure=exits.SoftmaxMargin(),
    threshold=exits.DecayingThreshold(0.5, temperature=4.0, max_length=6),
  )
)
TOY_SPEC = deployment.ProgramSpec(
  source_length=3,
  max_length=4,
  eos_id=-1,
  policy=decoding.ComputePolicy(
    exit_rule=exits.ConfidenceExit(exits.SoftmaxMargin(), 0.9)
  ),
)
LOOP = decoding.WhileDepthLoop()
CERTIFICATE = {'threshold': 0.6}


def toy_bound(params=None):
  params = toy.toy_params() if params is None else params
  return decoding.bind(toy.toy_decoder(), params, depth_loop=LOOP)


def export_toy(path, spec=TOY_SPEC, **options):
  deployment.export_artifact(toy_bound(), path, spec, **options)
  return path


@pytest.fixture(scope='module')
def toy_path(tmp_path_factory):
  path = tmp_path_factory.mktemp('toy') / 'artifact'
  return export_toy(path, certificate=CERTIFICATE)


@pytest.fixture(scope='module')
def toy_exported(toy_path):
  return deployment.load_artifact(toy_path)


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
  """A T5, its artifact read back, and what it was made of."""
  spec = deployment.ProgramSpec(source_length=5, max_length=6, policy=MARGIN)
  params = model.init_params(CONFIG, jax.random.key(3))
  # Random weights are never sure; larger ones are, of some tokens.
  params['decoder']['logits_dense']['kernel'] *= 6.0
  bound = decoding.bind(
    model.as_layered_decoder(CONFIG), params, depth_loop=LOOP
  )
  path = tmp_path_factory.mktemp('tiny') / 'artifact'
  deployment.export_artifact(bound, path, spec)
  return deployment.load_artifact(path), bound, spec


# Batches of 1 and 2 are also those of tests/cli/test_export.py.
@pytest.mark.parametrize(
  'batch_size', [3, pytest.param(1, marks=pytest.mark.slow)]
)
def test_the_program_says_what_generate_says(tiny, batch_size):
  exported, bound, spec = tiny
  random = np.random.default_rng(batch_size)
  inputs = random.integers(2, 16, (batch_size, 5))
  inputs[0, 3:] = 0
  depths = {}
  for threshold in (1.0, 0.3, 0.0):
    found = exported(inputs, threshold=threshold)
    wanted = decoding.generate(
      bound,
      inputs,
      policy=decoding.with_setting(MARGIN, threshold),
      max_length=spec.max_length,
    )
    for name in ('tokens', 'exit_layers', 'lengths'):
      np.testing.assert_array_equal(found[name], getattr(wanted, name))
    for name in ('confidences', 'scores'):
      np.testing.assert_allclose(
        found[name], getattr(wanted, name), rtol=1e-5, atol=1e-6
      )
    layers = found['exit_layers']
    depths[threshold] = layers[layers > 0].mean()
  # The threshold reaches the program.
  assert 1 <= depths[0.0] < depths[1.0] == 2


@pytest.mark.slow
@pytest.mark.parametrize(
  'verification', [decoding.NeverVerify(), decoding.VerifyEvery(2)]
)
def test_exact_and_checked_outputs_are_exported_too(tmp_path, verification):
  """One program for all batch sizes: no length of an array in it."""
  policy = dataclasses.replace(
    TOY_SPEC.policy,
    cache_fill=decoding.CatchUp((1, 2)),
    verification=verification,
  )
  spec = dataclasses.replace(TOY_SPEC, policy=policy, max_length=8)
  exported = deployment.load_artifact(export_toy(tmp_path / 'artifact', spec))
  inputs = np.array([[1, 2], [2, 0], [3, 1]])
  for threshold in (1.0, 0.62, 0.0):
    found = exported(inputs, threshold=threshold)
    wanted = decoding.generate(
      toy_bound(),
      np.pad(inputs, ((0, 0), (0, 1))),
      policy=decoding.with_setting(policy, threshold),
      max_length=8,
      eos_id=-1,
    )
    for name in ('tokens', 'exit_layers', 'lengths'):
      np.testing.assert_array_equal(found[name], getattr(wanted, name))
  full = exported(inputs, threshold=1.0)['tokens']
  same = (found['tokens'] == full).all()
  assert same == policy.verifies


@pytest.mark.slow
def test_drafts_of_a_head_are_exported_too(tmp_path):
  """The weights of the head are in the artifact."""
  rng = np.random.default_rng(0)
  shapes = ((3, 2, 4), (4,), (4, 2))
  head = DraftHead(*(rng.normal(size=shape) for shape in shapes))
  policy = decoding.ComputePolicy(
    cache_fill=decoding.CatchUp((1, 2)),
    verification=decoding.DraftAhead(head, decoding.VerifyEvery(2)),
  )
  spec = dataclasses.replace(TOY_SPEC, policy=policy, max_length=8)
  exported = deployment.load_artifact(export_toy(tmp_path / 'artifact', spec))
  inputs = np.array([[1, 2], [2, 0], [3, 1]])
  full = decoding.generate(
    toy_bound(), np.pad(inputs, ((0, 0), (0, 1))), max_length=8, eos_id=-1
  )
  for name in ('tokens', 'exit_layers', 'lengths'):
    np.testing.assert_array_equal(exported(inputs)[name], getattr(full, name))


def test_answers_worked_out_by_hand(toy_exported):
  """The certified threshold 0.6, and others, on rows of ease 1 and 2."""
  inputs = np.array([[1, 2], [2, 0]])
  found = toy_exported(inputs)
  np.testing.assert_array_equal(found['exit_layers'], [[2] * 4, [1] * 4])
  np.testing.assert_array_equal(found['tokens'][1], toy.EXIT_1_TOKENS)
  np.testing.assert_allclose(found['confidences'], 17 / 27, atol=1e-6)
  found = toy_exported(inputs, threshold=1.0)
  np.testing.assert_array_equal(found['tokens'], [toy.FULL_TOKENS] * 2)


def test_the_signature_is_plain_arrays_and_one_program_for_all(toy_exported):
  """So that nobody needs this package to call it."""
  exported = toy_exported.exported
  assert exported.platforms == ('cpu', 'cuda', 'tpu')
  for tree in (exported.in_tree, exported.out_tree):
    types = {type(node) for node in _containers(tree)}
    assert types <= {dict, tuple}
  manifest = toy_exported.manifest
  assert manifest.inputs['tokens'].shape == ('b', 3)
  assert manifest.outputs['confidences'] == records.ArraySpec(
    ('b', 4), 'float32'
  )
  # Of the whole text only the check of the batch size calls out.
  assert 'custom_call @shape_assertion' in exported.mlir_module()
  assert 'custom_call @' not in exported.mlir_module().replace(
    'custom_call @shape_assertion', ''
  )


def _containers(structure):
  """Yields the containers of a tree structure, not its leaves."""
  if structure.node_data() is not None:
    yield structure.node_data()[0]()
  for child in structure.children():
    yield from _containers(child)


def test_parameters_are_arguments():
  """The program does not hold them: it is small, and takes others."""
  large = {'step': np.ones((3,), np.float32), 'other': np.ones((1000, 1000))}
  exported, named = deployment.lower_decoder(toy_bound(large), TOY_SPEC)
  assert sorted(named) == ['other', 'step']
  assert len(exported.serialize()) < 100_000
  arguments = {'tokens': np.array([[1, 0, 0]], np.int32)}
  arguments['threshold'] = np.float32(0)
  one = exported.call(large, arguments)
  two = exported.call({**large, 'step': 2 * large['step']}, arguments)
  assert one['tokens'][0, 0] == 1 and two['tokens'][0, 0] == 2


def test_a_policy_without_a_threshold_takes_none(tmp_path):
  policy = decoding.ComputePolicy(exit_rule=exits.FixedExit(1))
  spec = dataclasses.replace(TOY_SPEC, policy=policy)
  exported = deployment.load_artifact(export_toy(tmp_path / 'a', spec))
  assert sorted(exported.manifest.inputs) == ['tokens']
  found = exported([[1]])
  np.testing.assert_array_equal(found['tokens'], [toy.EXIT_1_TOKENS])
  with pytest.raises(ValueError, match='threshold 0.5 .* policy has none'):
    exported([[1]], threshold=0.5)


@pytest.mark.slow
def test_a_sampler_that_draws_takes_a_seed(tmp_path):
  sampler = decoding.Temperature(3.0)
  spec = dataclasses.replace(TOY_SPEC, sampler=sampler)
  path = export_toy(tmp_path / 'a', spec)
  exported = deployment.load_artifact(path)
  same = deployment.compare_with_decoder(toy_bound(), exported, spec, seed=5)
  assert same.equal and same.num_tokens == 2 * 2 * 4
  draws = {
    tuple(exported([[1]], threshold=1.0, seed=seed)['tokens'][0])
    for seed in range(5)
  }
  assert len(draws) > 1
  with pytest.raises(ValueError, match='give seed=0'):
    exported([[1]], threshold=1.0)
  with pytest.raises(ValueError, match='seed -1 must be a whole number'):
    exported([[1]], threshold=1.0, seed=-1)


def test_another_decoder_is_told_apart(toy_exported):
  """The comparison that the export job makes can fail."""
  other = {'step': 3 * toy.toy_params()['step']}
  compared = deployment.compare_with_decoder(
    toy_bound(other), toy_exported, TOY_SPEC
  )
  assert compared.different_tokens and not compared.equal


@pytest.mark.parametrize(
  'inputs, options, words',
  [
    ([[1, 2, 3, 4]], {}, 'inputs are 4 tokens long, this program takes 3'),
    ([[1, 10]], {}, r'token id 10 in row 0 .* outside \[0, 10\)'),
    ([[1], [-1]], {}, 'token id -1 in row 1'),
    ([[0, 0]], {}, 'row 0 of the inputs is all padding'),
    ([1, 2], {}, r'shape \[2\]'),
    ([[0.5]], {}, 'dtype float64'),
    ([[1]], {'threshold': 1.5}, r'threshold 1.5 is outside \[0.0, 1.0\]'),
    ([[1]], {'threshold': float('nan')}, 'threshold nan is outside'),
    ([[1]], {'threshold': 'high'}, "threshold 'high' is not a number"),
    ([[1]], {'seed': 3}, 'seed 3 was given, .* draws nothing'),
  ],
)
def test_bad_values_are_named(toy_exported, inputs, options, words):
  with pytest.raises(ValueError, match=words):
    toy_exported(inputs, **options)


def test_without_a_certificate_the_threshold_must_be_given(tiny):
  with pytest.raises(ValueError, match=r'threshold=1\.0 \(the full model\)'):
    tiny[0]([[2, 3]])


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'platforms': ('cpu', 'gpu')}, "'gpu'.* is 'cuda' or 'rocm'"),
    ({'platforms': ()}, 'platforms .* give one or more'),
    ({'source_length': 0}, 'source_length 0 must be'),
    ({'max_length': 2.5}, 'max_length 2.5 must be'),
    ({'eos_id': 10}, 'eos_id 10 must be'),
  ],
)
def test_what_cannot_be_exported_is_named(tmp_path, changes, words):
  spec = dataclasses.replace(TOY_SPEC, **changes)
  with pytest.raises(ValueError, match=words):
    export_toy(tmp_path / 'a', spec)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  'loop', [decoding.ShrinkingBatch(smallest=2), decoding.CompactingDepthLoop()]
)
def test_depth_loops_for_one_size_are_not_exported(tmp_path, loop):
  bound = dataclasses.replace(toy_bound(toy.toy_params()), depth_loop=loop)
  with pytest.raises(ValueError, match=r'bind with decoding\.WhileDepthLoop'):
    deployment.export_artifact(bound, tmp_path / 'a', TOY_SPEC)
  assert not list(tmp_path.iterdir())


def test_parameters_that_cannot_be_stored_are_named(tmp_path):
  params = {**toy.toy_params(), 'ids': np.arange(3)}
  with pytest.raises(ValueError, match='parameter ids has dtype int'):
    deployment.export_artifact(toy_bound(params), tmp_path / 'a', TOY_SPEC)
  # Nothing that looks finished, or takes place, is left.
  assert not list(tmp_path.iterdir())


def test_an_artifact_is_not_overwritten(toy_path):
  with pytest.raises(FileExistsError, match='is there already'):
    export_toy(toy_path)


def test_names_must_not_collide():
  with pytest.raises(ValueError, match='same name'):
    programs.named_leaves({'a/b': np.ones(1), 'a': {'b': np.ones(1)}})


@pytest.fixture
def copy(toy_path, tmp_path):
  return shutil.copytree(toy_path, tmp_path / 'copy')


@pytest.mark.parametrize(
  'name', ['program.jax_export', 'parameters.safetensors']
)
def test_damaged_files_are_refused(copy, name):
  whole = (copy / name).read_bytes()
  (copy / name).write_bytes(whole[:-1])
  with pytest.raises(ValueError, match=f'{name} has .* bytes, .* is cut'):
    deployment.load_artifact(copy)
  (copy / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
  with pytest.raises(ValueError, match=f'{name} has SHA-256'):
    deployment.load_artifact(copy)
  (copy / name).unlink()
  with pytest.raises(FileNotFoundError, match=f'{name} is missing'):
    deployment.load_artifact(copy)


def test_files_of_another_artifact_are_refused(copy, tmp_path):
  spec = dataclasses.replace(TOY_SPEC, max_length=5)
  other = export_toy(tmp_path / 'other', spec)
  shutil.copy(other / 'program.jax_export', copy)
  with pytest.raises(ValueError, match='of another artifact'):
    deployment.load_artifact(copy)


def test_an_edited_manifest_is_refused(copy):
  path = copy / 'manifest.json'
  manifest = json.loads(path.read_text())
  assert manifest['certificate'] == CERTIFICATE
  manifest['certificate']['threshold'] = 0.1
  path.write_text(json.dumps(manifest))
  with pytest.raises(ValueError, match='it was edited or damaged'):
    deployment.load_artifact(copy)
  path.write_text('{}')
  with pytest.raises(ValueError, match='is not the manifest'):
    deployment.load_artifact(copy)
  path.unlink()
  with pytest.raises(FileNotFoundError, match='calm_jax.cli.export writes one'):
    deployment.load_artifact(copy)


def rewrite(copy, **changes):
  """Writes the manifest anew, as another version of this package might."""
  manifest = records.read_export_manifest(copy)
  records.write_export_manifest(copy, dataclasses.replace(manifest, **changes))


def test_another_jax_is_named(copy):
  rewrite(copy, calling_convention=99, versions={'jax': '9.9'})
  with pytest.raises(
    ValueError, match=r'by jax 9\.9, .* not 99; .* install the jax that wrote'
  ):
    deployment.load_artifact(copy)


def test_a_program_that_this_jax_cannot_parse_is_named(copy):
  """What an older jax meets, whose StableHLO lacks something."""
  path = copy / 'program.jax_export'
  exported = jax.export.deserialize(bytearray(path.read_bytes()))
  newer = dataclasses.replace(
    exported, mlir_module_serialized=b'ML\xefR' + bytes(100)
  )
  path.write_bytes(newer.serialize())
  rewrite_program(copy)
  with pytest.raises(ValueError, match='cannot read it .* install the jax'):
    deployment.load_artifact(copy)


def rewrite_program(copy):
  content = json.loads((copy / 'manifest.json').read_text())
  del content['checksum'], content['format']
  manifest = records.from_jsonable(records.ExportManifest, content)
  manifest = dataclasses.replace(
    manifest, program=records.describe_file(copy / 'program.jax_export')
  )
  records.write_export_manifest(copy, manifest)


def test_another_platform_is_named(tmp_path):
  spec = dataclasses.replace(TOY_SPEC, platforms=('tpu',))
  path = export_toy(tmp_path / 'a', spec)
  with pytest.raises(ValueError, match='for tpu, this process runs on cpu'):
    deployment.load_artifact(path)


def test_a_program_past_its_window_is_told_of(tmp_path, monkeypatch):
  day = datetime.date
  for written, end in (
    (day(2027, 1, 31), day(2027, 7, 31)),
    (day(2027, 8, 31), day(2028, 3, 2)),
    (day(2027, 12, 5), day(2028, 6, 5)),
  ):
    assert compatibility_window.end_of_window('9.9', written) == end
  versions, created = {'jax': '0.10.2'}, '2026-11-29T08:00:00+00:00'
  past = functools.partial(compatibility_window.past_window, versions, created)
  monkeypatch.setattr(jax, '__version__', '0.12.0')
  assert past(today=day(2026, 12, 17)) is None
  assert 'until 2026-12-17' in past(today=day(2026, 12, 18))
  monkeypatch.setattr(jax, '__version__', '0.10.2')
  assert past(today=day(2030, 1, 1)) is None


def test_a_manifest_holds_the_end_of_the_window(toy_path, monkeypatch):
  manifest = records.read_export_manifest(toy_path)
  _, end = compatibility_window.window_of(manifest.versions, manifest.created)
  assert manifest.window_ends == end.isoformat()
  monkeypatch.setattr(compatibility_window, 'past_window', lambda *_: 'too old')
  with pytest.warns(UserWarning, match='artifact: too old'):
    deployment.load_artifact(toy_path)
