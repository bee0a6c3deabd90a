"""How large small twins are, and how often each block runs in training."""

import dataclasses

from calm_jax import checks


@dataclasses.dataclass(frozen=True, kw_only=True)
class TwinShape:
  """Small twins as they are trained.

  Attributes:
    hidden_units: U, of each twin; a 16th of the model's in Duo-LLM (arXiv
      2410.10846).
    twin_rate: how probable a twin is at a token and layer where a feed-forward
      runs, in (0, 1].
    none_rate: how probable it is that none does, in [0, 1).
  """

  hidden_units: int = 32
  twin_rate: float = 0.5
  none_rate: float = 0.1

  def __post_init__(self):
    """Raises ValueError for hidden units below 1, or rates that are none."""
    checks.check_whole(self.hidden_units, 'hidden_units of small twins', low=1)
    for name in ('twin_rate', 'none_rate'):
      rate = getattr(self, name)
      number = isinstance(rate, int | float) and not isinstance(rate, bool)
      if not number or not 0.0 <= rate <= 1.0:
        raise ValueError(
          f'{name} of small twins is {rate!r}; give a number in [0, 1]'
        )
    if not self.twin_rate or self.none_rate == 1:
      raise ValueError(
        f'with twin_rate {self.twin_rate} and none_rate {self.none_rate} no '
        'twin ever runs in training; give a twin_rate above 0 and a none_rate '
        'below 1'
      )
