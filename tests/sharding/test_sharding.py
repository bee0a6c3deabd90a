import dataclasses
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from cases import training_cases
from jax.sharding import PartitionSpec as P
from tools import forced_devices
from tools.free_ports import free_port
from tools.paths import PROGRAMS

from calm_jax import model, records, sharding, training
from calm_jax.training import parameter_table, placement, step

CONFIG = training_cases.CONFIG
SCRIPT = PROGRAMS / 'sharded_training.py'
TWO = PROGRAMS / 'two_processes.py'


def mesh_of(data, model=1):
  """The shape of a mesh, without devices."""
  return jax.sharding.AbstractMesh(
    (data, model),
    (sharding.DATA, sharding.MODEL),
    axis_types=(jax.sharding.AxisType.Auto,) * 2,
  )


SMALL = dict(num_encoder_layers=1, num_decoder_layers=1)


def shapes_of(config):
  return jax.eval_shape(lambda: model.init_params(config, jax.random.key(0)))


@pytest.mark.parametrize('name', ['t5_small', 't5_v1_1_small'])
def test_every_parameter_of_t5_has_logical_axes(name):
  shapes = shapes_of(model.T5Config.named(name, **SMALL))
  for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
    name = sharding.path_name(path)
    axes = sharding.logical_axes(name, leaf.ndim)
    assert len(axes) == leaf.ndim and None not in axes, name
  assert sharding.logical_axes('somebody/elses/matrix', 2) == (None, None)


@pytest.mark.parametrize(
  ('strategy', 'mesh', 'wi', 'out', 'embedding'),
  [
    ('data_parallel', mesh_of(8), P(), P(), P()),
    (
      'data_parallel',
      mesh_of(4, 2),
      P(None, 'model'),
      P('model', None),
      P('model', None),
    ),
    ('fsdp', mesh_of(8), P('data', None), P(None, 'data'), P(None, 'data')),
    (
      'fsdp',
      mesh_of(4, 2),
      P('data', 'model'),
      P('model', 'data'),
      P('model', 'data'),
    ),
    ('fsdp', mesh_of(1), P(), P(), P()),
  ],
)
def test_strategies_split_what_they_say(strategy, mesh, wi, out, embedding):
  def spec(path, *shape):
    return sharding.partition_spec(path, shape, mesh, strategy)

  assert spec('decoder/layers_0/mlp/wi_1/kernel', 16, 32) == wi
  assert spec('encoder/layers_3/mlp/wi/kernel', 16, 32) == wi
  # Prepared for decoding, layers apart or stacked.
  gates = P(wi[0], None, wi[1]) if len(wi) else P()
  assert spec('layers/0/mlp/gates/kernel', 16, 2, 32) == gates
  stacked = P(None, *gates) if len(gates) else P()
  assert spec('layers/mlp/gates/kernel', 6, 16, 2, 32) == stacked
  assert spec('decoder/layers_0/self_attention/out/kernel', 16, 16) == out
  assert spec('token_embedder/embedding', 64, 16) == embedding
  assert spec('decoder/decoder_norm/scale', 16) == P()
  assert spec('somebody/elses/matrix', 16, 16) == P()


def test_a_dimension_that_does_not_divide_stays_whole_and_is_named():
  mesh = mesh_of(8, 2)
  path = 'decoder/layers_0/mlp/wi_0/kernel'
  # embed = 12 does not divide by 8, so that mlp has its turn; it may, unless
  # 'model' has it.
  assert sharding.partition_spec(path, (12, 64), mesh_of(8), 'fsdp') == P(
    None, 'data'
  )
  assert sharding.partition_spec(path, (12, 64), mesh, 'fsdp') == P(
    None, 'model'
  )
  assert sharding.partition_spec(path, (12, 33), mesh, 'fsdp') == P()
  notes = sharding.undivided(path, (12, 64), mesh, 'fsdp')
  assert len(notes) == 1 and 'embed = 12' in notes[0] and 'data = 8' in notes[0]
  assert not sharding.undivided(path, (16, 64), mesh, 'fsdp')


def test_moments_lie_like_their_parameters():
  optimizer = training.adamw(0.01)
  state = jax.eval_shape(lambda: step.init_train_state(CONFIG, optimizer))
  found = sharding.state_shardings(state, state.params, mesh_of(8), 'fsdp')
  params = jax.tree.leaves(found.params)
  split = [
    leaf for leaf in jax.tree.leaves(found.opt_state) if leaf.spec != P()
  ]
  assert [leaf for leaf in params if leaf.spec != P()] * 2 == split
  assert len(split) > 40
  assert found.step.spec == found.rng.spec == P()
  assert found.params == sharding.param_shardings(
    state.params, mesh_of(8), 'fsdp'
  )


def test_what_adafactor_keeps_per_row_is_on_every_device():
  # Wide enough for Adafactor to keep sums of rows and columns.
  config = dataclasses.replace(
    CONFIG, embed_dim=128, mlp_dim=256, vocab_size=256, num_decoder_layers=1
  )
  state = jax.eval_shape(
    lambda: step.init_train_state(config, training.adafactor())
  )
  found = sharding.state_shardings(state, state.params, mesh_of(8), 'fsdp')
  shapes = {tuple(leaf.shape) for leaf in jax.tree.leaves(state.params)}
  rows = [
    where.spec
    for leaf, where in zip(
      jax.tree.leaves(state.opt_state),
      jax.tree.leaves(found.opt_state),
      strict=True,
    )
    if tuple(leaf.shape) not in shapes
  ]
  assert len(rows) > 20 and set(rows) == {P()}


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (dict(data=3), 'data=3 x model=1 wants 3 devices, and there are 1'),
    (dict(model=2), 'model=2 wants 2 devices'),
    (dict(data=0), 'data 0 must be a whole number at least 1'),
    (dict(model=1.0), 'model 1.0 must be a whole number at least 1'),
  ],
)
def test_meshes_that_do_not_fit_are_refused(arguments, message):
  with pytest.raises(ValueError, match=message):
    sharding.make_mesh(**arguments, devices=jax.devices()[:1])


def test_bad_strategies_and_meshes_are_named(tmp_path):
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  with pytest.raises(ValueError, match="'fsdp'.*got 'zero'"):
    placement.OnMesh(mesh, 'zero')
  explicit = jax.make_mesh((1,), ('data',), devices=jax.devices()[:1])
  with pytest.raises(ValueError, match='sharding.make_mesh'):
    placement.OnMesh(explicit, 'fsdp')
  with pytest.raises(ValueError, match='got 8'):
    placement.OnMesh(8, 'fsdp')


def test_a_batch_that_cannot_be_shared_is_refused():
  class TwoDevices:
    process_index = 0
    devices = np.array([[jax.devices()[0]], [jax.devices()[0]]])

  with pytest.raises(
    ValueError, match='7 rows, which 2 devices.*multiple of 2'
  ):
    sharding.shard_batch({'inputs': np.zeros((7, 3))}, TwoDevices())
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  batch = training_cases.batch(0)
  for name, array in sharding.shard_batch(batch, mesh).items():
    np.testing.assert_array_equal(array, batch[name])
    assert array.sharding.spec == P('data')


def test_rows_are_shared_only_under_a_mesh():
  array = np.ones((4, 3), np.float32)
  assert sharding.share_rows(array) is array
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  with jax.set_mesh(mesh):
    program = jax.jit(sharding.share_rows, static_argnames='axis')
    assert '"data"' in program.lower(array).as_text()
    assert '"data"' in program.lower(array, axis=1).as_text()
    np.testing.assert_array_equal(program(array), array)
  # Rows that do not divide are left as they are.
  with jax.sharding.use_abstract_mesh(mesh_of(8)):
    assert '"data"' not in jax.jit(sharding.share_rows).lower(array).as_text()


def test_the_parameter_table_says_everything():
  config = model.T5Config.named('t5_v1_1_small', **SMALL)
  shapes = shapes_of(config)
  on_one = parameter_table.parameter_table(shapes, placement.OneDevice())
  total = sum(leaf.size for leaf in jax.tree.leaves(shapes))
  assert f'{total:,} numbers' in on_one
  lines = on_one.splitlines()
  embedding = next(line for line in lines if line.startswith('token_embedder'))
  for part in ('32128 x 512', 'float32', f'{32128 * 512:,}', 'vocab, embed'):
    assert part in embedding
  assert len(lines) == 1 + len(jax.tree.leaves(shapes)) + 2


def run_script(directory, *names):
  return forced_devices.run(SCRIPT, directory, *names, devices=8)


def check_runs(found, *names):
  for name in names:
    np.testing.assert_allclose(
      found[name]['losses'], found['one']['losses'], rtol=1e-5
    )
  assert len(found['one']['losses']) == 3
  assert found['fsdp']['spec'] == "P(None, 'data')"
  assert found['fsdp']['part'] == [32, 2]
  assert found['restored'] == [True, True]
  assert found['restored_spec'] == "P('model', 'data')"
  wo = next(line for line in found['table'].splitlines() if '/mlp/wo/' in line)
  assert wo.endswith('mlp, embed             -, data'), wo
  assert 'fsdp over data=8 x model=1: every device holds' in found['table']


@pytest.mark.slow
def test_fsdp_equals_one_device_and_restores_elsewhere(tmp_path):
  found = run_script(tmp_path, 'one', 'fsdp')
  check_runs(found, 'fsdp')
  # A frozen model is laid out as a trained one is.
  one, fsdp = found['classifier']
  assert len(one) == 3
  np.testing.assert_allclose(fsdp, one, rtol=1e-5)


@pytest.mark.slow
def test_every_topology_gives_the_same_losses(tmp_path):
  names = ('data', 'fsdp', 'crossed', 'crossed_fsdp')
  found = run_script(tmp_path, 'one', *names)
  check_runs(found, *names)
  assert found['data']['part'] == [32, 16]
  assert found['crossed']['part'] == [16, 16]
  assert found['crossed_fsdp']['part'] == [16, 4]


@pytest.mark.slow
@pytest.mark.parametrize('partitioning', ['data_parallel', 'fsdp'])
def test_two_processes_are_one_run(tmp_path, partitioning):
  """They start, go on and stop together, and take the steps of one device."""
  run, port = tmp_path / 'run', free_port()
  flags = '--xla_force_host_platform_device_count=2'
  processes = [
    subprocess.Popen(
      [sys.executable, str(TWO), str(run), str(port), str(i), partitioning],
      env={
        **os.environ,
        'PYTHONPATH': os.pathsep.join(sys.path),
        'XLA_FLAGS': f'{os.environ.get("XLA_FLAGS", "")} {flags}',
      },
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(2)
  ]
  answers = [process.communicate(timeout=600) for process in processes]
  for process, (_, errors) in zip(processes, answers, strict=True):
    assert process.returncode == 0, errors[-3000:]
  found = json.loads(answers[0][0].splitlines()[-1])
  # The second process says nothing.
  said = [line for line in answers[1][0].splitlines() if '[Gloo]' not in line]
  assert not said
  assert found['latest'] == found['step'] > 4
  training.train(
    training.multi_exit_stage(
      dataclasses.replace(CONFIG, num_decoder_layers=1), training.adamw(0.01)
    ),
    training_cases.batches,
    plan=training.Plan(num_steps=4, log_every=1),
    model_dir=tmp_path / 'one',
  )
  rows = records.read_jsonl(tmp_path / 'one' / 'train_log.jsonl')
  np.testing.assert_allclose(
    found['losses'],
    [row['loss'] for row in rows if row['kind'] == 'train'],
    rtol=1e-5,
  )
