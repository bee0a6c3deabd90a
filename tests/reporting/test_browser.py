"""The page in a real browser: drawn, printable, and without a request.

Skipped where no browser is installed. The pictures are looked at by their
pixels only; a person should look at one now and then.
"""

import dataclasses
import http.server
import os
import re
import shutil
import signal
import subprocess
import threading

import numpy as np
import pytest
from cases import example_result, validation_cases
from tools.html_outline import Outline

from calm_jax import records
from calm_jax.cli import report

pytest.importorskip('jinja2')
matplotlib = pytest.importorskip('matplotlib')

BROWSER = next(
  filter(
    None,
    map(
      shutil.which,
      ('chromium', 'chromium-browser', 'google-chrome', 'chrome'),
    ),
  ),
  None,
)
pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(BROWSER is None, reason='there is no Chromium or Chrome'),
]
FLAGS = (
  '--headless --no-sandbox --disable-gpu --disable-quic --no-first-run '
  '--disable-background-networking --disable-component-update --disable-sync '
  '--hide-scrollbars --no-pdf-header-footer'
).split()


def browse(folder, *arguments):
  """Runs the browser once, with a profile of its own."""
  process = subprocess.Popen(
    [BROWSER, *FLAGS, f'--user-data-dir={folder / "profile"}', *arguments],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    # It starts processes of its own, which a timeout must end too.
    start_new_session=True,
  )
  try:
    output, errors = process.communicate(timeout=120)
  except subprocess.TimeoutExpired:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    raise
  assert process.returncode == 0, errors
  return output


@pytest.fixture(scope='module')
def page(tmp_path_factory):
  """Returns the path of a page with everything in it."""
  folder = tmp_path_factory.mktemp('page')
  records.write_json(
    folder / 'evaluation' / 'result.json', example_result.evaluation_result()
  )
  validation_cases.validation(folder, output_dir=str(folder / 'calibration'))
  return report.run(str(folder))


def test_the_page_is_drawn(page, tmp_path):
  picture = tmp_path / 'page.png'
  browse(
    tmp_path,
    '--window-size=1100,4600',
    f'--screenshot={picture}',
    f'file://{page}',
  )
  from matplotlib import image

  pixels = image.imread(str(picture))[..., :3]
  assert pixels.shape[:2] == (4600, 1100)
  # No band of the page is empty, down to where it ends.
  dark = (pixels.min(axis=2) < 0.6).mean(axis=1)
  written = np.flatnonzero(dark > 0)
  assert written[0] < 100
  assert np.diff(written).max() < 150
  # The colours of the exit layers are there, shallow, middle and deep.
  seen = set(map(tuple, (255 * pixels[::3, ::3]).round().reshape(-1, 3)))
  assert {(223, 243, 228), (38, 38, 89)} <= seen
  assert len(seen) > 100


def test_a_browser_finds_every_token_with_its_confidence(page, tmp_path):
  """In the document that the browser made of the file."""
  document = browse(tmp_path, '--dump-dom', f'file://{page}')
  outline = Outline(document)
  titles = [value for name, value in outline.attributes if name == 'title']
  result = example_result.evaluation_result()
  for sample in result.samples:
    for layer, confidence in zip(
      sample.early.exit_layers, sample.early.confidences, strict=True
    ):
      assert f'exit after layer {layer}, confidence {confidence:.3f}' in titles
  assert outline.tags.count('svg') == 5


def test_the_page_prints(page, tmp_path):
  path = tmp_path / 'page.pdf'
  browse(tmp_path, f'--print-to-pdf={path}', f'file://{page}')
  content = path.read_bytes()
  assert content.startswith(b'%PDF-')
  # An A4 or letter page each, and no more of them than there is to say.
  pages = re.findall(rb'/Type\s*/Page\b', content)
  assert 3 <= len(pages) <= 8


def test_the_page_asks_for_nothing(page, tmp_path):
  """Served by a server that hears of every request the page makes."""
  asked = []
  with open(page, 'rb') as file:
    content = file.read()

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      asked.append(self.path)
      self.send_response(200)
      self.send_header('Content-Type', 'text/html; charset=utf-8')
      self.send_header('Content-Length', str(len(content)))
      self.end_headers()
      self.wfile.write(content)

    def log_message(self, *arguments):
      del arguments

  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
      address = f'http://127.0.0.1:{server.server_port}/page'
      browse(
        tmp_path,
        '--window-size=1100,2200',
        f'--screenshot={tmp_path / "page.png"}',
        address,
      )
    finally:
      server.shutdown()
      thread.join()
  # A browser asks for an icon by itself.
  assert [path for path in asked if path != '/favicon.ico'] == ['/page']
  text = content.decode('utf-8')
  assert not re.search(r'(?:src|href)\s*=\s*["\']?\s*(?:https?:)?//', text)


MEASURE = """<script>document.title = Array.from(
  document.querySelectorAll('.scroll'), one => one.scrollWidth - one.clientWidth
).join();</script></body>"""


@pytest.mark.parametrize('width', [1200, 1000])
def test_no_table_needs_a_scroll_bar(tmp_path, width):
  """With more metrics and longer names than pages mostly have."""
  result = example_result.evaluation_result()
  rows = tuple(
    dataclasses.replace(
      row,
      name=f'{row.name}, SoftmaxMargin, DeferredExitState, PrunedVocabulary',
      quality={**row.quality, 'rouge_1': 43.21, 'rouge_2': 21.34},
    )
    for row in result.rows
  )
  records.write_json(
    tmp_path / 'evaluation' / 'result.json',
    dataclasses.replace(result, rows=rows),
  )
  validation_cases.validation(
    tmp_path, output_dir=str(tmp_path / 'calibration')
  )
  with open(report.run(str(tmp_path)), encoding='utf-8') as file:
    text = file.read()
  measured = tmp_path / 'measured.html'
  measured.write_text(text.replace('</body>', MEASURE), encoding='utf-8')
  document = browse(
    tmp_path, f'--window-size={width},800', '--dump-dom', f'file://{measured}'
  )
  (found,) = re.findall('<title>(.*?)</title>', document)
  assert len(found.split(',')) >= 5
  assert set(found.split(',')) == {'0'}, found
