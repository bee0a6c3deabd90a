"""What a decode costs: floating-point operations and bytes moved.

`decode_cost` adds them up from the ledger that a decode kept, of any policy;
`bytes_of` the bytes alone; `describe_decoding_memory` says what devices hold
meanwhile.
"""

from calm_jax.costs.accounting import (
  BytesOf,
  Cost,
  bytes_of,
  decode_cost,
  rooms_of,
  speed_up_ceiling,
)
from calm_jax.costs.decoding_memory import describe_decoding_memory

__all__ = [
  'BytesOf',
  'Cost',
  'bytes_of',
  'decode_cost',
  'describe_decoding_memory',
  'rooms_of',
  'speed_up_ceiling',
]
