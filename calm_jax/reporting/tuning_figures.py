"""Draws the front of a tuning: what candidates cost against what they lose."""

import math
from typing import Any

from calm_jax import records
from calm_jax.reporting import palette, styling

_COLOURS = ('#2c78a3', palette.ORACLE, '#3d9a6b', '#8a5fb0', palette.STATIC)


def tuning_figure(tuning: records.Tuning) -> Any:
  """Draws mean losses on the rows that screen against the time of a step.

  One row of axes per promise. Hollow marks are candidates, the line their
  front; filled ones were certified by other rows, crossed ones failed there.

  Returns:
    A matplotlib Figure.
  """
  from matplotlib.figure import Figure

  number = len(tuning.promises)
  with styling.style():
    figure = Figure(figsize=(7.0, 3.8 * number), layout='constrained')
    rows = figure.subplots(number, 1, sharex=True, squeeze=False)[:, 0]
    for place, axes in enumerate(rows):
      _draw(axes, tuning, place)
    rows[-1].set_xlabel(
      f'milliseconds per token and batch of {tuning.batch_size}'
    )
    figure.legend(
      *rows[0].get_legend_handles_labels(),
      loc='outside upper center',
      ncols=3,
      fontsize=8.5,
    )
  return figure


def _draw(axes: Any, tuning: records.Tuning, place: int) -> None:
  """Draws one promise."""
  promise = tuning.promises[place]
  candidates = tuning.candidates
  lossy = [one for one in candidates if one.screening_means]
  front = [candidates[c] for c in tuning.front]
  axes.plot(
    [one.milliseconds for one in front],
    [one.screening_means[place] for one in front],
    color='#b6bbc4',
    linewidth=1.4,
    zorder=1,
    label='front',
  )
  names = dict.fromkeys(one.policy for one in lossy)
  for colour, name in zip(_cycled(len(names)), names, strict=True):
    own = [one for one in lossy if one.policy == name]
    for certified in (False, True):
      marked = [one for one in own if one.certified is certified]
      if not marked:
        continue
      axes.plot(
        [one.milliseconds for one in marked],
        [one.screening_means[place] for one in marked],
        linestyle='none',
        marker='o',
        markersize=6,
        color=colour,
        markerfacecolor=colour if certified else 'white',
        zorder=3,
        label=_plain(name) + (', certified' if certified else ''),
      )
  failed = [one for one in lossy if one.test_means and not one.certified]
  free = [one for one in candidates if one.lossless]
  _mark(axes, failed, place, 'x', palette.EARLY, 'tested, not certified', 6)
  _mark(axes, free, place, 'D', palette.FULL, 'lossless', 5)
  _draw_chosen(axes, tuning, place)
  axes.axhline(
    promise.tolerance,
    color=palette.EARLY,
    linestyle='--',
    linewidth=1.2,
    label='promised at most',
  )
  axes.axvline(
    tuning.full_milliseconds,
    color=palette.FULL,
    linestyle=':',
    linewidth=1.4,
    label='full model',
  )
  # No wider than what is worth a look: losses far above say nothing.
  highest = max((one.screening_means[place] for one in lossy), default=0.0)
  lowest = min((one.screening_means[place] for one in lossy), default=0.0)
  top = min(highest, 4 * abs(promise.tolerance) + max(0.0, lowest))
  top = max(top, promise.tolerance)
  space = 0.08 * max(top - min(lowest, 0.0), 1e-3)
  axes.set_ylim(min(lowest, 0.0) - space, top + space)
  axes.set_ylabel(f'mean {promise.loss} loss, screening')


def _draw_chosen(axes: Any, tuning: records.Tuning, place: int) -> None:
  """Marks what was chosen, and what the paper's CALM would choose."""
  paper = [] if tuning.paper is None else [tuning.candidates[tuning.paper]]
  _mark(
    axes,
    paper,
    place,
    's',
    palette.ORACLE,
    "CALM's own choice",
    12,
    hollow=True,
  )
  chosen = [] if tuning.choice is None else [tuning.choice]
  _mark(axes, chosen, place, '*', palette.EARLY, 'chosen', 15, hollow=False)
  if tuning.choice is None:
    axes.plot(
      [tuning.full_milliseconds],
      [0.0],
      linestyle='none',
      marker='*',
      markersize=15,
      color=palette.EARLY,
      zorder=5,
      label='chosen',
    )


def _mark(axes, found, place, marker, colour, label, size, hollow=False):
  """Marks candidates; lossless ones lose nothing."""
  if not found:
    return
  losses = [
    one.screening_means[place] if one.screening_means else 0.0 for one in found
  ]
  axes.plot(
    [one.milliseconds for one in found],
    losses,
    linestyle='none',
    marker=marker,
    markersize=size,
    color=colour,
    markerfacecolor='none' if hollow else colour,
    markeredgewidth=1.6 if hollow or marker == 'x' else 0.6,
    zorder=4,
    label=label,
  )


def _cycled(number: int) -> list[str]:
  times = math.ceil(number / len(_COLOURS))
  return [*_COLOURS * times][:number]


def _plain(text: str) -> str:
  """Keeps matplotlib from reading dollars in a name as mathematics."""
  return text.replace('$', r'\$')
