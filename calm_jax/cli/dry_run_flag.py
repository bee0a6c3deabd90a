"""The flag --dry_run, which jobs with gin files and those without share."""

from absl import flags

DRY_RUN = flags.DEFINE_bool(
  'dry_run', False, 'Print what would be done, then stop.'
)
