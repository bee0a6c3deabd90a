"""Heads of encoder layers that are trained on with their gate."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import encoding_cases as cases

from calm_jax import model, training
from calm_jax.data.class_labels import ClassLabels
from calm_jax.encoder_heads import EncoderHeads
from calm_jax.label_words import LabelWords
from calm_jax.training import encoder_gate_states, encoder_head_losses
from calm_jax.training.classifier_losses import exit_log_probabilities
from calm_jax.training.encoder_joint_losses import (
  exit_probabilities,
  joint_head_loss,
)

L, B, C = cases.L, cases.B, 3
LABELS = ClassLabels(('a', 'b', 'c'), ((2, 1), (3, 1), (4, 1)))
RATE = 0.5
DESCENT = training.Optimizer(optax.sgd(RATE), training.constant(RATE))
RNG = np.random.default_rng(0)
HEADS = EncoderHeads(
  kernel=RNG.normal(size=(L, cases.D, C)).astype('f4'),
  bias=RNG.normal(size=(L, C)).astype('f4'),
)
ENTROPIES = jnp.asarray(RNG.exponential(size=(L, 5)), jnp.float32)
SCORES = jnp.asarray(RNG.normal(size=(L - 1, 5)), jnp.float32)
WEIGHTS = jnp.array([1.0, 1, 1, 1, 0])


def batch():
  targets = np.zeros((B, 2), np.int32)
  targets[:, 0] = 2 + np.arange(B) % C
  targets[:, 1] = 1
  targets[-1] = 0
  return {
    'encoder_input_tokens': cases.inputs(),
    'decoder_target_tokens': targets,
    'decoder_input_tokens': np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
    'decoder_loss_weights': (targets > 0).astype(np.float32),
  }


def test_exit_probabilities_by_hand():
  scores = jnp.log(jnp.array([[0.3, 0.2], [0.4, 0.9], [0.9, 0.5]]))
  scores -= jnp.log1p(-jnp.exp(scores))
  found = exit_probabilities(training.CostAware(), scores)
  # 0.9 is cut to the 0.3 that is left, and 0.9 to 0.8.
  expected = [[0.3, 0.2], [0.4, 0.8], [0.3, 0.0], [0.0, 0.0]]
  np.testing.assert_allclose(found, expected, atol=1e-6)
  for target in (training.CostAware(), training.Quantile()):
    found = np.asarray(exit_probabilities(target, SCORES))
    np.testing.assert_allclose(found.sum(axis=0), 1.0, atol=1e-6)
    assert found.min() >= 0.0 and found.max() <= 1.0
  by_layers = np.exp(exit_log_probabilities(SCORES))
  np.testing.assert_allclose(found, by_layers, rtol=1e-6)


def test_the_boost_is_a_constant_where_the_release_cancels_the_gate_out():
  """Defect D2 of JEI-DNN's release, beside what it should have been."""
  shares = exit_probabilities(training.CostAware(), SCORES)

  def released(entropies):
    weighted = shares * entropies
    ratio = entropies.sum(axis=0) / weighted.sum(axis=0)
    return ((weighted * ratio).sum(axis=0) * WEIGHTS).sum() / 4

  def plain(entropies):
    return (entropies.sum(axis=0) * WEIGHTS).sum() / 4

  def ours(entropies, boosted=True):
    return joint_head_loss(entropies, shares, WEIGHTS, boosted=boosted)

  values, gradients = zip(
    *(jax.value_and_grad(f)(ENTROPIES) for f in (released, plain, ours)),
    strict=True,
  )
  np.testing.assert_allclose(values, values[0], rtol=1e-5)
  np.testing.assert_allclose(gradients[0], gradients[1], atol=1e-6)
  assert np.abs(gradients[2] - gradients[1]).max() > 0.05
  ratio = ENTROPIES.sum(axis=0) / (shares * ENTROPIES).sum(axis=0)
  expected = shares * ratio * WEIGHTS / 4
  np.testing.assert_allclose(gradients[2], expected, atol=1e-6)
  np.testing.assert_allclose(
    jax.grad(lambda e: ours(e, boosted=False))(ENTROPIES),
    shares * WEIGHTS / 4,
    atol=1e-6,
  )


@pytest.mark.slow
@pytest.mark.parametrize('target', ['cost_aware', 'quantile'])
def test_a_step_moves_gate_and_heads_each_by_its_own_loss(target):
  stage = training.encoder_joint_stage(
    cases.CONFIG,
    cases.params(),
    HEADS,
    DESCENT,
    labels=LABELS,
    target=target,
  )
  checked = stage.check_batch(batch())
  before = jax.device_get(stage.init(None).params)
  # A gate that says something of every layer.
  before['gate']['logits'] = RNG.normal(
    size=before['gate']['logits'].shape
  ).astype('f4')
  assert before['gate']['logits'].shape == (L - 1, 4, 1)
  state = training.TrainState(
    step=jnp.int32(0),
    params=jax.tree.map(jnp.array, before),
    opt_state=DESCENT.transformation.init(before),
    rng=jax.random.key(0),
  )
  after, metrics = stage.step(state, checked, stage.constants)

  @jax.jit
  def expected(tree, params):
    heads = training.encoder_heads_of(tree)
    examples = encoder_gate_states.encoder_states(
      cases.CONFIG, {**params, 'encoder_heads': heads}, checked
    )
    aim = training.get_gate_target(target)

    def gate_loss(arrays):
      return aim.loss(
        examples.scores(training.gate_of({'gate': arrays})), examples
      )

    scores = examples.scores(training.gate_of(tree))[..., 0]
    shares = exit_probabilities(aim, scores)
    pooled = training.pooled_layers(
      cases.CONFIG, params, checked['encoder_input_tokens']
    )

    def head_loss(arrays):
      heads = EncoderHeads(**arrays)
      entropies = -encoder_head_losses.class_log_probabilities(
        heads.all_logits(pooled), checked['classes']
      )
      if target == 'quantile':
        # PALBERT's loss as a whole, of which the prior is no matter of heads.
        terms = (shares * entropies).sum(axis=0)
        return terms[: B - 1].mean()
      ratio = entropies.sum(axis=0) / (shares * entropies).sum(axis=0)
      terms = (shares * jax.lax.stop_gradient(ratio) * entropies).sum(axis=0)
      return terms[: B - 1].mean()

    return (
      jax.value_and_grad(gate_loss)(tree['gate']),
      jax.value_and_grad(head_loss)(tree['encoder_heads']),
    )

  gate, heads = expected(before, cases.params())
  np.testing.assert_allclose(metrics.loss, gate[0] + heads[0], rtol=1e-4)
  for name, (_, gradient) in (('gate', gate), ('encoder_heads', heads)):
    for key, value in gradient.items():
      np.testing.assert_allclose(
        after.params[name][key],
        before[name][key] - RATE * value,
        atol=1e-5,
        err_msg=f'{name} {key}',
      )
    assert max(np.abs(value).max() for value in gradient.values()) > 1e-3
  # The classes of padding count nowhere, and heads are measured.
  assert float(metrics.exits.num_tokens) == B - 1
  assert stage.context['boosted'] is (target == 'cost_aware')
  assert set(stage.constants) == set(cases.params())


def test_what_has_no_heads_to_train_is_refused():
  words = LabelWords.of(
    model.as_layered_decoder(cases.CONFIG),
    cases.params(),
    LABELS.tokens,
  )
  with pytest.raises(ValueError, match='heads of their own, got LabelWords'):
    training.encoder_joint_stage(
      cases.CONFIG, cases.params(), words, DESCENT, labels=LABELS
    )
  with pytest.raises(ValueError, match='boosted is True, and no heads'):
    training.JudgedHeads(boosted=True)
