"""What a certificate guarantees, in words."""

from typing import TYPE_CHECKING

from calm_jax import records
from calm_jax.calibration import bounds

if TYPE_CHECKING:
  from calm_jax.calibration.certificate import Certificate


def describe(certificate: 'Certificate') -> str:
  """Says what is guaranteed and what for, without why and without a history."""
  if certificate.index is None:
    return _nothing(certificate)
  promised = _jointly if certificate.promises else _alone
  return f'{promised(certificate)}{_of_encoder(certificate)}'


def _nothing(certificate: 'Certificate') -> str:
  tolerance = f'tolerance {certificate.tolerance:g}'
  if certificate.promises:
    each = [f'{b.name} {b.tolerance:g}' for b in certificate.promises]
    tolerance = f'the tolerances {bounds.listed(each)} together'
  return (
    f'Nothing was certified at {tolerance} and error rate '
    f'{certificate.error_rate:g}, so the full model is used (threshold 1).'
  )


def _chosen(certificate: 'Certificate') -> str:
  assert certificate.index is not None
  setting = certificate.settings[certificate.index]
  return (
    f'Certified: setting {certificate.index + 1} of '
    f'{len(certificate.settings)}, {records.setting_in_words(setting)}. '
    f'With probability at least {1 - certificate.error_rate:g} over the draw '
    f'of the {certificate.num_examples} calibration examples, '
  )


def _alone(certificate: 'Certificate') -> str:
  index = certificate.index
  assert index is not None
  low, high = certificate.loss_range
  name = certificate.context.get('loss')
  name = f'{name}, ' if name is not None else ''
  return (
    f'{_chosen(certificate)}its expected loss '
    f'({name}between {low:g} and {high:g}) on inputs like them is at most '
    f'{certificate.tolerance:g}: '
    f'P(E[loss] <= {certificate.tolerance:g}) >= '
    f'{1 - certificate.error_rate:g}. Its mean '
    f'over the calibration examples was {certificate.risks[index]:.4g}, '
    f'p = {certificate.p_values[index]:.3g} by {certificate.p_value}, tested '
    f'by {certificate.procedure}.{_of_means(certificate)}'
  )


def _jointly(certificate: 'Certificate') -> str:
  index = certificate.index
  assert index is not None
  promised = [
    f'{bound.name} (between {bound.loss_range[0]:g} and '
    f'{bound.loss_range[1]:g}) at most {bound.tolerance:g}'
    for bound in certificate.promises
  ]
  found = [
    f'{bound.name} {bound.risks[index]:.4g} (p = {bound.p_values[index]:.3g})'
    for bound in certificate.promises
  ]
  return (
    f'{_chosen(certificate)}its expected losses on inputs like them '
    f'keep all of {len(promised)} promises: {bounds.listed(promised)}. Their '
    f'means over the calibration examples were {bounds.listed(found)}, by '
    f'{certificate.p_value}; the largest p decides, tested by '
    f'{certificate.procedure}.{_of_means(certificate)}'
  )


def _of_encoder(certificate: 'Certificate') -> str:
  """Says how much of the encoder ran, where sources may leave it early."""
  means = certificate.context.get('mean_encoder_layers')
  mean = means[certificate.index] if means else None
  if mean is None:
    return ''
  return (
    f' Sources left the encoder after {mean:.2f} of '
    f'{certificate.context["num_encoder_layers"]} layers on average.'
  )


def _of_means(certificate: 'Certificate') -> str:
  """Says what a bound on a loss that may be negative does not say."""
  promised = certificate.promises or (certificate,)
  if all(bound.loss_range[0] >= 0 for bound in promised):
    return ''
  return f' {records.SIGNED_LOSS_NOTE}'
