"""Several processes that run one job: they meet, compare notes, watch out.

Before JAX connects them, all processes of a job meet at the coordinator's
address (`roll_call`), say what they have (`reports`), and start only if it is
the same everywhere. The connections stay open (`watch`), so that the end of one
process is known to the others at once. Plain sockets, no JAX: what JAX does
about a process that is missing or different is to wait and then abort.
"""

from calm_jax.processes.meeting.directories import Mark, not_shared
from calm_jax.processes.meeting.joiner import Refused, join
from calm_jax.processes.meeting.membership import Membership
from calm_jax.processes.meeting.reports import Report, disagreements
from calm_jax.processes.meeting.roll_call import hold
from calm_jax.processes.meeting.watch import Ending, Watch

__all__ = [
  'Ending',
  'Mark',
  'Membership',
  'Refused',
  'Report',
  'Watch',
  'disagreements',
  'hold',
  'join',
  'not_shared',
]
