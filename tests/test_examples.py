"""Every example runs by itself and prints what it promises."""

import pathlib
import re
import shutil
import subprocess
import sys

import jax.numpy as jnp
import pytest
from fakes import toy_decoder as toy
from flax import nnx

from calm_jax import decoding, deployment, examples, exits
from calm_jax.examples import inside_jit, nnx_model, numpy_client

FOLDER = pathlib.Path(examples.__file__).parent
NAMES = sorted(p.stem for p in FOLDER.glob('*.py') if p.stem != '__init__')


def test_every_example_is_listed_and_says_how_to_run_it():
  for name in NAMES:
    assert f'calm_jax.examples.{name}' in examples.__doc__
    text = (FOLDER / f'{name}.py').read_text(encoding='utf-8')
    assert re.search(rf'^  python .*{name}', text, re.MULTILINE), name


@pytest.mark.slow
def test_inside_jit(capsys):
  """One program for all thresholds; lower ones are not deeper."""
  inside_jit.main()
  lines = capsys.readouterr().out.splitlines()
  assert lines[0] == 'threshold 1.0: 4.00 layers, 100% equal tokens'
  depths = [float(re.search(r': (\S+) layers', line)[1]) for line in lines]
  assert len(depths) == 4 and depths == sorted(depths, reverse=True)
  assert inside_jit.depth_and_agreement._cache_size() == 1


@pytest.mark.slow
def test_nnx_model(capsys):
  """The full decoder says what the model says, and some tokens leave early."""
  nnx_model.main()
  by_itself, full, early, layers = (
    line.split(':')[1] for line in capsys.readouterr().out.splitlines()
  )
  assert by_itself.split() == full.split() != early.split()
  depths = [int(digit) for digit in re.findall(r'\d+', layers)]
  assert len(depths) == 12 and 1 == min(depths) < max(depths)


@pytest.mark.slow
def test_an_nnx_model_can_be_exported(tmp_path):
  """Its parameters are no dicts, the program's are."""
  bound = decoding.bind(
    *nnx_model.as_layered_decoder(nnx_model.Model(nnx.Rngs(1))),
    depth_loop=decoding.WhileDepthLoop(),
  )
  rule = exits.ConfidenceExit(exits.SoftmaxMargin(), 0.5)
  spec = deployment.ProgramSpec(
    source_length=4,
    max_length=3,
    policy=decoding.ComputePolicy(exit_rule=rule),
  )
  deployment.export_artifact(bound, tmp_path / 'a', spec)
  exported = deployment.load_artifact(tmp_path / 'a')
  assert 'layers/query/kernel/value' in exported.parameters
  compared = deployment.compare_with_decoder(bound, exported, spec)
  assert compared.equal and compared.num_tokens >= 4


@pytest.mark.slow
def test_numpy_client(tmp_path):
  """Copied somewhere else and run there; by hand, see tests/toy_decoder.py."""
  spec = deployment.ProgramSpec(
    source_length=3,
    max_length=4,
    eos_id=-1,
    policy=decoding.ComputePolicy(
      exit_rule=exits.ConfidenceExit(exits.SoftmaxMargin(), 1.0)
    ),
  )
  # Of two dtypes, one of which is not NumPy's own.
  step = toy.toy_params()['step'].astype('bfloat16')
  params = {'step': step, 'unused': jnp.ones((2, 3))}
  bound = decoding.bind(
    toy.toy_decoder(), params, depth_loop=decoding.WhileDepthLoop()
  )
  deployment.export_artifact(bound, tmp_path / 'a', spec)
  client = shutil.copy(FOLDER / 'numpy_client.py', tmp_path)
  # -v names every import, whatever brought it.
  command = [sys.executable, '-v', client, 'a', '0.6', '1 2', '2']
  result = subprocess.run(
    command, cwd=tmp_path, capture_output=True, text=True, check=True
  )
  assert result.stdout.splitlines() == [
    'tokens 2 5 3 4',
    'layers 2 2 2 2',
    'tokens ' + ' '.join(map(str, toy.EXIT_1_TOKENS)),
    'layers 1 1 1 1',
  ]
  for arguments, said in (
    (('2', '1 2'), 'threshold is 2.0'),
    (('nan', '1 2'), 'threshold is nan'),
    (('0.6', '1 9999'), 'token 9999 in row 0 is outside'),
    (('0.6', '1', '-1'), 'token -1 in row 1 is outside'),
    (('0.6', ''), 'row 0 has 0 tokens'),
    (('0.6', '1', '0 0'), 'row 1 has 2 tokens; give 1 to 3, not all'),
    (('0.6', '1 2 3 4'), 'row 0 has 4 tokens; give 1 to 3'),
  ):
    with pytest.raises(SystemExit, match=said):
      numpy_client.main(tmp_path / 'a', *arguments)
  with pytest.raises(SystemExit, match='No such file .*none'):
    numpy_client.main(tmp_path / 'none', '0.6', '1')
  assert "import 'jax.export'" in result.stderr
  assert 'import calm_jax' not in result.stderr
  assert "import 'calm_jax" not in result.stderr
