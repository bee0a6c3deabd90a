"""Settings of adaptive systems with what certificates promise of them."""

import dataclasses
from collections.abc import Mapping, Sequence

from calm_jax import calibration, decoding, records, runs
from calm_jax.benchmarks import arena_entries
from calm_jax.benchmarks.adaptive_entries import family_of
from calm_jax.benchmarks.adaptive_settings import Setting


@dataclasses.dataclass(frozen=True, eq=False)
class Entry:
  """One setting of one system.

  Attributes:
    system: the system.
    setting: its setting.
    certified: the same with its certificate and weights.
  """

  system: str
  setting: Setting
  certified: arena_entries.Entry

  @property
  def key(self) -> tuple[str, str, str]:
    """As `records.SystemRow.key`."""
    promised = ' and '.join(
      f'{one.loss} {one.tolerance:g}' for one in self.certified.promises
    )
    return self.system, self.setting.words, promised


def entries_of(
  systems: Mapping[str, Sequence[Setting]],
  run_dir: str,
  paths: Sequence[str] = (),
) -> list[Entry]:
  """Returns an entry per setting, with certificates where there are some.

  The setting of a certificate joins the system that has the same slots, or
  stands for itself by the names of its own.

  Args:
    systems: name -> settings.
    run_dir: the run of the certificates.
    paths: certificates of `calm_jax.cli.calibrate` and `calm_jax.cli.tune`.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: for a certificate that certifies nothing, or of a policy that
      cannot be made again.
  """
  found = [
    Entry(system, setting, arena_entries.Entry(system, setting.policy))
    for system, settings in systems.items()
    for setting in settings
  ]
  for path in paths:
    promised = _promised(systems, run_dir, path)
    # The bare setting is told by the one that promises something.
    found = [
      one
      for one in found
      if one.certified.certificate is not None
      or (one.system, one.setting.words) != promised.key[:2]
    ]
    found.append(promised)
  return found


def _promised(
  systems: Mapping[str, Sequence[Setting]], run_dir: str, path: str
) -> Entry:
  """Returns what a certificate is of."""
  certificate = calibration.Certificate.load(path)
  if not certificate.certified:
    raise ValueError(f'{path} certifies nothing; leave it out')
  policy = runs.policy_of(certificate, run_dir)
  weights = runs.weights_of(certificate)
  family = family_of(policy)
  system = ', '.join(
    name for name in family if name not in family_of(decoding.ComputePolicy())
  )
  words = records.setting_in_words(certificate.setting)
  described = decoding.describe(policy, {})
  for name, settings in systems.items():
    for setting in settings:
      if setting.first_layers is None and family_of(setting.policy) == family:
        system = name
        if decoding.describe(setting.policy, {}) == described:
          words = setting.words
  if weights is not None:
    words = f'{words}, in 8 bits'
  entry = arena_entries.Entry(
    f'{system}, {words}', policy, weights=weights, certificate=certificate
  )
  return Entry(system, Setting(words, policy), entry)
