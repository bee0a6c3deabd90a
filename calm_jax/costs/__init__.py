"""What a decode costs: floating-point operations and bytes moved.

`decode_cost` adds them up for the exit layers that a decode had; `cost_of` and
`bytes_of` do so for a policy; `describe_decoding_memory` says what devices hold
meanwhile.
"""

from calm_jax.costs.accounting import Cost, decode_cost, speed_up_ceiling
from calm_jax.costs.decoding_memory import describe_decoding_memory
from calm_jax.costs.policies import BytesOf, bytes_of, cost_of

__all__ = [
  'BytesOf',
  'Cost',
  'bytes_of',
  'cost_of',
  'decode_cost',
  'describe_decoding_memory',
  'speed_up_ceiling',
]
