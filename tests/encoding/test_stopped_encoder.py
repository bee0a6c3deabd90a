"""Decoding from an encoder that stopped: the slot `encoder_exit`."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import encoding_cases as cases
from fakes import toy_decoder as toy

from calm_jax import (
  decoding,
  deployment,
  encoding,
  exits,
  model,
  sharding,
)
from calm_jax.decoding import starting

T = 5
OPTIONS = dict(max_length=T, eos_id=-1)
WHILE = decoding.WhileDepthLoop()


def bound(depth_loop=WHILE, **options):
  decoder = model.as_layered_decoder(cases.CONFIG)
  return decoding.bind(
    decoder, cases.params(), depth_loop=depth_loop, **options
  )


def stopped(at=None, **options):
  at = cases.threshold() if at is None else at
  return decoding.StoppedEncoder(cases.similar(at), **options)


def policy(at=None, token_rule=None, **slots):
  return decoding.ComputePolicy(
    encoder_exit=stopped(at),
    exit_rule=exits.NeverExit() if token_rule is None else token_rule,
    **slots,
  )


def decode(policy, inputs=None, **options):
  inputs = cases.inputs() if inputs is None else inputs
  options = {**OPTIONS, **options}
  return decoding.generate(bound(), inputs, policy=policy, **options)


MARGIN = exits.ConfidenceExit(exits.SoftmaxMargin(), 0.1)


def test_tokens_are_those_of_the_encoder_that_was_cut():
  """A decode of both exits is the masked reference, on the frozen states."""
  expected, _ = cases.expected_exits(cases.threshold())
  result = decode(policy(token_rule=exits.FixedExit(2)))
  np.testing.assert_array_equal(result.encoder_exit_layers, expected)
  np.testing.assert_array_equal(result.exit_layers, 2)
  tokens = np.asarray(result.tokens)
  shifted = np.pad(tokens, ((0, 0), (1, 0)))[:, :-1]
  ran = np.broadcast_to(np.arange(3) < 2, (cases.B, T, 3))

  @jax.jit
  def reference(params, shifted, exit_layers):
    return model.decode_with_layer_mask(
      cases.CONFIG,
      params,
      jnp.asarray(cases.inputs()),
      shifted,
      jnp.asarray(ran),
      encoder_exit_layers=exit_layers,
    )

  logits = reference(cases.params(), shifted, expected)
  np.testing.assert_array_equal(logits.argmax(axis=-1), tokens)
  whole = reference(cases.params(), shifted, np.full(cases.B, cases.L))
  assert np.abs(np.asarray(whole - logits)).max() > 1e-2


@pytest.mark.slow
def test_the_whole_encoder_and_a_threshold_of_one():
  full = decode(decoding.ComputePolicy())
  assert full.encoder_exit_layers is None
  early = decode(policy())
  programs = starting.encode._cache_size()
  one = decode(policy(1.0))
  assert starting.encode._cache_size() == programs
  np.testing.assert_array_equal(one.tokens, full.tokens)
  np.testing.assert_array_equal(one.encoder_exit_layers, cases.L)
  assert (early.tokens != full.tokens).any()


@pytest.mark.slow
def test_a_request_alone_and_its_samples():
  rule = policy(token_rule=MARGIN)
  result = decode(rule)
  assert len(np.unique(result.exit_layers)) > 1
  for row in (0, 3):
    alone = decode(rule, np.pad(cases.inputs()[row], (0, 2))[None])
    np.testing.assert_array_equal(alone.tokens[0], result.tokens[row])
    np.testing.assert_array_equal(alone.exit_layers[0], result.exit_layers[row])
  layers = np.asarray(result.encoder_exit_layers)
  assert alone.encoder_exit_layers.shape == (1,)
  for options in (
    dict(num_samples=2, sampler=decoding.Temperature(), rng=jax.random.key(0)),
    dict(num_samples=2, sampler=decoding.BeamSearch(3)),
  ):
    several = decode(rule, **options)
    np.testing.assert_array_equal(
      several.encoder_exit_layers, np.stack([layers] * 2, axis=1)
    )


@pytest.mark.slow
def test_queues_meshes_and_buckets():
  rule = policy(token_rule=MARGIN)
  result = decode(rule)
  requests = [[token for token in row if token] for row in cases.inputs()]
  queue = decoding.decode_queue(
    bound(),
    requests,
    num_slots=2,
    source_length=cases.S,
    policy=rule,
    **OPTIONS,
  )
  for number, one in queue:
    np.testing.assert_array_equal(one.tokens, result.tokens[number])
    assert one.encoder_exit_layers == result.encoder_exit_layers[number]
  compacted = dataclasses.replace(
    rule, encoder_exit=stopped(loop=encoding.CompactedLayers())
  )
  devices = jax.devices()[:2]
  mesh = sharding.make_mesh(data=len(devices), devices=devices)
  for other, of in ((compacted, bound()), (rule, bound(mesh=mesh))):
    again = decoding.generate(of, cases.inputs(), policy=other, **OPTIONS)
    np.testing.assert_array_equal(again.tokens, result.tokens)
    np.testing.assert_array_equal(
      again.encoder_exit_layers, result.encoder_exit_layers
    )
  compiled = decoding.compile_decode(
    bound(mesh=mesh),
    batch_size=cases.B,
    source_length=cases.S,
    policy=rule,
    **OPTIONS,
  )
  assert compiled.state.carry.encoder_exit_layers.shape == (cases.B,)


@pytest.mark.slow
def test_exports_stop_the_encoder():
  rule = policy(token_rule=MARGIN)
  spec = deployment.ProgramSpec(
    source_length=cases.S,
    max_length=T,
    policy=rule,
    eos_id=-1,
    platforms=('cpu',),
  )
  exported, named = deployment.lower_decoder(bound(), spec)
  outputs = exported.call(
    named,
    {'tokens': jnp.asarray(cases.inputs()), 'threshold': jnp.float32(0.1)},
  )
  np.testing.assert_array_equal(outputs['tokens'], decode(rule).tokens)


def test_one_setting_for_both():
  both = policy(token_rule=MARGIN)
  setting = {'encoder_exit.rule.threshold': 0.7, 'exit_rule.threshold': 0.8}
  changed = decoding.with_setting(both, setting)
  assert changed.encoder_exit.rule.threshold == 0.7
  assert changed.exit_rule.threshold == 0.8
  described = decoding.describe(both, setting)
  assert described['encoder_exit']['type'] == 'StoppedEncoder'
  assert described['encoder_exit']['rule']['threshold'] is None
  assert described['exit_rule']['threshold'] is None
  assert decoding.full_model(both) == decoding.ComputePolicy()
  assert 'encoder_exit' not in decoding.describe(decoding.ComputePolicy())
  with pytest.raises(ValueError, match='WholeEncoder has no field'):
    decoding.with_setting(decoding.ComputePolicy(), setting)


def test_a_setting_that_is_a_number():
  """The tokens' threshold; the encoder's where no token exits."""
  alone = policy(0.5)
  path = 'encoder_exit.rule.threshold'
  assert decoding.threshold_path(alone) == path
  assert decoding.threshold_of(alone) == 0.5
  assert decoding.is_full_at_one(alone)
  both = policy(0.5, token_rule=MARGIN)
  assert decoding.threshold_path(both) == 'exit_rule.threshold'
  assert not decoding.is_full_at_one(both)
  capped = exits.LayerBudget(cases.similar(0.5), per_token=2)
  capped = decoding.ComputePolicy(encoder_exit=decoding.StoppedEncoder(capped))
  path = 'encoder_exit.rule.rule.threshold'
  assert decoding.threshold_path(capped) == path
  fixed = decoding.StoppedEncoder(exits.FixedExit(2))
  fixed = decoding.ComputePolicy(encoder_exit=fixed)
  assert decoding.threshold_path(fixed) is None
  skips = policy(0.5, layer_plan=decoding.KeepLayers(2))
  for other in (capped, fixed, skips):
    assert not decoding.is_full_at_one(other)


@pytest.mark.parametrize(
  ('slot', 'error', 'words'),
  [
    (exits.FixedExit(1), ValueError, 'holds a FixedExit.*StoppedEncoder'),
    (decoding.WholeEncoder, TypeError, 'is the class WholeEncoder'),
    (stopped(2.0), ValueError, 'threshold 2.0 is outside'),
    (decoding.StoppedEncoder(None), TypeError, 'give an exit rule'),
    (decoding.StoppedEncoder(MARGIN), ValueError, 'reads logits'),
    (stopped(loop=encoding.WhileLayers()), TypeError, 'each layer by itself'),
    (stopped(loop=3), TypeError, 'loop is 3'),
    (stopped(heads=3), ValueError, 'heads of StoppedEncoder is 3'),
  ],
)
def test_bad_slots_are_refused(slot, error, words):
  with pytest.raises(error, match=words):
    decode(decoding.ComputePolicy(encoder_exit=slot))


def test_what_does_not_go_together_is_refused():
  drafts = policy(
    token_rule=MARGIN,
    cache_fill=decoding.CatchUp(),
    verification=decoding.VerifyEvery(2),
  )
  with pytest.raises(ValueError, match='StoppedEncoder leaves parts of its'):
    decode(drafts)
  with pytest.raises(ValueError, match='no encoder that is taken apart'):
    decoding.generate(toy.toy_bound(), [[3]], policy=policy(), **OPTIONS)
