import jax
from cases import policy_cases as cases

from calm_jax import decoding, sharding


def test_a_decode_compiled_from_shapes_is_the_one_that_runs():
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  case = cases.case('softmax_margin')
  shapes = jax.eval_shape(cases.params)
  compiled = decoding.compile_decode(
    decoding.bind(
      cases.decoder(),
      shapes,
      depth_loop=decoding.WhileDepthLoop(),
      mesh=mesh,
    ),
    batch_size=cases.B,
    source_length=cases.S,
    max_length=cases.T,
    eos_id=cases.EOS_ID,
    policy=case.policy(slice(None), case.threshold),
  )
  state = decoding.start(
    cases.bound(mesh=mesh),
    cases.inputs(),
    max_length=cases.T,
    eos_id=cases.EOS_ID,
    policy=case.policy(slice(None), case.threshold),
  )
  held = compiled.device_bytes()
  for name, part in (('params', state.bound), ('carry', state.carry)):
    leaves = jax.tree.leaves(part)
    assert held[name] == sum(leaf.nbytes for leaf in leaves)
  carry = compiled.advance(
    state.carry,
    state.bound,
    state.policy,
    state.sampler,
    jax.numpy.int32(cases.T),
  )
  assert (carry.tokens == cases.decode('softmax_margin').tokens).all()
