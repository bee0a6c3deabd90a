"""Inputs made to delay exits: how much can a stranger make us compute?

Three kinds, from real inputs of the same lengths: random tokens, shuffled
tokens, and tokens searched for in the manner of SAME (arXiv 2305.12228), which
perturbs inputs of multi-exit models step by step so that no exit is confident.
Here the search sees what a client sees: it replaces one token after the other,
decodes, and keeps what takes more layers. Everything follows from its seed.
"""

from collections.abc import Callable, Sequence

import numpy as np

from calm_jax import checks

Sources = list[np.ndarray]
Costs = Callable[[Sources], np.ndarray]


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
  token_ids: np.ndarray,
  costs: Costs,
  *,
  num_rounds: int,
  variants: int,
  seed: int,
) -> Sources:
  """Searches near real inputs for inputs that cost more.

  In every round each input gets variants with one token replaced, at a place
  and by a token that are drawn; the dearest goes on if it is dearer than the
  input itself. An input costs num_rounds * variants trial decodes and one.

  Args:
    sources: N inputs, int [S] each, EOS at the end, which stays.
    token_ids: int [C], what may be put in.
    costs: from inputs to what each of them costs, float [n]; called once with
      the N inputs, then with N * variants of them.
    num_rounds: how often an input may be changed, at least 0.
    variants: trials per round, at least 1.
    seed: of the draws.

  Returns:
    N inputs of the same lengths, none cheaper than it was.

  Raises:
    ValueError: for numbers that are not whole or too small, and for inputs
      without a token to replace.
  """
  checks.check_whole(num_rounds, 'num_rounds', low=0)
  checks.check_whole(variants, 'variants', low=1)
  for number, source in enumerate(sources):
    if len(source) < 2:
      raise ValueError(
        f'input {number} has {len(source)} tokens; leave out inputs without a '
        'token before EOS'
      )
  rng = np.random.default_rng(seed)
  best = [np.array(source) for source in sources]
  best_costs = np.asarray(costs(best))
  for _ in range(num_rounds):
    trials = [
      _replace_one(source, token_ids, rng)
      for source in best
      for _ in range(variants)
    ]
    trial_costs = np.asarray(costs(trials)).reshape(-1, variants)
    for row, dearest in enumerate(trial_costs.argmax(axis=1)):
      if trial_costs[row, dearest] > best_costs[row]:
        best[row] = trials[row * variants + dearest]
        best_costs[row] = trial_costs[row, dearest]
  return best


def _replace_one(source, token_ids, rng) -> np.ndarray:
  """Returns a copy with another token somewhere before EOS."""
  changed = source.copy()
  changed[rng.integers(len(source) - 1)] = rng.choice(token_ids)
  return changed
