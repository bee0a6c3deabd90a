"""Is what a tuning promises kept? Tunings on draws of its own table."""

import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from calm_jax import records
from calm_jax.calibration import (
  hand_choices,
  named_p_values,
  p_values,
  tuned_choices,
  violations,
)
from calm_jax.calibration.bounds import Bound
from calm_jax.calibration.choices import Statistics
from calm_jax.calibration.population import Population
from calm_jax.records import provenance


@dataclasses.dataclass(frozen=True)
class _Study:
  """A tuning, and the population that its screening table is.

  Attributes:
    tuning: what was tuned.
    num_rows: of the population.
    bounds: one per promise.
    populations: likewise.
    candidates: C of them, that may lose something.
    statistics: p-value and error rate.
  """

  tuning: records.Tuning
  num_rows: int
  bounds: list[Bound]
  populations: list[Population]
  candidates: list[records.TunedCandidate]
  statistics: Statistics

  @classmethod
  def read(cls, folder: str | os.PathLike) -> '_Study':
    """Reads what `calm_jax.cli.tune` wrote; raises as `validate_tuning`."""
    path = os.path.join(folder, records.TUNED_NAME)
    if not os.path.exists(path):
      raise FileNotFoundError(
        f'there is no {path}; give a folder that calm_jax.cli.tune wrote'
      )
    tuning = records.read_record(path, records.Tuning)
    table = records.read_loss_table(
      os.path.join(folder, records.SCREENING_TABLE)
    )
    bounds, populations = _populations(tuning, table)
    by_key = {_key(one.policy, one.setting): one for one in tuning.candidates}
    return cls(
      tuning,
      table.num_examples,
      bounds,
      populations,
      [
        by_key[_key(setting['policy'], setting['setting'])]
        for setting in table.settings
      ],
      Statistics(
        error_rate=tuning.error_rate, p_value=_p_value(tuning.p_value)
      ),
    )

  @property
  def times(self) -> list[float]:
    """[C], of the candidates."""
    return [one.milliseconds for one in self.candidates]

  @property
  def fallback(self) -> float:
    """What the fastest takes that needs no certificate."""
    lossless = [
      one.milliseconds for one in self.tuning.candidates if one.lossless
    ]
    return min([self.tuning.full_milliseconds, *lossless])

  @property
  def options(self) -> dict[str, Any]:
    """What all choices have in common."""
    return {
      'statistics': self.statistics,
      'time_to_beat': self.fallback / self.tuning.least_gain,
    }


def validate_tuning(
  folder: str | os.PathLike,
  *,
  num_draws: int = 2000,
  draw_size: int | None = None,
  seed: int = 0,
  say: Callable[[str], None] = print,
) -> records.TunedValidation:
  """Takes the rows that screened for a population, and tunes on draws of it.

  Every draw is split, screened, ordered, tested and chosen from anew, with the
  times that were measured. Besides what was promised, each tolerance in turn is
  put just below the risk of each candidate (`violations.near_tolerances`).

  Args:
    folder: what `calm_jax.cli.tune` wrote.
    num_draws: per count.
    draw_size: rows of a draw, both halves together; as many as screened and
      tested there if None.
    seed: of the draws.
    say: gets a line per count.

  Raises:
    FileNotFoundError: if there is no tuning.
    ValueError: for a file that is none, or rows that are too few.
  """
  study = _Study.read(folder)
  tuning = study.tuning
  draw_size = draw_size or len(tuning.screening_ids + tuning.test_ids)
  by_hand = _compare(
    study, violations.draws(study.num_rows, num_draws, draw_size, seed)
  )
  say(
    f'tuned {by_hand.tuned_speed_up:.2f} times as fast as the full model on '
    f'the mean, {by_hand.num_policies} policies by hand '
    f'{by_hand.hand_speed_up:.2f}'
  )
  counts = []
  for near, promises in _promised(study.bounds, study.populations):
    found = tuned_choices.count_tuned(
      study.populations,
      study.times,
      promises,
      num_draws=num_draws,
      draw_size=draw_size,
      seed=seed,
      near_setting=near,
      **study.options,
    )
    say(
      f'{" and ".join(one.describe() for one in found.promises)}: '
      f'{found.num_violations} of {found.num_draws} tunings break it'
    )
    counts.append(found)
  return records.TunedValidation(
    error_rate=tuning.error_rate,
    p_value=tuning.p_value,
    num_rows=study.num_rows,
    candidates=tuple(one.label for one in study.candidates),
    counts=tuple(counts),
    by_hand=by_hand,
    context=provenance.run_context(
      device='cpu',
      dtype='float64',
      libraries=('numpy', 'scipy', 'calm_jax'),
      seeds={'draws': seed},
    ),
  )


def _compare(
  study: _Study, draws: Iterator[np.ndarray]
) -> records.HandComparison:
  """Tunes, and chooses by hand, on the same draws.

  By hand the settings of a policy are tested in the order of their risks in the
  whole population: nobody knows a better one.

  Args:
    study: the population, its candidates and promises.
    draws: rows [M, n] of them, in pieces.
  """
  excess = [
    (population.risks - bound.tolerance) / np.ptp(bound.loss_range)
    for population, bound in zip(study.populations, study.bounds, strict=True)
  ]
  order = np.argsort(np.max(excess, axis=0), kind='stable').tolist()
  policies = [one.policy for one in study.candidates]
  tuned, by_hand = [], []
  for rows in draws:
    arguments = study.populations, rows, study.times, study.bounds
    tuned.append(tuned_choices.choose_tuned(*arguments, **study.options))
    by_hand.append(
      hand_choices.choose_by_hand(
        *arguments, policies, order=order, **study.options
      )
    )
  both = np.concatenate(tuned), np.concatenate(by_hand)
  # -1 is the last one.
  times = np.append(study.times, study.fallback)
  speed_ups = study.tuning.full_milliseconds / times
  tuned_speed_up, hand_speed_up = (speed_ups[one].mean() for one in both)
  tuned_certified, hand_certified = ((one >= 0).mean() for one in both)
  return records.HandComparison(
    num_policies=len(set(policies)),
    num_draws=len(both[0]),
    tuned_speed_up=float(tuned_speed_up),
    hand_speed_up=float(hand_speed_up),
    least_speed_up=float(speed_ups[-1]),
    tuned_certified=float(tuned_certified),
    hand_certified=float(hand_certified),
  )


def _p_value(name: str) -> p_values.PValue:
  """Returns the p-value of a name, whatever its parameters are."""
  known = named_p_values.P_VALUES
  if (found := name.split('(')[0]) not in known:
    raise ValueError(
      f'the tuning tested with {name}, which is none of {sorted(known)}: count '
      'with calibration.count_tuned and that p-value'
    )
  return known[found]


def _populations(
  tuning: records.Tuning, table: records.LossTable
) -> tuple[list[Bound], list[Population]]:
  """Returns what was promised, and the population of each loss."""
  bounds, populations = [], []
  for promise, one in zip(tuning.promises, table.alone(), strict=True):
    low, high = (float(end) for end in one.fingerprint['loss_range'])
    bounds.append(
      Bound(
        loss=promise.loss,
        metric=promise.metric,
        tolerance=promise.tolerance,
        loss_range=(low, high),
      )
    )
    populations.append(
      Population(
        one.losses,
        one.settings,
        one.mean_exit_layers,
        num_layers=one.fingerprint.get('num_layers'),
        loss_range=(low, high),
      )
    )
  return bounds, populations


def _promised(
  bounds: list[Bound], populations: list[Population]
) -> Iterator[tuple[dict | None, list[Bound]]]:
  """Yields what is promised, and what is barely too much for a candidate."""
  yield None, bounds
  for place, (bound, population) in enumerate(
    zip(bounds, populations, strict=True)
  ):
    for setting, tolerance in violations.near_tolerances(population):
      changed = dataclasses.replace(bound, tolerance=tolerance)
      yield setting, [*bounds[:place], changed, *bounds[place + 1 :]]


def _key(policy: str, setting: float | dict) -> str:
  return json.dumps([policy, records.to_jsonable(setting)], sort_keys=True)
