"""Inputs made to delay exits: how much can a stranger make us compute?

Three kinds, from real inputs of the same lengths: random tokens, shuffled
tokens, and tokens searched for in the manner of SAME (arXiv 2305.12228), which
perturbs inputs of multi-exit models step by step so that no exit is confident.
A search (`delaying_searches`) says what is tried next; here it is decoded, and
what takes more goes on. Everything follows from its seed.
"""

from collections.abc import Callable, Sequence

import numpy as np

from calm_jax import checks
from calm_jax.evaluation.decoded_dataset import DecodedDataset
from calm_jax.evaluation.delaying_searches import Climb, Search, Sources

Decode = Callable[[Sources], DecodedDataset]
Cost = Callable[[DecodedDataset], np.ndarray]


def random_inputs(
  sources: Sequence[np.ndarray], token_ids: np.ndarray, *, seed: int
) -> Sources:
  """Returns inputs of the same lengths whose tokens are drawn evenly.

  Args:
    sources: int [S] each, EOS at the end, which stays.
    token_ids: int [C], what to draw from.
    seed: of the draws.
  """
  rng = np.random.default_rng(seed)
  return [
    np.append(rng.choice(token_ids, len(source) - 1), source[-1:])
    for source in sources
  ]


def shuffled_inputs(sources: Sequence[np.ndarray], *, seed: int) -> Sources:
  """Returns the inputs with their tokens in a random order, EOS at the end."""
  rng = np.random.default_rng(seed)
  return [
    np.append(rng.permutation(source[:-1]), source[-1:]) for source in sources
  ]


def delayed_inputs(
  sources: Sequence[np.ndarray],
  search: Search,
  decode: Decode,
  cost: Cost,
  *,
  num_rounds: int,
  variants: int,
  seed: int,
) -> Sources:
  """Searches near real inputs for inputs that cost more.

  In every round the search proposes variants of each input; the dearest goes on
  if it is dearer than the input itself. An input costs num_rounds * variants
  evaluations and one, whatever the search: what it computes by itself takes the
  place of variants (`Search.evaluations`).

  Args:
    sources: N inputs, int [S] each, EOS at the end, which stays.
    search: what proposes variants.
    decode: from inputs to their outputs; called once with the N inputs, then
      with a round's variants of them.
    cost: from outputs to what each of them costs, float [n].
    num_rounds: how often an input may be changed, at least 0.
    variants: evaluations per round, at least 1.
    seed: of the draws.

  Returns:
    N inputs of the same lengths, none cheaper than it was.

  Raises:
    ValueError: for numbers that are not whole or too small, and for inputs
      without a token to replace.
  """
  checks.check_whole(num_rounds, 'num_rounds', low=0)
  checks.check_whole(variants, 'variants', low=1)
  tried = variants - search.evaluations
  if tried < 1:
    raise ValueError(
      f'variants {variants} leaves {tried} inputs to try per round beside the '
      f'{search.evaluations} evaluations that the search takes by itself; give '
      f'at least {search.evaluations + 1}'
    )
  for number, source in enumerate(sources):
    if len(source) < 2:
      raise ValueError(
        f'input {number} has {len(source)} tokens; leave out inputs without a '
        'token before EOS'
      )
  rng = np.random.default_rng(seed)
  climbs = [Climb(np.array(source)) for source in sources]
  _follow(climbs, [[climb.best] for climb in climbs], decode, cost)
  for _ in range(num_rounds):
    trials = search.variants(climbs, tried, rng)
    _follow(climbs, trials, decode, cost)
  return [climb.best for climb in climbs]


def _follow(climbs, trials: Sequence[Sources], decode, cost) -> None:
  """Decodes equally many trials of every input, and goes on from the best."""
  number = len(trials[0])
  decoded = decode([trial for those in trials for trial in those])
  costs = np.asarray(cost(decoded), float).reshape(len(climbs), number)
  for row, dearest in enumerate(costs.argmax(axis=1)):
    place = row * number + dearest
    climbs[row].offer(
      trials[row][dearest],
      costs[row, dearest],
      tokens=decoded.tokens[place],
      exit_layers=decoded.exit_layers[place],
    )
