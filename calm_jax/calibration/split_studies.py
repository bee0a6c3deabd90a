"""The paper's protocol: calibrate on 80 % of the rows, look at the other 20 %.

What it finds is the mean loss of a few rows, not a risk. That mean scatters
around the risk, so the share of splits in which it is above the tolerance is
the exceedance of a noisy estimate: it may well be larger than the error rate
although every guarantee is kept, and smaller although one is not, as the parts
of a split are not independent given the table. `population` counts violations.
"""

import numpy as np

from calm_jax import records
from calm_jax.calibration import choices
from calm_jax.calibration import population as populations

_CALIBRATION_SHARE = 0.8


def study_splits(
  population: populations.Population,
  *,
  tolerance: float,
  statistics: choices.Statistics,
  num_splits: int = 50,
  seed: int = 0,
) -> records.SplitStudy:
  """Calibrates on random splits and measures the loss of the rest of each.

  Args:
    population: the table that is split, without replacement.
    tolerance: in the units of the losses, strictly inside their range.
    statistics: how each split is calibrated.
    num_splits: how many.
    seed: of the splits, which are the same at every tolerance.

  Raises:
    ValueError: if there are no splits, or for a tolerance outside the range.
  """
  if num_splits < 1:
    raise ValueError(f'num_splits {num_splits} must be at least 1')
  number = population.num_examples
  size = round(_CALIBRATION_SHARE * number)
  orders = np.stack(
    [
      np.random.default_rng([seed, split]).permutation(number)
      for split in range(num_splits)
    ]
  )
  chosen = choices.choose(
    population, orders[:, :size], tolerance=tolerance, statistics=statistics
  )
  test_risks = np.array(
    [
      0.0 if column < 0 else population.losses[order[size:], column].mean()
      for order, column in zip(orders, chosen, strict=True)
    ]
  )
  # Where nothing was certified nothing was promised, whatever the tolerance.
  above = population.above(test_risks, tolerance) & (chosen >= 0)
  _, layers = population.of_choices(chosen)
  return records.SplitStudy(
    tolerance=float(tolerance),
    p_value=statistics.p_value_name,
    calibration_size=size,
    test_size=number - size,
    test_risks=tuple(test_risks.tolist()),
    num_above=int(above.sum()),
    num_certified=int((chosen >= 0).sum()),
    mean_exit_layer=float(layers.mean()),
  )
