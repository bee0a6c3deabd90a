"""Folders that one process of the suite makes, for all of them."""

import fcntl
import os
import shutil


def made_once(tmp_path_factory, name, make):
  """Returns a folder of this run of the suite, filled by whoever comes first.

  Args:
    tmp_path_factory: pytest's.
    name: of the folder.
    make: called with the folder, which is not there yet; other processes of
      pytest-xdist that want it wait until that is done, or do it where it
      failed. Nobody may write into the folder afterwards.
  """
  base = tmp_path_factory.getbasetemp()
  if 'PYTEST_XDIST_WORKER' in os.environ:
    base = base.parent
  folder, done = base / name, base / f'{name}.made'
  with open(base / f'{name}.lock', 'w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not done.exists():
      shutil.rmtree(folder, ignore_errors=True)
      make(folder)
      done.touch()
  return folder
