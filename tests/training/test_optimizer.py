import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from calm_jax.training import optimizer


def test_schedules():
  assert float(optimizer.constant(0.5)(jnp.array(7))) == 0.5
  rsqrt = optimizer.rsqrt_with_warmup(1.0, warmup_steps=10_000)
  assert float(rsqrt(jnp.array(0))) == pytest.approx(0.01)
  assert float(rsqrt(jnp.array(40_000))) == pytest.approx(0.005)
  cosine = optimizer.warmup_cosine(
    2.0, total_steps=110, warmup_steps=10, final_fraction=0.1
  )
  values = np.array([float(cosine(jnp.array(step))) for step in range(130)])
  assert values[0] == pytest.approx(0.2)
  assert values[9] == values.max() == pytest.approx(2.0, rel=1e-3)
  assert values[60] == pytest.approx(2.0 * 0.55)
  np.testing.assert_allclose(values[110:], 0.2, rtol=1e-5)
  assert (np.diff(values[:10]) > 0).all() and (np.diff(values[10:]) <= 0).all()


@pytest.mark.parametrize(
  ('build', 'message'),
  [
    (lambda: optimizer.constant(0.0), 'learning rate'),
    (lambda: optimizer.constant('fast'), "'fast'"),
    (lambda: optimizer.constant(float('nan')), 'nan'),
    (lambda: optimizer.rsqrt_with_warmup(1.0, warmup_steps=0), 'warmup_steps'),
    (
      lambda: optimizer.warmup_cosine(1.0, total_steps=5, warmup_steps=5),
      'warmup_steps',
    ),
    (
      lambda: optimizer.warmup_cosine(1.0, total_steps=5, final_fraction=2.0),
      'final_fraction',
    ),
    (lambda: optimizer.adafactor(-1.0), '-1.0'),
    (lambda: optimizer.adafactor(1.0, decay_rate=2.0), 'decay_rate'),
    (lambda: optimizer.adafactor(1.0, clip_global_norm=0.0), 'clip_global'),
    (lambda: optimizer.adafactor(1.0, clipping_threshold=-1), 'clipping_thr'),
    (lambda: optimizer.adamw(1.0, -0.1), 'weight_decay'),
    (lambda: optimizer.adamw(1.0, beta2=1.0), 'beta2'),
    (lambda: optimizer.adamw(1.0, epsilon=0.0), 'epsilon'),
  ],
)
def test_bad_values_are_named(build, message):
  with pytest.raises(ValueError, match=message):
    build()


@pytest.mark.parametrize(
  'built',
  [
    optimizer.adafactor(0.1),
    optimizer.adafactor(0.1, clip_global_norm=1.0, weight_decay=1e-3),
    optimizer.adamw(0.05),
    optimizer.adamw(
      optimizer.warmup_cosine(0.1, total_steps=200, warmup_steps=5), 1e-3
    ),
  ],
)
def test_optimizers_lower_a_quadratic(built):
  params = {'kernel': jnp.ones((3, 2)), 'scale': jnp.ones(2)}

  @jax.jit
  def step(params, state):
    value, gradients = jax.value_and_grad(
      lambda params: sum((leaf**2).sum() for leaf in params.values())
    )(params)
    updates, state = built.transformation.update(gradients, state, params)
    return optax.apply_updates(params, updates), state, value

  state = built.transformation.init(params)
  for _ in range(100):
    params, state, value = step(params, state)
  assert value < 0.1 * 8


def test_weight_decay_leaves_vectors_alone():
  built = optimizer.adamw(0.1, weight_decay=0.5)
  params = {'kernel': jnp.ones((2, 2)), 'scale': jnp.ones(2)}
  updates, _ = built.transformation.update(
    jax.tree.map(jnp.zeros_like, params),
    built.transformation.init(params),
    params,
  )
  assert not updates['scale'].any() and (updates['kernel'] < 0).all()
