"""Writes one self-contained HTML page about an evaluation.

The page says what is guaranteed, shows the table and the figures, how often the
guarantee was broken when that was counted, and sets outputs token by token in
the colours of their exit layers, worst first. All text from data is escaped by
Jinja; styles and figures are inside the page, so that it can be mailed,
archived and printed. Template and styles are page.html.jinja and page.css;
Jinja is loaded when a page is made.
"""

import difflib
import importlib.resources
import math
import os
from typing import Any

from calm_jax import records
from calm_jax.reporting import (
  figures,
  palette,
  pieces,
  tables,
  validation_figures,
  validation_tables,
)

_MOST_REFERENCES = 3


def render_page(
  result: records.EvaluationResult,
  validation: records.Validation | None = None,
) -> str:
  """Returns the HTML of an evaluation's page.

  Args:
    result: the evaluation.
    validation: what `calm_jax.cli.validate` counted, for a section of its own.
  """
  import jinja2
  import markupsafe

  environment = jinja2.Environment(
    autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
  )
  return environment.from_string(shipped('page.html.jinja')).render(
    result=result,
    style=markupsafe.Markup(shipped('page.css')),
    depth_style=markupsafe.Markup(_depth_style(result.num_layers)),
    facts=_facts(result),
    realised=tables.realised_consistency(result),
    comparison=tables.comparison_table(result),
    strips=[_strip(row) for row in result.rows],
    timing=tables.timing_table(result),
    figures=_drawings(_figures(result)),
    validation=_validation(validation),
    samples=[_sample(sample) for sample in result.samples],
    context=context_rows(result.context),
  )


def shipped(name: str) -> str:
  """Returns the text of a file that lies beside this module."""
  files = importlib.resources.files('calm_jax.reporting')
  return files.joinpath(name).read_text(encoding='utf-8')


def write_page(
  path: str | os.PathLike,
  result: records.EvaluationResult,
  validation: records.Validation | None = None,
) -> None:
  """Writes the page of an evaluation, whole or not at all."""
  records.write_text(path, render_page(result, validation))


def _drawings(figures_with_captions) -> list[dict[str, Any]]:
  """Returns figures as the template wants them."""
  import markupsafe

  return [
    # Only what matplotlib drew is trusted; it has escaped its labels itself.
    {'svg': markupsafe.Markup(figures.as_svg(figure)), 'caption': caption}
    for figure, caption in figures_with_captions
  ]


def _figures(result):
  """Returns the figures that the result has the numbers for."""
  drawn = []
  if any(result.primary_metric in row.quality for row in result.rows):
    drawn.append(
      (
        figures.quality_figure(result),
        f'{tables.metric_name(result.primary_metric)} against the decoder '
        'layers used per token.',
      )
    )
  if any(row.kind in ('certified', 'early_exit') for row in result.rows):
    drawn.append(
      (
        figures.exit_layer_figure(result),
        'Share of the decoded tokens that left after each layer.',
      )
    )
  return drawn


def _validation(
  validation: records.Validation | None,
) -> dict[str, Any] | None:
  """Returns what was counted, as the template wants it."""
  if validation is None:
    return None
  drawn = []
  if any(table.curve is not None for table in validation.tables):
    drawn += [
      (
        validation_figures.risk_figure(validation),
        'Risk of what is certified against the tolerance: mean and 5 to 95 % '
        'of the draws. Below the dashed line is promised.',
      ),
      (
        validation_figures.depth_figure(validation),
        'Layers per token of what is certified against the tolerance.',
      ),
    ]
  if validation_figures.is_timed(validation):
    drawn.append(
      (
        validation_figures.speed_figure(validation),
        'Measured speed-up of what is certified against the tolerance.',
      )
    )
  if not validation_tables.is_joint(validation):
    drawn.append(
      (
        validation_figures.violation_figure(validation),
        'Violation rates with their 95 % intervals, also just below the risk '
        'of each setting.',
      )
    )
  return {
    'about': validation_tables.about(validation),
    'verdict': validation_tables.verdict(validation),
    'sections': validation_tables.sections(validation),
    'figures': _drawings(drawn),
    'command': validation.context.command,
  }


def _facts(result) -> list[dict[str, str]]:
  """Returns the few numbers at the head of the page."""
  facts = []
  certificate = result.certificate
  if certificate is not None and certificate.certified:
    value, setting = certificate.threshold, certificate.setting
    if isinstance(setting, dict) and len(setting) > 1:
      value = None
    facts.append(
      {
        'value': records.setting_in_words(certificate.setting)
        if value is None
        else f'{value:g}',
        'words': f'certified threshold ({certificate.measure}), '
        + ', '.join(
          f'{one.loss} tolerance {one.tolerance:g}'
          for one in certificate.losses
        ),
      }
    )
  early = tables.early_exit_row(result)
  if early is not None:
    facts.append(
      {
        'value': f'{early.mean_exit_layer:.2f} of {result.num_layers}',
        'words': 'decoder layers per token on average' + _more_run(early),
      }
    )
    if math.isfinite(early.mean_encoder_layer):
      facts.append(
        {
          'value': f'{early.mean_encoder_layer:.2f} of '
          f'{result.num_encoder_layers}',
          'words': 'encoder layers per input on average',
        }
      )
    facts.append(
      {
        'value': f'{early.textual_consistency:.3f}',
        'words': "mean distance to the full model's outputs",
      }
    )
    facts.extend(
      {
        'value': f'{row.speed_up:.2f}x',
        'words': f'wall-clock speed-up at batch {row.batch_size}',
      }
      for row in result.timings
      if row.name == early.name and math.isfinite(row.speed_up)
    )
  return facts


def _more_run(row: records.PolicyRow) -> str:
  """Says how many layers ran in all, where not those below the exits."""
  if row.layers_run < row.mean_exit_layer - 0.005:
    return f', {row.layers_run:.2f} run, the others left out'
  if not row.layers_run > row.mean_exit_layer + 0.005:
    return ''
  return f', {row.layers_run:.2f} run with those caught up later'


def _strip(row: records.PolicyRow) -> dict[str, Any] | None:
  """Returns the histogram of a row as parts of a bar."""
  if not row.num_tokens:
    return None
  shares = [100 * count / row.num_tokens for count in row.exit_layer_histogram]
  return {
    'title': ', '.join(
      f'layer {layer}: {share:.1f} %' for layer, share in enumerate(shares, 1)
    ),
    'parts': [
      {'exit_layer': layer, 'percent': f'{share:.3f}'}
      for layer, share in enumerate(shares, 1)
      if share
    ],
  }


def _sample(sample: records.SampleOutput) -> dict[str, Any]:
  """Returns one sample as the template wants it."""
  layers = sample.early.exit_layers
  early_differs, full_differs = _differences(
    sample.early.pieces, sample.full.pieces
  )
  return {
    'loss': f'{sample.loss:.3f}',
    'mean_exit_layer': f'{sum(layers) / max(len(layers), 1):.2f}',
    'encoder_exit_layer': sample.early.encoder_exit_layer,
    'source': sample.source,
    'references': sample.references[:_MOST_REFERENCES],
    'early': _tokens(sample.early, early_differs),
    'full': [
      token
      for token in _tokens(sample.full, full_differs)
      if token['text'] != pieces.END
    ],
    'same': sample.full.tokens == sample.early.tokens,
  }


def _differences(
  early: tuple[str, ...], full: tuple[str, ...]
) -> tuple[list[bool], list[bool]]:
  """Says of the pieces of two outputs which ones the other has not."""
  marks = [True] * len(early), [True] * len(full)
  matcher = difflib.SequenceMatcher(a=early, b=full, autojunk=False)
  for start, other_start, size in matcher.get_matching_blocks():
    marks[0][start : start + size] = [False] * size
    marks[1][other_start : other_start + size] = [False] * size
  return marks


def _tokens(
  output: records.DecodedText, differs: list[bool]
) -> list[dict[str, Any]]:
  """Returns the tokens of an output with what to show of each."""
  tokens = []
  for piece, exit_layer, confidence, different in zip(
    output.pieces, output.exit_layers, output.confidences, differs, strict=True
  ):
    title = f'exit after layer {exit_layer}'
    if math.isfinite(confidence):
      title += f', confidence {confidence:.3f}'
    tokens.append(
      {
        'text': pieces.as_text(piece),
        'exit_layer': exit_layer,
        'opens_word': pieces.opens_word(piece),
        'differs': different,
        'title': title,
      }
    )
  return tokens


def _depth_style(num_layers: int) -> str:
  """Returns the style classes d1..dL of the exit layers."""
  return '\n'.join(
    f'.d{layer} {{ background: {palette.depth_colour(layer, num_layers)}; '
    f'color: {palette.text_colour(layer, num_layers)}; }}'
    for layer in range(1, num_layers + 1)
  )


def context_rows(context: records.RunContext) -> list[tuple[str, str]]:
  """Returns how the result was obtained, as names and texts."""
  rows = [
    ('device', context.device),
    ('machine', context.machine),
    ('dtype', context.dtype),
    ('versions', _listed(context.versions)),
    ('seeds', _listed(context.seeds)),
    ('command', context.command),
    ('created', context.created),
    *((name, str(value)) for name, value in context.details.items()),
  ]
  return [(name, value) for name, value in rows if value]


def _listed(values: dict[str, Any]) -> str:
  return ', '.join(f'{name} {value}' for name, value in values.items())
