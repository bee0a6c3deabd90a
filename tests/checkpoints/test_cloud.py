"""Checkpoints in a cloud: a server that speaks Google Cloud Storage's JSON API.

It runs in this process and serves folders as buckets; tensorstore finds it by
an environment variable that is read once, so loading is a process of its own.
"""

import collections
import http.server
import json
import os
import pathlib
import re
import subprocess
import sys
import threading
import urllib.parse

import pytest
from cases import checkpoint_cases
from tools.paths import ROOT

from calm_jax import checkpoints

LOAD = """
import json, sys
from calm_jax import checkpoints
for path in sys.argv[1:]:
  try:
    params, config, about = checkpoints.load(path)
  except (FileNotFoundError, ValueError) as error:
    print(json.dumps({'error': f'{type(error).__name__}: {error}'}))
    continue
  print(json.dumps({
    'fingerprint': checkpoints.parameter_fingerprint(params),
    'layers': config.num_decoder_layers,
    'format': about['format'],
    'step': about['step'],
  }))
"""


class Bucket(http.server.BaseHTTPRequestHandler):
  """Serves `/storage/v1/b/<folder of root>/o`: objects, parts, listings."""

  root: pathlib.Path
  asked: collections.Counter

  protocol_version = 'HTTP/1.1'
  # An answer goes out whole; in parts, each would wait for an acknowledgement.
  wbufsize = -1

  def do_GET(self):
    url = urllib.parse.urlsplit(self.path)
    query = dict(urllib.parse.parse_qsl(url.query))
    match = re.fullmatch(r'/storage/v1/b/([^/]+)/o(?:/([^/]+))?', url.path)
    folder = self.root / match[1]
    if match[2] is None:
      self.asked['list'] += 1
      return self._list(folder, query)
    self.asked['read'] += 1
    return self._read(folder / urllib.parse.unquote(match[2]))

  def _read(self, path: pathlib.Path):
    if not path.is_file():
      return self._answer(404, b'{"error": {"code": 404}}')
    data, code = path.read_bytes(), 200
    wanted = re.fullmatch(
      r'bytes=(\d*)-(\d*)', self.headers.get('Range', 'bytes=-')
    )
    size = len(data)
    headers = {'X-Goog-Generation': '1'}
    if wanted[1]:
      first = int(wanted[1])
      last = min(int(wanted[2] or size - 1), size - 1)
      if first >= size:
        return self._answer(416, b'', {'Content-Range': f'bytes */{size}'})
      data, code = data[first : last + 1], 206
      headers['Content-Range'] = f'bytes {first}-{last}/{size}'
      self.asked['part'] += 1
    return self._answer(code, data, headers)

  def _list(self, folder: pathlib.Path, query: dict[str, str]):
    names = sorted(
      path.relative_to(folder).as_posix()
      for path in folder.rglob('*')
      if path.is_file()
    )
    start = query.get('startOffset', '')
    prefix = query.get('prefix', '')
    after = query.get('pageToken', '')
    left = [
      name
      for name in names
      if name.startswith(prefix) and name >= start and name > after
    ]
    # Short pages, so that there are several.
    page = left[:50]
    answer = {'items': [{'name': name, 'size': '1'} for name in page]}
    if left[50:]:
      answer['nextPageToken'] = page[-1]
    return self._answer(200, json.dumps(answer).encode())

  def _answer(self, code, data, headers=None):
    self.send_response(code)
    for name, value in (headers or {}).items():
      self.send_header(name, value)
    self.send_header('Content-Length', str(len(data)))
    self.end_headers()
    self.wfile.write(data)

  def log_message(self, *arguments):
    """Says nothing."""


@pytest.fixture
def cloud(tmp_path):
  """Yields the folder whose folders are buckets, and what was asked for."""
  handler = type(
    'Handler', (Bucket,), dict(root=tmp_path, asked=collections.Counter())
  )
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
  thread = threading.Thread(target=server.serve_forever, daemon=True)
  thread.start()
  yield tmp_path, handler.asked, f'http://127.0.0.1:{server.server_port}'
  server.shutdown()
  server.server_close()
  thread.join()


def run(address, *arguments):
  """Runs Python where Google's storage is at an address; returns it."""
  result = subprocess.run(
    [sys.executable, *arguments],
    env={
      **os.environ,
      'TENSORSTORE_GCS_HTTP_URL': address,
      'GOOGLE_AUTH_TOKEN_FOR_TESTING': 'token',
      'JAX_PLATFORMS': 'cpu',
    },
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=120,
  )
  return result


@pytest.mark.slow
def test_every_form_is_loaded_over_the_network(cloud):
  root, asked, address = cloud
  config = checkpoint_cases.SMALL
  write = checkpoint_cases.write
  bucket = root / 'bucket'
  forms = {
    'legacy': dict(form='t5x'),
    'stacked': dict(form='t5x', stacked=True),
    'orbax': dict(form='t5x_orbax'),
    'ours': dict(form='calm_jax'),
    'huggingface': dict(form='huggingface', max_file_bytes=1000),
  }
  paths = {}
  for name, options in forms.items():
    place = write(config, bucket / name, **options)
    paths[name] = pathlib.Path(place).relative_to(root).as_posix()
  assert list((bucket / 'orbax').rglob('manifest.ocdbt'))
  assert len(list((bucket / 'huggingface').glob('*.safetensors'))) > 1
  # Files that are cut or lost.
  damaged = {'cut': 'query', 'lost': 'key'}
  for name, kernel in damaged.items():
    place = pathlib.Path(write(config, bucket / name, form='t5x'))
    chunk = next(place.glob(f'*decoder.layers_0*{kernel}*/[0-9]*'))
    if name == 'cut':
      chunk.write_bytes(chunk.read_bytes()[:20])
    else:
      chunk.unlink()
    paths[name] = place.relative_to(root).as_posix()
  urls = [f'gs://{path}' for path in paths.values()]
  result = run(
    address, '-c', LOAD, *urls, 'gs://bucket/legacy', 'gs://bucket/nothing'
  )
  assert result.returncode == 0, result.stderr
  found = [json.loads(line) for line in result.stdout.splitlines()]
  loaded = dict(zip(paths, found, strict=False))
  params = checkpoints.load(root / paths['legacy']).params
  expected = checkpoints.parameter_fingerprint(params)
  for name, options in forms.items():
    assert loaded[name] == {
      'fingerprint': expected,
      'layers': config.num_decoder_layers,
      'format': options['form'],
      'step': 0 if name == 'huggingface' else 7,
    }, name
  for name, kernel in damaged.items():
    assert f'{kernel}/kernel in gs://' in loaded[name]['error']
  assert 'is missing in part or whole' in loaded['lost']['error']
  assert found[-2] == loaded['legacy']
  assert 'no checkpoint at gs://bucket/nothing' in found[-1]['error']
  assert asked['part'] > 5 and asked['list'] >= 2


@pytest.mark.slow
def test_the_mains_read_from_the_network(cloud):
  root, _, address = cloud
  config = checkpoint_cases.SMALL
  place = checkpoint_cases.write(config, root / 'bucket', form='t5x')
  url = f'gs://{pathlib.Path(place).relative_to(root).as_posix()}'
  target = root / 'out'
  result = run(
    address,
    *('-m', 'calm_jax.cli.convert', f'--source={url}'),
    *(f'--target={target}', '--to=huggingface'),
  )
  assert result.returncode == 0, result.stderr
  assert f'{url}: t5x, step 7' in result.stdout
  found, expected = (
    checkpoints.parameter_fingerprint(checkpoints.load(path).params)
    for path in (target, place)
  )
  assert found == expected


def test_run_directories_are_local():
  with pytest.raises(ValueError, match='gs://bucket/run .*copy it.*load'):
    checkpoints.load_params('gs://bucket/run')
