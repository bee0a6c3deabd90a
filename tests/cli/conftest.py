"""A task, a run trained on it and its calibration, made once for the suite.

A module that asks for the run gets a copy, in which its jobs write.
"""

import shutil

import pytest
from fakes import counting_task
from tools.made_once import made_once


@pytest.fixture(scope='session')
def files(tmp_path_factory):
  """What jobs on the counting task are bound to; nobody has trained yet."""
  folder = made_once(tmp_path_factory, 'counting', counting_task.write)
  return counting_task.files_in(folder)


@pytest.fixture(scope='session')
def _trained_once(files, tmp_path_factory):
  from cases import job_cases

  def train(folder):
    job_cases.train({**files, 'MODEL_DIR': str(folder)})

  return made_once(tmp_path_factory, 'trained', train)


@pytest.fixture(scope='session')
def _calibrated_once(files, _trained_once, tmp_path_factory):
  from cases import job_cases

  def calibrate(folder):
    shutil.copytree(_trained_once, folder)
    job_cases.calibrate({**files, 'MODEL_DIR': str(folder)})

  return made_once(tmp_path_factory, 'calibrated', calibrate)


@pytest.fixture(scope='module')
def trained(files, _trained_once, tmp_path_factory):
  """Bound to a trained run of the module's own."""
  return _with_copy(files, _trained_once, tmp_path_factory)


@pytest.fixture(scope='module')
def calibrated(files, _calibrated_once, tmp_path_factory):
  """Bound to a trained and calibrated run of the module's own."""
  return _with_copy(files, _calibrated_once, tmp_path_factory)


def _with_copy(files, run, tmp_path_factory):
  folder = tmp_path_factory.mktemp('run') / 'run'
  shutil.copytree(run, folder)
  return {**files, 'MODEL_DIR': str(folder)}
