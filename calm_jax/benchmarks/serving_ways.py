"""Ways of serving a stream of requests, from objects that there are anyway.

"An Efficient Inference Framework for Early-exit Large Language Models" (arXiv
2407.20272) walks the layers until all sequences of the batch have passed their
exit, fills the keys and values of the layers left out, and continues with the
next token, looking for new sequences before each. That is `UnrolledDepthLoop`,
which runs a layer for the whole batch while any row needs it, with
`ProjectExitState`, which fills what is left over before the token ends, in
`decode_queue` with a look after every token and a refill whenever a slot is
free. Here a sequence that has passed keeps its exit state while others go on,
so that its output is that of the request alone; what is computed is the same.
"""

import dataclasses

from calm_jax import decoding, exits
from calm_jax.interfaces import DepthLoop


@dataclasses.dataclass(frozen=True)
class Way:
  """How a stream is decoded and batched.

  Attributes:
    name: in words.
    policy: what is computed for each token.
    depth_loop: how layers are looped over.
    steps: tokens between two looks at the slots.
    refill_at: how many slots must be free before new requests are started; a
      quarter of them if None.
  """

  name: str
  policy: decoding.ComputePolicy
  depth_loop: DepthLoop
  steps: int
  refill_at: int | None


def ways(threshold: float, *, steps: int) -> tuple[Way, ...]:
  """Returns full depth and early exit, served as published and as here.

  Args:
    threshold: of the softmax margin.
    steps: tokens between two looks of our own way.
  """
  full = decoding.ComputePolicy()
  early = decoding.ComputePolicy(
    exit_rule=exits.ConfidenceExit(exits.SoftmaxMargin(), threshold),
    cache_fill=decoding.ProjectExitState(),
  )
  unrolled = decoding.UnrolledDepthLoop()
  compacting = decoding.CompactingDepthLoop()
  return (
    Way('full model, a look per token', full, unrolled, 1, 1),
    Way('full model', full, unrolled, steps, None),
    Way('until all pass (2407.20272)', early, unrolled, 1, 1),
    Way('early exit, rows compacted', early, compacting, steps, None),
    Way('early exit, unrolled', early, unrolled, steps, None),
  )
