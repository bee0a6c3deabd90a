"""What inputs made to delay exits cost: the searches compared, and the rows."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from calm_jax import evaluation, exits
from calm_jax.benchmarks import abuse_targets
from calm_jax.benchmarks.abuse_batches import Sources
from calm_jax.benchmarks.abuse_table import AbuseRow
from calm_jax.benchmarks.abuse_targets import Target
from calm_jax.evaluation.delaying_searches import Search

Cost = Callable[[evaluation.DecodedDataset], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Effort:
  """How hard adversarial inputs are searched for.

  Attributes:
    num_rounds: how often an input may be changed.
    variants: evaluations per round and input.
    seed: of all that is drawn.
  """

  num_rounds: int
  variants: int
  seed: int = 0


def searches(
  target: Target,
  token_ids: np.ndarray,
  words: evaluation.FewWords | None,
  *,
  by_output: bool,
) -> dict[str, tuple[Search, Cost]]:
  """Returns the searches that are compared: what each tries, and looks at.

  Args:
    target: what they are aimed at.
    token_ids: int [C], what inputs may be made of.
    words: edits that leave a text readable; None to do without such rows.
    by_output: whether outputs differ in length, so that one may search for the
      most layers per output, too.
  """
  anything = evaluation.AnyTokens(token_ids)

  def guided(edits):
    return evaluation.GradientGuided(edits, target.gradients, target.table())

  at_random = evaluation.RandomSearch(anything)
  found: dict[str, tuple[Search, Cost]] = {
    'searched, per token': (at_random, _layers_per_token)
  }
  if by_output:
    found['searched, per output'] = at_random, _layers
  found['gradients, per token'] = guided(anything), _least_sure
  if words is not None:
    few = evaluation.RandomSearch(words)
    found['few words, searched'] = few, _layers_per_token
    # What of the next row is the gradients', and what is seeing confidences.
    found['few words, confidences seen'] = few, _least_sure
    found['few words, gradients'] = guided(words), _least_sure
  return found


def measure(
  target: Target,
  sources: Sources,
  token_ids: np.ndarray,
  *,
  rule: exits.LayerBudget,
  compared: Mapping[str, tuple[Search, Cost]],
  effort: Effort,
) -> list[AbuseRow]:
  """Measures inputs of every kind without and with the budget.

  Args:
    target: what decodes them.
    sources: token ids of real inputs, EOS included.
    token_ids: int [C], what random inputs are made of.
    rule: the budget around a rule with thresholds.
    compared: name -> a search and what it makes large.
    effort: how hard adversarial inputs are searched for.

  Raises:
    ValueError: naming a number that makes no sense, or if layers exceed the
      budget.
  """
  # What is wrong with the budget shows before anything is searched for.
  target.decode(sources[:1], rule)
  seed = effort.seed
  kinds = {
    'real': list(sources),
    'shuffled': evaluation.shuffled_inputs(sources, seed=seed),
    'random': evaluation.random_inputs(sources, token_ids, seed=seed),
  }
  for kind, (search, cost) in compared.items():
    kinds[kind] = evaluation.delayed_inputs(
      sources,
      search,
      lambda trials: target.decode(trials, rule.rule),
      cost,
      **dataclasses.asdict(effort),
    )
  meant = abuse_targets.full_outputs(target, sources)
  rows = []
  for kind, inputs in kinds.items():
    changes = _changes(target, sources, inputs, meant)
    without = target.decode(inputs, rule.rule)
    for wrapped in (None, rule):
      result = without if wrapped is None else target.decode(inputs, rule)
      row = _row(kind, result, without, rule=wrapped)
      rows.append(dataclasses.replace(row, **changes))
  whole = rows[0].saving
  return [
    dataclasses.replace(
      row, saving_lost=1 - row.saving / whole if whole else float('nan')
    )
    for row in rows
  ]


def _changes(
  target: Target, sources: Sources, inputs: Sources, meant: Sequence[str]
) -> dict[str, float]:
  """Returns how far inputs are from the real ones, in tokens and in meaning."""
  told = abuse_targets.full_outputs(target, inputs)
  return {
    'replaced': float(
      np.mean(
        [
          (real[:-1] != made[:-1]).mean()
          for real, made in zip(sources, inputs, strict=True)
        ]
      )
    ),
    'meaning_kept': float(
      np.mean(
        [
          target.metric(now, [before])
          for now, before in zip(told, meant, strict=True)
        ]
      )
    ),
  }


def _layers(decoded: evaluation.DecodedDataset) -> np.ndarray:
  """Returns the layers of each output, [N]."""
  return np.maximum(decoded.exit_layers, 0).sum(axis=1)


def _layers_per_token(decoded: evaluation.DecodedDataset) -> np.ndarray:
  """Returns their mean over the tokens of each output, [N]."""
  return _layers(decoded) / decoded.lengths


def _least_sure(decoded: evaluation.DecodedDataset) -> np.ndarray:
  """Returns the same, where two are alike more for what is less sure, [N].

  At the last layer there is nothing to be gained by that.
  """
  left = (decoded.exit_layers > 0) & (decoded.exit_layers < decoded.num_layers)
  sure = np.where(left, decoded.confidences, 0.0)
  mean = np.nan_to_num(sure).sum(axis=1) / decoded.lengths
  return _layers_per_token(decoded) - 1e-3 * mean


def _row(kind, result, without, *, rule) -> AbuseRow:
  """Returns a row whose `saving_lost` is not yet known."""
  layers, mean = _layers(result), result.mean_exit_layer
  use = None
  if rule is not None:
    use = evaluation.budget_use(
      rule,
      result.exit_layers,
      result.confidences,
      num_layers=result.num_layers,
    )
  return AbuseRow(
    inputs=kind,
    budget=rule is not None,
    num_tokens=result.num_tokens,
    mean_exit_layer=mean,
    saving=1 - mean / result.num_layers,
    saving_lost=float('nan'),
    mean_request=float(layers.mean()),
    largest_request=int(layers.max()),
    largest_token=int(result.exit_layers.max()),
    same_outputs=float((result.tokens == without.tokens).all(axis=1).mean()),
    use=use,
  )
