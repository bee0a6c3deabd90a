"""The certificate of a tuning, and the note that its rows were used."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from calm_jax import calibration, decoding, records
from calm_jax.calibration import p_values
from calm_jax.calibration.certificate import Certificate
from calm_jax.evaluation import tuning_words, used_rows
from calm_jax.evaluation.calibrating import encoder_layers_of
from calm_jax.evaluation.losses import ConsistencyLoss
from calm_jax.evaluation.tuning_columns import Column, tables_of
from calm_jax.evaluation.tuning_rows import Decoders
from calm_jax.processes import collectives
from calm_jax.records import decoding_contexts


def note_rows(
  tuning: records.Tuning,
  statistics: Mapping[str, Any],
  losses: Sequence[ConsistencyLoss],
  about: Mapping[str, Any],
  *,
  uses_in: str | os.PathLike | None,
  spent: str | float,
) -> records.RowHistory:
  """Notes which rows test which candidates, before any of their losses is seen.

  The rows that screened are noted as well: who calibrates on them what a tuning
  chose looks at them a second time.

  Args:
    tuning: as screened; what is tested, and in what order, is its sequence.
    statistics: promises, p-value and error rate.
    losses: the loss of each promise.
    about: what is decoded.
    uses_in: where uses are noted; None for nowhere.
    spent: as for `CalibrationPlan`.
  """
  bounds = statistics['promises']
  use = records.RowUse(
    rows=records.digest_of_rows(tuning.test_ids),
    example_ids=tuple(sorted({*tuning.test_ids, *tuning.screening_ids})),
    settings=tuple(
      {'policy': one.policy, 'setting': one.setting} for one in _noted(tuning)
    ),
    loss=losses[0].name,
    metric=losses[0].metric_name,
    tolerance=bounds[0].tolerance,
    error_rate=float(statistics['error_rate']),
    p_value=p_values.name_of(statistics['p_value']),
    procedure=statistics['procedure'].name,
    about={
      **{
        name: value
        for name, value in about.items()
        if name not in decoding_contexts.TOLD
      },
      'tuning': tuning.fingerprint,
    },
    promises=tuning.promises if len(bounds) > 1 else (),
  )
  return used_rows.history_of(
    use, uses_in, spent=spent, share=collectives.Share()
  )


def _noted(tuning: records.Tuning) -> list[records.TunedCandidate]:
  """Returns what is tested, or what was screened where nothing is."""
  tested = [tuning.candidates[place] for place in tuning.sequence]
  return tested or [one for one in tuning.candidates if not one.lossless]


def _served(tuning: records.Tuning) -> dict[str, str]:
  """Returns what serves the choice, where it is not what measured losses."""
  if tuning.depth_loop is None:
    return {}
  loop = decoding.DEPTH_LOOPS[tuning.depth_loop]
  return {'depth_loop': type(loop).__name__}


def certificate_of(
  tuning: records.Tuning,
  columns: Sequence[Column],
  decoders: Decoders,
  statistics: Mapping[str, Any],
  losses: Sequence[ConsistencyLoss],
  context: Mapping[str, Any],
) -> Certificate | None:
  """Returns an ordinary certificate, of the one setting that was chosen.

  Where nothing was certified it is of the first setting that was tested, and
  says so. None where nothing was tested or what was chosen needs none.

  Args:
    tuning: with its tests and its choice.
    columns: what the rows that test say, in the order of the sequence.
    decoders: gives what decodes with the weights of a candidate.
    statistics: promises and p-value.
    losses: the loss of each promise.
    context: kept in it: the task, the history of the rows.
  """
  choice = tuning.choice
  if not columns or (choice is not None and choice.lossless):
    return None
  place = 0 if choice is None else tuning.sequence.index(tuning.chosen)
  candidate, decoded = columns[place].candidate, columns[place].decoded
  found = calibration.calibrate_jointly(
    tables_of([columns[place]]),
    [candidate.setting],
    statistics['promises'],
    error_rate=tuning.error_rate,
    p_value=statistics['p_value'],
    context={
      'loss': losses[0].name,
      'metric': losses[0].metric_name,
      'num_layers': decoded.num_layers,
      **encoder_layers_of(
        [decoded.mean_encoder_layer], decoded.num_encoder_layers
      ),
      **decoders(candidate.weights)
      .context(candidate.policy, candidate.setting)
      .write(),
      **_served(tuning),
      **context,
      'examples': records.digest_of_rows(tuning.test_ids),
      'tuning': {
        'policy': candidate.name,
        'fingerprint': tuning.fingerprint,
        'candidates': len(tuning.candidates),
        'tested': len(columns),
        'place': place + 1,
        'seed': tuning.seed,
      },
    },
  )
  if not found.certified:
    return found
  return dataclasses.replace(found, reason=tuning_words.reason(tuning))
