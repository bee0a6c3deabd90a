"""The page: complete, self-contained, and safe whatever the data say."""

import dataclasses
import re
import subprocess
import sys

import pytest
from cases import example_result, validation_cases
from tools.html_outline import Outline

from calm_jax import records, reporting

pytest.importorskip('jinja2')
pytest.importorskip('matplotlib')


@pytest.fixture(scope='module')
def page():
  return reporting.render_page(example_result.evaluation_result())


def test_the_page_holds_the_whole_evaluation(page):
  outline = Outline(page)
  text = ' '.join(' '.join(outline.texts).split())
  assert 'Certified: setting 7 of 21' in text
  assert 'within the tolerance of 0.1' in text
  assert outline.tags.count('svg') == 2
  for expected in ('3.18 of 8', '1.66x', 'copy of the source'):
    assert expected in text
  assert 'scripts/demo.sh' in text and 'checksum 0123abcd' in text


def test_layers_that_are_caught_up_are_not_hidden():
  result = example_result.evaluation_result()
  full, early, *others = result.rows
  work = {'attention': 318, 'caught_up': 102}
  work = {name: of * early.num_tokens // 100 for name, of in work.items()}
  work |= {'projections': 0, 'cycles': 0}
  early = dataclasses.replace(early, work=work)
  changed = dataclasses.replace(result, rows=(full, early, *others))
  outline = Outline(reporting.render_page(changed))
  text = ' '.join(' '.join(outline.texts).split())
  assert 'on average, 4.20 run with those caught up later' in text


def test_every_token_has_its_layer_and_confidence(page):
  result = example_result.evaluation_result()
  titles = [
    value for name, value in Outline(page).attributes if name == 'title'
  ]
  for sample in result.samples:
    for layer, confidence in zip(
      sample.early.exit_layers, sample.early.confidences, strict=True
    ):
      assert f'exit after layer {layer}, confidence {confidence:.3f}' in titles
  assert page.count('<span class="token d1') >= 2


def outside_references(page):
  """Returns what a page would fetch or run."""
  values = [
    value
    for name, value in Outline(page).attributes
    if name in ('src', 'href', 'xlink:href', 'action')
  ]
  return [
    *(value for value in values if not value.startswith('#')),
    *re.findall(r'@import|<script|url\((?!#)', page),
  ]


def test_nothing_refers_to_the_network(page):
  assert not outside_references(page)
  for reference in ('<img src="http://x">', '<style>@import "x"</style>'):
    assert outside_references(reference), 'is not noticed'


def test_data_cannot_put_markup_into_the_page():
  attack = '"><script>alert(1)</script>\'<img src=x onerror=alert(1)>'
  result = example_result.evaluation_result()

  def poison(value):
    if isinstance(value, str):
      return attack
    if isinstance(value, dict):
      return {key: poison(item) for key, item in value.items()}
    return value

  decoded = dataclasses.replace(
    result.samples[0].early,
    text=attack,
    pieces=(attack,) * len(result.samples[0].early.pieces),
  )
  sample = dataclasses.replace(
    result.samples[0],
    source=attack,
    references=(attack,),
    early=decoded,
    full=decoded,
  )
  context = records.RunContext(
    **{
      field.name: poison(getattr(result.context, field.name))
      for field in dataclasses.fields(result.context)
      if field.name != 'seeds'
    }
  )
  poisoned = dataclasses.replace(
    result,
    task=attack,
    split=attack,
    samples=(sample,),
    sample_selection=attack,
    context=context,
    rows=tuple(dataclasses.replace(row, name=attack) for row in result.rows),
    timings=tuple(
      dataclasses.replace(row, name=attack, depth_loop=attack)
      for row in result.timings
    ),
    certificate=dataclasses.replace(
      result.certificate, description=attack, measure=attack
    ),
  )
  outline = Outline(reporting.render_page(poisoned))
  assert 'script' not in outline.tags and 'img' not in outline.tags
  assert not any(name.startswith('on') for name, _ in outline.attributes)
  assert any(attack in text for text in outline.texts)


def test_a_bare_result_still_makes_a_page(tmp_path):
  result = example_result.evaluation_result(
    certificate=None, timings=(), samples=(), sweep=()
  )
  bare = dataclasses.replace(result, rows=result.rows[:1])
  path = tmp_path / 'deep' / 'page.html'
  reporting.write_page(path, bare)
  outline = Outline(path.read_text(encoding='utf-8'))
  assert outline.tags.count('svg') == 1


def test_nothing_certified_is_the_headline():
  result = example_result.evaluation_result()
  certificate = dataclasses.replace(
    result.certificate, certified=False, threshold=1.0, setting=None
  )
  page = reporting.render_page(
    dataclasses.replace(
      result,
      certificate=certificate,
      rows=tuple(row for row in result.rows if row.kind != 'certified'),
    )
  )
  assert 'Nothing is guaranteed beyond the full model' in page
  assert 'What is guaranteed' not in page


@pytest.fixture(scope='module')
def validation(tmp_path_factory):
  return validation_cases.validation(
    tmp_path_factory.mktemp('validation'),
    p_values=('hoeffding_bentkus', 'betting'),
  )


def test_a_validation_has_a_section_of_its_own(page, validation):
  with_it = reporting.render_page(
    example_result.evaluation_result(), validation
  )
  assert not outside_references(with_it)
  outline = Outline(with_it)
  text = ' '.join(' '.join(outline.texts).split())
  for expected in (
    'The guarantee, counted',
    # 2 tables x 2 p-values x (2 tolerances + 4 near risks).
    'Of 24 violation rates counted',
    'StateSimilarity, betting(seed=0)',
    'exceedance of a noisy estimate',
    '40 draws of 200 rows',
  ):
    assert expected in text
  without = Outline(page)
  assert outline.tags.count('svg') == without.tags.count('svg') + 3
  assert outline.tags.count('table') == without.tags.count('table') + 3
  # All that was there without it is there with it.
  kept = [text for text in without.texts if text.strip()]
  assert [text for text in kept if text not in outline.texts] == []


def test_a_validation_without_curves_is_shown(validation):
  bare = dataclasses.replace(
    validation,
    tables=tuple(
      dataclasses.replace(table, curve=None, near_counts=())
      for table in validation.tables
    ),
  )
  result = example_result.evaluation_result()
  outline = Outline(reporting.render_page(result, bare))
  assert outline.tags.count('svg') == 3


def test_names_in_a_validation_cannot_put_markup_into_the_page(validation):
  attack = '"><script>alert(1)</script>\'<img src=x onerror=alert(1)>'
  poisoned = dataclasses.replace(
    validation,
    procedure=attack,
    tables=tuple(
      dataclasses.replace(
        table,
        name=attack,
        task=attack,
        split=attack,
        loss=attack,
        metric=attack,
        path=attack,
      )
      for table in validation.tables
    ),
    context=dataclasses.replace(validation.context, command=attack),
  )
  outline = Outline(
    reporting.render_page(example_result.evaluation_result(), poisoned)
  )
  assert 'script' not in outline.tags and 'img' not in outline.tags
  assert not any(name.startswith('on') for name, _ in outline.attributes)
  assert any(attack in text for text in outline.texts)


def test_reporting_loads_neither_jax_nor_the_drawing_libraries():
  code = (
    'import sys, calm_jax.reporting\n'
    'loaded = {"jax", "matplotlib", "jinja2"} & set(sys.modules)\n'
    'sys.exit(str(loaded) if loaded else 0)'
  )
  subprocess.run([sys.executable, '-c', code], check=True)
