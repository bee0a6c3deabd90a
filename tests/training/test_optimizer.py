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


def test_the_linear_schedule_is_piecewise_linear():
  linear = optimizer.warmup_linear(
    2.0, total_steps=110, warmup_steps=10, final_fraction=0.1
  )
  values = np.asarray(linear(jnp.arange(130)))
  np.testing.assert_allclose(values[:10], 0.2 * np.arange(1, 11), rtol=1e-6)
  np.testing.assert_allclose(
    values[10:111], np.linspace(2.0, 0.2, 101), rtol=1e-5
  )
  np.testing.assert_allclose(values[110:], 0.2, rtol=1e-5)


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
    (
      lambda: optimizer.warmup_linear(1.0, total_steps=5, warmup_steps=5),
      'warmup_steps',
    ),
    (lambda: optimizer.warmup_linear(-1.0, total_steps=5), 'peak'),
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


def t5x_adafactor(param, gradient, slots, step, *, weight_decay):
  """One update by T5X's rules, in float64; slots are changed in place."""
  squared = gradient**2 + 1e-30
  decay = 1 - (step + 1.0) ** -0.8
  if param.ndim == 2 and min(param.shape) >= 128:
    # Rows and columns are means over the larger and the smaller side.
    small, large = np.argsort(param.shape)
    for name, axis in (('row', large), ('column', small)):
      slots[name] = decay * slots.get(name, 0.0) + (1 - decay) * np.expand_dims(
        squared.mean(axis), axis
      )
    second_moment = slots['row'] * slots['column'] / slots['row'].mean()
  else:
    slots['full'] = decay * slots.get('full', 0.0) + (1 - decay) * squared
    second_moment = slots['full']
  update = gradient / np.sqrt(second_moment)
  update /= max(1.0, np.sqrt((update**2).mean()) / 1.0)
  scale = max(np.sqrt((param**2).mean()), 1e-3)
  return (1 - weight_decay) * param - 0.01 * scale * update


def test_adafactor_is_that_of_t5x():
  random = np.random.default_rng(0)
  params = {
    'factored': random.normal(size=(130, 128)),
    'wide': 1e-5 * random.normal(size=(3, 200)),
    'zero': np.zeros((128, 128)),
    'vector': np.ones(7),
  }
  built = optimizer.adafactor(0.01, weight_decay=1e-3)
  ours = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
  state = built.transformation.init(ours)
  assert sum(leaf.size for leaf in jax.tree.leaves(state)) < 2000
  slots = {name: {} for name in params}
  update = jax.jit(built.transformation.update)
  for step in range(3):
    gradients = {
      name: 10.0**step * random.normal(size=leaf.shape)
      for name, leaf in params.items()
    }
    params = {
      name: t5x_adafactor(
        leaf, gradients[name], slots[name], step, weight_decay=1e-3
      )
      for name, leaf in params.items()
    }
    updates, state = update(
      jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), gradients),
      state,
      ours,
    )
    ours = optax.apply_updates(ours, updates)
    for name, leaf in params.items():
      size = np.abs(leaf).max()
      np.testing.assert_allclose(
        ours[name], leaf, rtol=1e-4, atol=1e-5 * size, err_msg=name
      )
