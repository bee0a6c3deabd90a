"""Arrays on disk, one file per route, of one way of scoring them."""

import hashlib
import json
import os
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from calm_jax import records
from calm_jax.benchmarks.routes import Route


class KeptScores:
  """A folder with a file for each route that is done, written whole or not."""

  def __init__(self, folder: str | os.PathLike, about: Mapping[str, Any]):
    """Opens what is there.

    Args:
      folder: of all ways of scoring; this one's is made in it, named by a hash
        of `about`.
      about: everything that scores depend on but their route; JSON.
    """
    text = json.dumps(about, sort_keys=True)
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    self._folder = pathlib.Path(folder) / name
    self._folder.mkdir(parents=True, exist_ok=True)
    records.write_json(self._folder / 'about.json', dict(about))

  def __contains__(self, route: Route) -> bool:
    return self._path(route).exists()

  def __getitem__(self, route: Route) -> dict[str, np.ndarray]:
    """Returns the arrays of a route.

    Raises:
      ValueError: if its file cannot be read, naming it.
    """
    path = self._path(route)
    try:
      with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
      raise ValueError(
        f'{path} does not hold the scores of a route ({error}); delete it, and '
        'the route is decoded again'
      ) from None

  def __setitem__(self, route: Route, arrays: Mapping[str, np.ndarray]) -> None:
    path = self._path(route)
    temporary = path.with_suffix(f'.{os.getpid()}.tmp')
    with open(temporary, 'wb') as file:
      np.savez_compressed(file, **arrays)
    os.replace(temporary, path)

  def _path(self, route: Route) -> pathlib.Path:
    return self._folder / f'layers_{"_".join(map(str, route))}.npz'
