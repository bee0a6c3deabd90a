"""What a stream of requests gets served with: throughput and waiting."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class ServingRow:
  """One way of serving a stream of requests in a number of slots.

  Attributes:
    run: the run, in words.
    way: how requests are decoded and batched, in words.
    batch_size: slots, requests decoded together.
    steps: tokens between two looks at the slots.
    num_requests: requests that were served.
    num_tokens: emitted tokens, EOS included.
    mean_exit_layer: layers that a token used, 1..L.
    num_layers: L.
    tokens_per_second: emitted tokens over wall clock, encoder included.
    wait_mean: milliseconds between two consecutive tokens of a request, over
      all of them; tokens of one look arrive together, 0 apart.
    wait_median: their median.
    wait_99: their 99th percentile.
  """

  run: str
  way: str
  batch_size: int
  steps: int
  num_requests: int
  num_tokens: int
  mean_exit_layer: float
  num_layers: int
  tokens_per_second: float
  wait_mean: float
  wait_median: float
  wait_99: float
