"""The rows of the oracle benchmarks: budgets, and who does best."""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class OracleRow:
  """One budget of mean layers, by one score of one kind of outputs.

  A route is a set of layers that run for all tokens of an output. Scores are
  means over the inputs, in [0, 1], higher is better.

  Attributes:
    run: the run, in words.
    score: 'quality', the similarity to the references, or 'consistency', that
      to the full model's greedy output.
    decoding: 'greedy', one output for each route and input, or 'sampled'.
    metric: of both.
    budget: mean layers that an input may have, 1..L.
    full: the full model's score.
    early_exit: of the first so many layers; NaN where not decoded.
    uniform: of as many that lie evenly; NaN where not decoded.
    random: of random routes of as many: the 5 %, 50 % and 95 % quantile.
    single: of the one route of at most so many layers that is best for all
      inputs together; of sampled outputs chosen by one half and judged by the
      other.
    mix: of the best blind mix: some inputs, whichever they are, by one route
      and the others by a deeper one; chosen and judged like `single`.
    oracle: of the best route for each input, by the scores it was chosen by;
      of sampled outputs those of a half.
    held_out: the same routes by the other half; NaN for greedy outputs.
    gain_error: standard error of held_out - mix over the inputs.
    luck: what an oracle gains over the best blind mix after what routes are to
      single inputs was dealt out to others, so that it gains by luck.
    mean_layers: of the oracle's routes.
    matches_full: the least mean layers with the full model's score: for greedy
      outputs of the oracle, for sampled ones of the least budget at which the
      other half has it; NaN if none.
  """

  run: str
  score: str
  decoding: str
  metric: str
  budget: float
  full: float
  early_exit: float
  uniform: float
  random: tuple[float, float, float]
  single: float
  mix: float
  oracle: float
  held_out: float
  gain_error: float
  luck: float
  mean_layers: float
  matches_full: float


@dataclasses.dataclass(frozen=True)
class TwinOracleRow:
  """One budget, on the tokens that were scored.

  Scores are mean log-probabilities of a token's label in nats, at most 0.

  Attributes:
    run: the run, in words.
    budget: feed-forward blocks that a token may have on the mean, in those of
      the model, 0..L.
    full: the model's score.
    single: of the one pattern within the budget that is best for all tokens.
    pattern: that one: 0 none, 1 its own, 2 its twin, for each layer.
    mix: of the best blind mix of two patterns.
    oracle: of the best pattern for each token.
    permuted_gain: of the oracle over the mix, where each token has the label of
      another one; mean of several permutations.
    luck: of the oracle over the mix, after what patterns are to single tokens
      was dealt out to others.
    mean_cost: of the oracle's patterns, like `budget`.
    router: of a trained router, which sees no label, at the price by which it
      costs as much; NaN without one.
  """

  run: str
  budget: float
  full: float
  single: float
  pattern: tuple[int, ...]
  mix: float
  oracle: float
  permuted_gain: float
  luck: float
  mean_cost: float
  router: float = math.nan

  @property
  def gain(self) -> float:
    """Of the oracle over the best blind mix."""
    return self.oracle - self.mix
