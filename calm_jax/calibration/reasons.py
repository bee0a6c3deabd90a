"""Why a calibration ended where it did, in sentences for its user.

What would help is said of rows that were not used so far: whoever looks at a
result and tests again on the same rows certifies too much too often.
"""

import numpy as np

from calm_jax import records
from calm_jax.calibration import multiple_testing, p_values, sample_sizes
from calm_jax.calibration.certificate import Certificate

FRESH = 'on rows not used so far'


def explain(
  certificate: Certificate,
  p_value: p_values.PValue,
  procedure: multiple_testing.Procedure,
  losses: np.ndarray,
) -> str:
  """Says why the certificate chose its index, or none, and what would help.

  Args:
    certificate: the outcome; its `reason` is not looked at.
    p_value: the p-value it was computed with.
    procedure: the procedure that tested.
    losses: [N, J], in their units.
  """
  needed = multiple_testing.needed_tests(
    procedure, certificate.p_values, certificate.error_rate
  )
  tested = np.flatnonzero(needed)
  level = _level(procedure, certificate)
  if certificate.certified:
    return _why_no_further(certificate, tested, level)
  return _why_nothing(certificate, tested, level, p_value, losses)


def _why_no_further(certificate, tested, level) -> str:
  following = certificate.index + 1
  number = len(certificate.settings)
  if following == number:
    passed = f'All {number} settings passed' if number > 1 else 'It passed'
    if len(tested) < number:
      passed = f'The last of the {number} settings passed'
    return (
      f'{passed}, so a more aggressive one, had it been in the list, might '
      f'have passed too; try it {FRESH}.'
    )
  failed = tested[tested > certificate.index]
  if following not in failed:
    return 'No more aggressive setting that was tested passed.'
  result = _result(certificate, following, level)
  sentence = f'The next setting did not pass: {result}.'
  if len(failed) > 1:
    others = len(failed) - 1
    sentence += f' Nor did {_number_of(others, "more aggressive one")}.'
  return sentence


def _why_nothing(certificate, tested, level, p_value, losses) -> str:
  """Tells too few examples from too high a risk."""
  number = certificate.num_examples
  tolerance = certificate.tolerance
  low = certificate.loss_range[0]
  # Of signed losses, nobody expects the best possible value.
  best = 0.0 if low <= 0 < tolerance else low
  if getattr(p_value, 'for_binary_losses', False):
    best = low
  # Smallest p-value first, of equal ones the most conservative.
  nearest = min(tested, key=lambda column: certificate.p_values[column])
  result = _result(certificate, nearest, level)
  if len(tested) == 1 and nearest == 0:
    sentences = [f'The first setting did not pass: {result}.']
  elif len(tested) == 1:
    sentences = [f'The one setting tested did not pass: {result}.']
  else:
    sentences = [
      f'None of the {len(tested)} settings tested passed; the nearest: '
      f'{result}.'
    ]
  least = _required(certificate, p_value, level, best)
  too_few = least is None or number < least
  if too_few:
    sentences.append(
      f'{number} calibration examples are too few: even if every loss were '
      f'{best:g}, {FRESH} it would take {_count(least)}.'
    )
  risk = certificate.risks[nearest]
  if risk >= tolerance:
    sentences.append(
      f'Its mean loss is not below the tolerance {tolerance:g}: try more '
      f'conservative settings, or a higher tolerance, {FRESH}.'
    )
  elif not too_few:
    column = losses[:, nearest]
    needed = _required_at(certificate, p_value, level, column, risk)
    sentences.append(
      f'Its mean loss is below the tolerance {tolerance:g}, but not surely so '
      f'with {number} examples; at this mean, {FRESH}, it would take about '
      f'{_count(needed)}.'
    )
  return ' '.join(sentences)


def _result(certificate, column, level) -> str:
  share = ''
  if level != certificate.error_rate:
    share = f', of which one test gets {level:.3g}'
  return (
    f'{records.setting_in_words(certificate.settings[column])} has mean loss '
    f'{certificate.risks[column]:.4g} and p = '
    f'{certificate.p_values[column]:.3g} at error rate '
    f'{certificate.error_rate:g}{share}'
  )


def _level(procedure, certificate) -> float:
  """Returns what a first rejection takes; procedures of others may not say."""
  if not hasattr(procedure, 'level'):
    return certificate.error_rate
  return procedure.level(len(certificate.settings), certificate.error_rate)


def _required_at(certificate, p_value, level, losses, risk) -> int | None:
  """Returns the number of examples it takes at the mean that came out."""
  # For a p-value of the mean losses that all equal it do; others want to see
  # the variation, or none but 0 and 1.
  if not any(
    getattr(p_value, name, False)
    for name in ('depends_on_order', 'for_binary_losses')
  ):
    return _required(certificate, p_value, level, risk)
  low, high = certificate.loss_range
  return sample_sizes.required_of_this_kind(
    np.clip((losses - low) / (high - low), 0, 1),
    tolerance=(certificate.tolerance - low) / (high - low),
    error_rate=level,
    p_value=p_value,
  )


def _required(certificate, p_value, level, risk) -> int | None:
  """Returns the number of examples it takes, None if more than a million."""
  try:
    return sample_sizes.required_examples(
      certificate.tolerance,
      level,
      expected_risk=risk,
      power=None,
      p_value=p_value,
      loss_range=certificate.loss_range,
    )
  except ValueError:
    return None


def _count(number: int | None) -> str:
  return 'more than a million' if number is None else str(number)


def _number_of(number: int, noun: str) -> str:
  return f'the {noun}' if number == 1 else f'the {number} {noun}s'
