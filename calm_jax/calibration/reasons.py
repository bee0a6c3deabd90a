"""Why a calibration ended where it did, in sentences for its user."""

from calm_jax.calibration import p_values, sample_sizes
from calm_jax.calibration.certificate import Certificate, setting_in_words


def explain(certificate: Certificate, p_value: p_values.PValue) -> str:
  """Says why the certificate chose its index, or none, and what would help.

  Args:
    certificate: the outcome; its `reason` is not looked at.
    p_value: the p-value it was computed with.
  """
  if certificate.certified:
    return _why_no_further(certificate)
  return _why_nothing(certificate, p_value)


def _why_no_further(certificate) -> str:
  following = certificate.index + 1
  if following == len(certificate.settings):
    return (
      f'All {following} settings passed, so a more aggressive one, had it been '
      'in the list, might have passed too.'
    )
  return f'The next setting did not pass: {_result(certificate, following)}.'


def _why_nothing(certificate, p_value) -> str:
  """Tells too few examples from too high a risk."""
  number = certificate.num_examples
  tolerance = certificate.tolerance
  low = certificate.loss_range[0]
  # Of signed losses, nobody expects the best possible value.
  best = 0.0 if low <= 0 < tolerance else low
  sentences = [
    f'The first setting did not pass: {_result(certificate, 0)}.',
  ]
  least = _required(certificate, p_value, best)
  too_few = least is None or number < least
  if too_few:
    sentences.append(
      f'{number} calibration examples are too few: even if every loss were '
      f'{best:g}, it would take {_count(least)}.'
    )
  risk = certificate.risks[0]
  if risk >= tolerance:
    sentences.append(
      f'Its mean loss is not below the tolerance {tolerance:g}: put more '
      'conservative settings first or raise the tolerance.'
    )
  elif not too_few:
    sentences.append(
      f'Its mean loss is below the tolerance {tolerance:g}, but not surely so '
      f'with {number} examples; at this mean it would take about '
      f'{_count(_required(certificate, p_value, risk))}.'
    )
  return ' '.join(sentences)


def _result(certificate, column) -> str:
  return (
    f'{setting_in_words(certificate.settings[column])} has mean loss '
    f'{certificate.risks[column]:.4g} and p = '
    f'{certificate.p_values[column]:.3g} at error rate '
    f'{certificate.error_rate:g}'
  )


def _required(certificate, p_value, risk) -> int | None:
  """Returns the number of examples it takes, None if more than a million."""
  try:
    return sample_sizes.required_examples(
      certificate.tolerance,
      certificate.error_rate,
      expected_risk=risk,
      p_value=p_value,
      loss_range=certificate.loss_range,
    )
  except ValueError:
    return None


def _count(number: int | None) -> str:
  return 'more than a million' if number is None else str(number)
