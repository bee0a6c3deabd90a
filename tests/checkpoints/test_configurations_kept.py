"""No conversion changes what a model computes: configurations are kept."""

import dataclasses

import pytest
from cases import checkpoint_cases as cases

from calm_jax import checkpoints
from calm_jax.checkpoints import t5x, t5x_description, t5x_orbax

ODD = tuple(
  dataclasses.replace(
    cases.SMALL, mlp_activations=activations, relative_max_distance=distance
  )
  for activations, distance in (
    (('silu', 'linear'), 64),
    (('relu', 'linear'), 128),
    (('silu',), 33),
  )
)


@pytest.mark.slow
@pytest.mark.parametrize('config', ODD)
def test_through_every_format_and_back(config, tmp_path):
  forms = ('t5x', 'huggingface', 't5x_orbax', 'calm_jax', 't5x', 'huggingface')
  source = cases.opened(config)
  for number, form in enumerate(forms):
    target = checkpoints.Target(format=form)
    path = checkpoints.convert(source, tmp_path / str(number), target).path
    source = checkpoints.open_checkpoint(path)
    assert source.config == config
    assert not any('assumed' in note for note in source.notes)


@pytest.mark.parametrize('form', ['t5x', 't5x_orbax'])
def test_what_t5x_leaves_open_is_said(form, tmp_path):
  path = cases.write(ODD[0], tmp_path, form)
  (tmp_path / 'checkpoint_7' / t5x_description.DESCRIPTION).unlink()
  found = checkpoints.open_checkpoint(path)
  assert found.config == cases.SMALL
  assert (
    'feed-forward gelu-linear and relative positions up to 128 were '
    in (found.notes[-1])
  )
  # Who says it is not told what else might have been.
  _, config, about = checkpoints.load(path, ODD[0])
  assert config == ODD[0]
  assert not any('assumed' in note for note in about['notes'])


def test_descriptions_that_cannot_be(tmp_path):
  path = cases.write(cases.SMALL, tmp_path, 't5x')
  file = tmp_path / 'checkpoint_7' / t5x_description.DESCRIPTION
  for text, match in (
    ('{', 'is damaged'),
    ('{"mlp_activations": ["gelu"]}', 'should say'),
    (
      '{"mlp_activations": ["gelu"], "relative_max_distance": 128}',
      'the parameters have 2',
    ),
    (
      '{"mlp_activations": ["gelu", "linear"], "relative_max_distance": 0}',
      'cannot be: relative_max_distance',
    ),
  ):
    file.write_text(text)
    with pytest.raises(ValueError, match=match):
      checkpoints.open_checkpoint(path)


@pytest.mark.parametrize('form', ['t5x', 't5x_orbax'])
def test_reading_back_compares_configurations(form, tmp_path, monkeypatch):
  monkeypatch.setattr(t5x, 'describe', lambda path, config: None)
  monkeypatch.setattr(t5x_orbax, 'describe', lambda path, config: None)
  with pytest.raises(ValueError, match=r"silu.*found \('gelu', 'linear'\)"):
    cases.write(ODD[0], tmp_path, form)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('form', ['t5x', 't5x_orbax'])
def test_a_run_of_t5x_says_its_activations(form, tmp_path):
  path = cases.write(ODD[0], tmp_path, form)
  (tmp_path / 'checkpoint_7' / t5x_description.DESCRIPTION).unlink()
  gin = tmp_path / 'config.gin'
  gin.write_text("network.T5Config.mlp_activations = ('swish', 'linear')\n")
  found = checkpoints.open_checkpoint(path)
  assert found.config.mlp_activations == ('silu', 'linear')
  said, assumed = found.notes[-2:]
  assert said == f'{gin} says that the feed-forward is silu-linear.'
  assert 'configuration: relative positions up to 128 were assumed' in assumed
  gin.write_text("a/network.T5Config.mlp_activations = ('relu',)\n")
  with pytest.raises(ValueError, match='config.gin says .*another model'):
    checkpoints.open_checkpoint(path)
  # A configuration of several models says nothing of this one.
  gin.write_text("a.mlp_activations = ('relu',)\nb.mlp_activations = ('gelu')")
  assert checkpoints.open_checkpoint(path).config == cases.SMALL
