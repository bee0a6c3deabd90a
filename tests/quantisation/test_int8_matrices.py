"""Products in 8 bits, held against whole numbers and bounds of their error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from calm_jax import quantisation
from calm_jax.quantisation import Int8Matrix, int8_matrices


def _draw(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_the_sums_are_those_of_whole_numbers():
  matrix, states = Int8Matrix.of(_draw(24, 10)), _draw(5, 24, seed=1)
  whole, scales = map(np.asarray, quantisation.quantise(states))
  sums = whole.astype(np.int64) @ np.asarray(matrix.values, np.int64).T
  expected = sums * scales[:, None] * np.asarray(matrix.scales)
  np.testing.assert_allclose(matrix.multiply(states), expected, rtol=1e-6)


@pytest.mark.parametrize('size', [1e-30, 1.0, 1e20])
def test_an_error_is_no_larger_than_the_steps_allow(size):
  kernel, states = size * _draw(40, 16), _draw(7, 40, seed=2) / size
  matrix = Int8Matrix.of(kernel)
  _, steps = map(np.asarray, quantisation.quantise(states))
  wide = np.float64(states), np.float64(kernel)
  error = abs(np.asarray(matrix.multiply(states)) - wide[0] @ wide[1])
  step, by_channel = steps[:, None] / 2, np.asarray(matrix.scales) / 2
  bound = (
    step * abs(wide[1]).sum(0)
    + abs(wide[0]).sum(1)[:, None] * by_channel
    + len(kernel) * step * by_channel
  )
  assert (error <= bound * (1 + 1e-5)).all()
  assert np.median(error) < np.median(bound) / 2


@pytest.mark.parametrize('count', [1, 2, 3, 9])
def test_a_position_does_not_feel_the_others(count):
  matrix, states = Int8Matrix.of(_draw(32, 12)), _draw(9, 32, seed=3)
  multiply = jax.jit(Int8Matrix.multiply)
  np.testing.assert_array_equal(
    multiply(matrix, states[:count]), multiply(matrix, states)[:count]
  )
  shaped = multiply(matrix, states[None, :count])
  np.testing.assert_array_equal(shaped[0], multiply(matrix, states[:count]))


def test_zeros_stay_zeros():
  kernel = _draw(8, 5)
  kernel[:, 2] = 0.0
  states = _draw(3, 8, seed=1)
  states[1] = 0.0
  product = np.asarray(Int8Matrix.of(kernel).multiply(states))
  assert (product[:, 2] == 0).all() and (product[1] == 0).all()
  assert np.isfinite(product).all()


def test_what_is_not_finite_is_seen_in_its_row_alone():
  states = _draw(3, 8)
  states[1, 4] = np.nan
  product = np.asarray(Int8Matrix.of(_draw(8, 5)).multiply(states))
  assert np.isnan(product[1]).all()
  assert np.isfinite(product[[0, 2]]).all()


def test_channels_can_be_taken_and_cut():
  matrix, states = Int8Matrix.of(_draw(16, 30)), _draw(2, 16, seed=1)
  ids = np.array([[3, 29, 0], [7, 7, 1]])
  rows = matrix.take(ids)
  assert rows.shape == (2, 3, 16)
  taken = np.einsum('bd,bcd->bc', quantisation.rounded(states), rows)
  whole = np.asarray(matrix.multiply(states))
  expected = np.take_along_axis(whole, ids, axis=1)
  np.testing.assert_allclose(taken, expected, rtol=1e-5, atol=1e-6)
  cut = jax.jit(lambda matrix, first: matrix.cut(first, 4))(matrix, 5)
  np.testing.assert_array_equal(cut.multiply(states), whole[:, 5:9])


def test_matrices_are_joined_by_channel():
  parts = [Int8Matrix.of(_draw(16, 6, seed=seed)) for seed in (1, 2)]
  states = _draw(2, 3, 16)
  joint = quantisation.join_matrices(parts).multiply(states)
  assert joint.shape == (2, 3, 6, 2)
  for number, part in enumerate(parts):
    np.testing.assert_array_equal(joint[..., number], part.multiply(states))


def test_the_axis_of_states_may_lie_anywhere():
  kernel, states = _draw(6, 16), _draw(3, 16, seed=1)
  np.testing.assert_array_equal(
    Int8Matrix.of(kernel, input_axis=1).multiply(states),
    Int8Matrix.of(kernel.T).multiply(states),
  )


def test_a_program_may_leave_the_number_of_rows_open():
  matrix, states = Int8Matrix.of(_draw(16, 6)), _draw(4, 16, seed=1)
  (rows,) = export.symbolic_shape('b')
  shape = jax.ShapeDtypeStruct((rows, 16), jnp.float32)
  program = export.export(jax.jit(matrix.multiply))(shape)
  for count in (1, 4):
    np.testing.assert_allclose(
      program.call(states[:count]), matrix.multiply(states[:count]), rtol=1e-6
    )


@pytest.mark.slow
def test_a_backend_without_such_products_says_so_and_says_the_same(
  monkeypatch, caplog
):
  matrix, states = Int8Matrix.of(_draw(64, 16)), _draw(5, 64, seed=1)
  expected = matrix.multiply(states)

  def refuse(*operands, **options):
    raise NotImplementedError('no int8 here')

  int8_matrices._has_int8_products.cache_clear()
  with monkeypatch.context() as patch:
    patch.setattr(jax.lax, 'dot_general', refuse)
    assert not quantisation.has_int8_products()
  try:
    assert 'does not multiply 8-bit integers (no int8 here)' in caplog.text
    text = jax.jit(matrix.multiply).lower(states).as_text()
    assert 'i32' not in text.split('dot_general')[1].splitlines()[0]
    np.testing.assert_allclose(matrix.multiply(states), expected, rtol=1e-6)
  finally:
    int8_matrices._has_int8_products.cache_clear()
  assert quantisation.has_int8_products()
