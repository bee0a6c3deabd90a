"""What a decode costs: floating-point operations and bytes moved.

`decode_cost` adds them up for the exit layers that a decode had; `cost_of` and
`bytes_of` do so for a policy.
"""

from calm_jax.costs.accounting import Cost, decode_cost, speed_up_ceiling
from calm_jax.costs.policies import BytesOf, bytes_of, cost_of

__all__ = [
  'BytesOf',
  'Cost',
  'bytes_of',
  'cost_of',
  'decode_cost',
  'speed_up_ceiling',
]
