"""What a tuning says: as it goes, and in one sentence when it is done."""

import math
from collections.abc import Sequence

import numpy as np

from calm_jax import calibration, records
from calm_jax.evaluation import loss_table
from calm_jax.evaluation.candidates import Candidate
from calm_jax.evaluation.losses import ConsistencyLoss
from calm_jax.evaluation.tuning_columns import Column


def of_column(column: Column, losses: Sequence[ConsistencyLoss]) -> str:
  """Returns the mean losses of a candidate in words, and its layers."""
  means = [
    f'mean {loss.name} loss {row.mean():.4f}'
    for loss, row in zip(losses, column.losses, strict=True)
  ]
  layers = loss_table.layers_in_words(
    column.decoded.mean_exit_layer,
    column.decoded.mean_layers_run,
    column.decoded.mean_encoder_layer,
  )
  return f'{", ".join(means)}, {layers}'


def of_rows(
  num_screening: int, num_tests: int, statistics: dict, error_rate: float
) -> str:
  """Says which rows do what, and whether they can certify anything."""
  line = f'{num_screening} inputs screen, {num_tests} others test'
  least = max(
    _least(bound, statistics['p_value'], error_rate)
    for bound in statistics['promises']
  )
  if num_tests < least:
    line += (
      f': too few to certify anything, which takes '
      f'{least if np.isfinite(least) else "more than a million"} even if '
      'nothing is lost; what is lossless competes all the same'
    )
  return line


def _least(bound, p_value, error_rate) -> float:
  """Returns how many rows it takes where nothing is lost."""
  low, high = bound.loss_range
  try:
    return calibration.required_examples(
      bound.tolerance,
      error_rate,
      expected_risk=0.0 if low <= 0 < bound.tolerance else low,
      power=None,
      p_value=p_value,
      loss_range=(low, high),
    )
  except calibration.TooManyExamples:
    return np.inf


def of_candidates(candidates: Sequence[Candidate]) -> str:
  """Says how many there are."""
  policies = len({one.name for one in candidates})
  lossless = sum(one.lossless for one in candidates)
  return (
    f'{len(candidates)} candidates of {policies} policies, {lossless} of them '
    'lossless'
  )


def of_screening(tuning: records.Tuning) -> str:
  """Says what is left to test."""
  if not tuning.sequence:
    return (
      'nothing to test: no candidate that might lose something is '
      f'{_enough(tuning)} as what loses nothing'
    )
  labels = [tuning.candidates[place].label for place in tuning.sequence]
  return (
    f'{len(labels)} of {len(tuning.candidates)} candidates are to be tested, '
    f'safest first: {"; ".join(labels)}'
  )


def check_compared(
  candidates: Sequence[Candidate], compared: str | None
) -> None:
  """Raises ValueError for a policy to compare that the space does not have."""
  names = list(dict.fromkeys(one.name for one in candidates))
  if compared is not None and compared not in names:
    raise ValueError(
      f'compared is {compared!r}, but the policies of the space are '
      f'{", ".join(names)}'
    )


def reason(tuning: records.Tuning) -> str:
  """Says how a certified candidate was chosen."""
  tested = [one for one in tuning.candidates if one.test_means]
  passed = len(tuning.certified)
  return (
    f'Chosen by a tuning of {len(tuning.candidates)} candidates: '
    f'{len(tuning.screening_ids)} other inputs left {len(tuning.sequence)} of '
    f'them to test, in this order: from safe to fast, each at the whole error '
    f'rate, until one fails. {len(tested)} were tested, {passed} passed, and '
    'this is the fastest of them.'
  )


def sentence(tuning: records.Tuning) -> str:
  """Says what was chosen and what holds of it, for everybody."""
  where = (
    f'at batch size {tuning.batch_size} on {tuning.context.device}, the device '
    'of this tuning'
  )
  choice = tuning.choice
  if choice is None:
    return (
      f'Decode with the full model: {_none_faster(tuning)} is faster {where}'
      f'{_of_loop(tuning)}.'
    )
  faster = (
    f'{choice.label} decodes {choice.speed_up:.2f} times as fast as the full '
    f'model {where}{_of_encoder(tuning, choice)}{_of_loop(tuning)}'
  )
  if choice.lossless:
    return f"{faster}, and its outputs are the full model's: {_of_none(tuning)}"
  promised = ' and '.join(
    f'its mean {one.loss} loss'
    f'{f" by {one.metric}" if one.metric else ""} is at most {one.tolerance:g}'
    for one in tuning.promises
  )
  signed = any(one.loss == 'signed' for one in tuning.promises)
  note = f' {records.SIGNED_LOSS_NOTE}' if signed else ''
  return (
    f'{faster}, and with probability at least {1 - tuning.error_rate:g} '
    f'{promised} on inputs like the {len(tuning.test_ids)} that tested it.'
    f'{note}'
  )


def _of_loop(tuning: records.Tuning) -> str:
  """Says which depth loop that takes, where several were to be tried."""
  if tuning.depth_loop is None:
    return ''
  return f', in the depth loop {tuning.depth_loop!r}'


def _of_encoder(tuning: records.Tuning, choice: records.TunedCandidate) -> str:
  """Says how much of the encoder ran, where not all of it."""
  if math.isnan(choice.mean_encoder_layer):
    return ''
  return (
    f', with {choice.mean_encoder_layer:.2f} of {tuning.num_encoder_layers} '
    'encoder layers per input'
  )


def _none_faster(tuning: records.Tuning) -> str:
  if any(one.lossless for one in tuning.candidates):
    return 'nothing that was certified or is lossless'
  return 'nothing that was certified'


def _enough(tuning: records.Tuning) -> str:
  return f'at least {tuning.least_gain:g} times as fast'


def _of_none(tuning: records.Tuning) -> str:
  if not tuning.sequence:
    return f'nothing that might lose something was {_enough(tuning)}.'
  return 'nothing faster was certified.'
