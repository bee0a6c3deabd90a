"""Writes one self-contained HTML page about a tuning."""

import os

from calm_jax import records
from calm_jax.reporting import figures, pages, tuning_figures, tuning_tables


def render_tuning_page(tuning: records.Tuning) -> str:
  """Returns the HTML of a tuning's page."""
  import jinja2
  import markupsafe

  environment = jinja2.Environment(
    autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
  )
  figure = tuning_figures.tuning_figure(tuning)
  return environment.from_string(pages.shipped('tuning.html.jinja')).render(
    tuning=tuning,
    style=markupsafe.Markup(pages.shipped('page.css')),
    # Only what matplotlib drew is trusted; it has escaped its labels itself.
    picture=markupsafe.Markup(figures.as_svg(figure)),
    about=tuning_tables.about_tuning(tuning),
    front=tuning_tables.tuning_table(tuning),
    every=tuning_tables.tuning_table(tuning, every=True),
    context=pages.context_rows(tuning.context),
  )


def write_tuning_page(path: str | os.PathLike, tuning: records.Tuning) -> None:
  """Writes the page of a tuning, whole or not at all."""
  records.write_text(path, render_tuning_page(tuning))
