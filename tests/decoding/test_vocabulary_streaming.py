"""Streaming over the vocabulary: the same answers without the logits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import policy_cases as cases
from fakes.toy_decoder import toy_bound

from calm_jax import decoding, exits, model
from calm_jax.decoding import sampling
from calm_jax.interfaces import BoundDecoder, LayerView

MARGIN = exits.SoftmaxMargin()


class _Table:
  """A bound decoder whose logits are given: hidden picks a row of a table."""

  def __init__(self, logits):
    self.table = jnp.asarray(logits, jnp.float32)
    self.vocab_size = self.table.shape[1]

  def output_block(self, first, count):
    return jax.lax.dynamic_slice_in_dim(self.table.T, first, count)

  def logits(self, hidden, weights=None):
    weights = self.table.T if weights is None else weights
    return hidden @ weights.T


def read(readout, logits):
  """Returns what a readout says of given logits [B, V]."""
  table = _Table(logits)
  readout = readout.check(table, len(logits), 8)
  _, reading = readout.step(
    None,
    table,
    hidden=jnp.eye(len(logits)),
    layer=0,
    first=True,
    active=jnp.ones(len(logits), bool),
  )
  return reading


def confidences(measure, reading):
  return measure.confidence(
    LayerView(
      layer=0,
      positions=None,
      hidden=None,
      previous_hidden=None,
      active=None,
      **reading._asdict(),
    )
  )


@pytest.mark.parametrize('block_size', [1, 2, 7, 16, 29, 100])
@pytest.mark.parametrize('scale', [0.0, 1.0, 30.0])
def test_it_reads_as_the_full_vocabulary_does(block_size, scale):
  logits = np.random.default_rng(block_size).normal(size=(50, 29)) * scale
  logits = np.round(logits, 1)  # Ties, within blocks and across them.
  streamed = read(decoding.StreamedVocabulary(block_size), logits)
  full = read(decoding.FullVocabulary(), logits)
  greedy = decoding.Greedy()
  for one, other in zip(
    sampling.choose(greedy, **streamed._asdict()),
    sampling.choose(greedy, **full._asdict()),
    strict=True,
  ):
    np.testing.assert_allclose(one, other, atol=1e-5)
  for measure in (MARGIN, exits.SoftmaxMaximum()):
    np.testing.assert_allclose(
      confidences(measure, streamed), confidences(measure, full), atol=1e-5
    )
  ties = np.sort(logits)[:, -1] == np.sort(logits)[:, -2]
  assert (np.asarray(confidences(MARGIN, streamed))[ties] == 0.0).all()


@pytest.mark.slow
def test_decodes_are_those_of_the_full_vocabulary():
  for name in ('softmax_margin', 'maximum_deferred_fill', 'oracle'):
    case = cases.case(name)

    def policy(rows, threshold, case=case):
      policy = case.policy(rows, threshold)
      return dataclasses.replace(policy, readout=cases.STREAMED)

    streamed = cases.run(dataclasses.replace(case, policy=policy))
    expected = cases.decode(name)
    for field in ('tokens', 'exit_layers', 'lengths'):
      np.testing.assert_array_equal(
        getattr(streamed, field), getattr(expected, field), err_msg=name
      )
    for field in ('confidences', 'rejected_confidences', 'scores'):
      np.testing.assert_allclose(
        getattr(streamed, field), getattr(expected, field), atol=1e-5
      )


@pytest.mark.slow
def test_a_forced_prefix_is_forced():
  prefix = np.array([[5, 9], [6, 0], [0, 0], [7, 8]])
  one, other = (
    cases.run(cases.case(name), forced_prefix=prefix)
    for name in ('margin_streamed', 'softmax_margin')
  )
  np.testing.assert_array_equal(one.tokens, other.tokens)
  np.testing.assert_array_equal(one.exit_layers, other.exit_layers)
  np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
  assert (one.tokens[:, :2] == prefix)[prefix > 0].all()


def test_logits_of_the_whole_vocabulary_are_never_held():
  config = dataclasses.replace(cases.CONFIG, vocab_size=40_000)
  seam = model.as_layered_decoder(config)
  params = jax.eval_shape(
    lambda: seam.prepare(model.init_params(config, jax.random.key(0)))
  )
  batch_size = 64

  def memory(readout):
    def read(params, hidden):
      bound = BoundDecoder(params, seam, decoding.UnrolledDepthLoop())
      return readout.step(
        None, bound, hidden=hidden, layer=0, first=True, active=None
      )[1]

    hidden = jax.ShapeDtypeStruct((batch_size, config.embed_dim), jnp.float32)
    compiled = jax.jit(read).lower(params, hidden).compile()
    analysis = compiled.memory_analysis()
    return analysis.temp_size_in_bytes + analysis.output_size_in_bytes

  logits = 4 * batch_size * config.vocab_size
  assert memory(decoding.FullVocabulary()) >= logits
  # A few blocks of logits, and the rows of the matrix behind one.
  blocks = 8 * logits // 40
  assert memory(decoding.StreamedVocabulary(1000)) < blocks < logits / 4


def test_what_it_cannot_do_is_refused():
  case = dataclasses.replace(
    cases.case('margin_streamed'), sampler=decoding.Nucleus(0.9)
  )
  with pytest.raises(ValueError, match=r'Nucleus draws among all tokens'):
    cases.run(case)
  streamed = dataclasses.replace(
    cases.case('margin_streamed'), sampler=decoding.BeamSearch(num_beams=2)
  )
  with pytest.raises(ValueError, match=r'beam search looks at many tokens'):
    cases.run(streamed)
  with pytest.raises(ValueError, match=r'gives the best tokens only'):
    cases.run(cases.case('margin_streamed'), suppressed_tokens=[7])
  with pytest.raises(ValueError, match=r'no output_block'):
    decoding.generate(
      toy_bound(),
      np.array([[1, 2]]),
      policy=decoding.ComputePolicy(readout=cases.STREAMED),
      max_length=3,
    )
  with pytest.raises(ValueError, match=r'block_size 0 must be'):
    decoding.StreamedVocabulary(0).check(cases.decoder(), 1, 1)
