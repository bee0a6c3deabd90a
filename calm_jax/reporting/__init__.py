"""Result files to tables, figures, pages and terminal output.

Reads the records of `calm_jax.records` and never JAX. matplotlib and Jinja are
loaded only when a figure or a page is made; tables and the terminal need
neither.
"""

from calm_jax.reporting.arena_figures import arena_figure
from calm_jax.reporting.classifier_tables import (
  classifier_table,
  render_classifier_markdown,
  render_classifier_text,
)
from calm_jax.reporting.encoder_exit_figures import encoder_exit_figure
from calm_jax.reporting.figures import (
  as_svg,
  exit_layer_figure,
  quality_figure,
  save_figure,
)
from calm_jax.reporting.gate_tables import (
  gate_layers_table,
  gate_table,
  render_gate_text,
)
from calm_jax.reporting.measure_figures import measures_figure
from calm_jax.reporting.oracle_figures import oracle_figure
from calm_jax.reporting.pages import render_page, write_page
from calm_jax.reporting.pieces import shown
from calm_jax.reporting.router_tables import render_router_text, router_table
from calm_jax.reporting.serving_figures import serving_figure
from calm_jax.reporting.speed_tables import (
  fastest_rows,
  render_speed_markdown,
  speed_table,
)
from calm_jax.reporting.system_figures import system_figure
from calm_jax.reporting.tables import (
  certified_sentences,
  comparison_table,
  render_markdown,
  render_text,
  timing_table,
)
from calm_jax.reporting.terminal import (
  colour_token,
  colour_tokens,
  legend,
  render_output,
  supports_colour,
)
from calm_jax.reporting.token_figure import token_figure
from calm_jax.reporting.training_curves import loss_figure
from calm_jax.reporting.tuning_figures import tuning_figure
from calm_jax.reporting.tuning_pages import (
  render_tuning_page,
  write_tuning_page,
)
from calm_jax.reporting.tuning_tables import (
  choices_table,
  render_tuned_validation,
  render_tuning_text,
  tuning_table,
)
from calm_jax.reporting.validation_figures import (
  depth_figure,
  is_timed,
  risk_figure,
  speed_figure,
  violation_figure,
)
from calm_jax.reporting.validation_tables import (
  is_joint,
  render_validation_markdown,
  render_validation_text,
)

__all__ = [
  'arena_figure',
  'as_svg',
  'certified_sentences',
  'choices_table',
  'classifier_table',
  'colour_token',
  'colour_tokens',
  'comparison_table',
  'depth_figure',
  'encoder_exit_figure',
  'exit_layer_figure',
  'fastest_rows',
  'gate_layers_table',
  'gate_table',
  'is_joint',
  'is_timed',
  'legend',
  'loss_figure',
  'measures_figure',
  'oracle_figure',
  'quality_figure',
  'render_classifier_markdown',
  'render_classifier_text',
  'render_gate_text',
  'render_markdown',
  'render_output',
  'render_page',
  'render_router_text',
  'render_speed_markdown',
  'render_text',
  'render_tuned_validation',
  'render_tuning_page',
  'render_tuning_text',
  'render_validation_markdown',
  'render_validation_text',
  'risk_figure',
  'router_table',
  'save_figure',
  'serving_figure',
  'shown',
  'speed_figure',
  'speed_table',
  'supports_colour',
  'system_figure',
  'timing_table',
  'token_figure',
  'tuning_figure',
  'tuning_table',
  'violation_figure',
  'write_page',
  'write_tuning_page',
]
