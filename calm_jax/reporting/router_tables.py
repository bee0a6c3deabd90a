"""Renders how a router does, beside a uniform depth."""

from calm_jax import records
from calm_jax.reporting import tables


def router_table(evaluation: records.RouterEvaluation) -> tables.Table:
  """Returns one row per mean depth, at the lowest threshold that gives it."""
  shown = {depth.mean_layers: depth for depth in evaluation.depths}
  rows = tuple(
    (
      tables.number(depth.threshold, 2),
      tables.number(depth.mean_layers, 2),
      *(
        tables.number(100 * share, 1)
        for share in (
          depth.differing,
          depth.uniform_differing,
          depth.kept,
          depth.uniform_kept,
        )
      ),
    )
    for depth in shown.values()
  )
  return tables.Table(
    header=(
      'threshold',
      'mean layers',
      'differing %',
      'uniform',
      'kept %',
      'uniform',
    ),
    rows=rows,
    notes=(
      f'of {evaluation.num_requests:,} requests, '
      f'{evaluation.num_tokens:,} tokens, teacher forced, of '
      f'{evaluation.num_layers} layers.',
      "differing: tokens that are not the full model's; kept: requests of "
      f'which at most {100 * evaluation.slack:g} % of the tokens differ, at '
      'this depth and at all deeper ones.',
      'uniform: where everybody has the mean depth.',
      'the smallest depths that keep each request have the mean '
      f'{evaluation.needed_layers:.2f}.',
    ),
  )


def render_router_text(evaluation: records.RouterEvaluation) -> str:
  """Renders the evaluation for a terminal."""
  title = (
    f'router, slack {evaluation.slack:g}, {evaluation.steps:,} steps, '
    f'{evaluation.task} {evaluation.split}'
  )
  text = tables.with_notes(router_table(evaluation), tables.as_text, '{}')
  return f'{title}\n\n{text}'
