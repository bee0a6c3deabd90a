"""What token controllers come to, budget by budget."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class ControllerRow:
  """One budget of mean layers; losses are nats per label, of other rows.

  Attributes:
    run: the run, in words.
    budget: layers that a token may have on the mean.
    full: the model's loss.
    early_exit: of its first layers.
    uniform: of as many that lie evenly.
    random: of random routes of as many: 5, 50 and 95 % of them are below.
    picked: of the route that is best on training rows, of all these.
    picked_route: that one.
    fixed: of controllers that see no state, mean over seeds.
    fixed_spread: standard deviation over seeds; NaN of a single one.
    fixed_routes: the layers that they run, for each seed.
    controller: of controllers that see the state, mean over seeds.
    controller_spread: likewise.
    controller_layers: that they run there, on the mean.
    gain: of the state, `fixed - controller`.
    gain_error: its standard error over rows, which have labels in common.
  """

  run: str
  budget: float
  full: float
  early_exit: float
  uniform: float
  random: tuple[float, float, float]
  picked: float
  picked_route: tuple[int, ...]
  fixed: float
  fixed_spread: float
  fixed_routes: tuple[tuple[int, ...], ...]
  controller: float
  controller_spread: float
  controller_layers: float
  gain: float
  gain_error: float
