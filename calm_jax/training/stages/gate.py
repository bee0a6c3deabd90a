"""A gate of a frozen model: one small network for all exits, or one each.

The model's parameters go into the step as they are and never come out; the
training state holds {'gate': {...}}, the arrays of `exits.Gate`, and the
optimizer's slots for these. Exit adapters, where layers are read through some,
are as frozen as the model: they go into the step beside its parameters.
"""

import functools
import os
from collections.abc import Callable

import jax

from calm_jax import model
from calm_jax.array_types import Params
from calm_jax.checkpoints import gate_adapters, trained_parts
from calm_jax.exit_adapters import AdaptsExits
from calm_jax.exits import Gate
from calm_jax.training import classifier_evaluation, gate_states
from calm_jax.training import step as step_lib
from calm_jax.training.gate_shape import GateShape
from calm_jax.training.gate_targets import GateTarget, get_gate_target
from calm_jax.training.optimizer import Optimizer
from calm_jax.training.stage import Stage
from calm_jax.training.state import StepMetrics, TrainState, descend

# Of adapters beside the model's parameters, which have no such name.
_ADAPTERS = trained_parts.EXIT_ADAPTERS.key


def gate_stage(
  config: model.T5Config,
  params: Params,
  optimizer: Optimizer,
  *,
  target: str | GateTarget = 'consistency',
  states: str = 'exact',
  shape: GateShape | None = None,
  adapters: AdaptsExits | None = None,
  seed: int = 0,
) -> Stage:
  """Returns the training of a gate for a frozen model.

  Its directory is `gate_directory` of the model's; `gate_of` finds it in the
  parameters of the result.

  Args:
    config: the model.
    params: its parameters, which stay as they are.
    optimizer: from `training.adamw` or `training.adafactor`.
    target: what it is trained for: an object such as `training.CostAware()`, or
      one by name, see `get_gate_target`.
    states: 'exact', those of the full model, or 'own_exits', among K/V that the
      gate's own exits leave behind; see `gate_states`.
    shape: hidden units, inputs, whether exits share it; `GateShape()` if None.
    adapters: what early layers are read through, in training as in decoding
      (`decoding.AdaptedVocabulary`): what a layer says is said through them.
      The gate itself reads the state as it is. None for a model whose early
      layers speak for themselves.
    seed: of its first weights, and of what 'own_exits' draws.

  Raises:
    ValueError: for an unknown target or states, adapters of another model's
      shape, or a model without an exit to judge.
  """
  target = get_gate_target(target)
  shape = GateShape() if shape is None else shape
  layers = config.num_decoder_layers
  if layers < 2:
    raise ValueError(
      'a gate needs a model of at least 2 decoder layers, got '
      f'num_decoder_layers = {layers}: there is no exit before the last layer'
    )
  frozen, through = params, ''
  if adapters is not None:
    # Their fingerprint is that of the arrays as they were given.
    checked = adapters.check(model.as_layered_decoder(config))
    frozen, through = {**params, _ADAPTERS: checked}, ', read through adapters'
  return Stage(
    config=config,
    optimizer=optimizer,
    init=lambda _: init_gate_state(config, optimizer, shape=shape, seed=seed),
    step=make_gate_step(
      config,
      optimizer,
      target=target,
      states=gate_states.get_gate_states(states),
    ),
    check_batch=functools.partial(step_lib.check_batch, config=config),
    constants=frozen,
    context={
      'gate_target': repr(target),
      'gate_states': states,
      'gate_shape': repr(shape),
      **trained_parts.backbone_context(params),
      **gate_adapters.adapters_context(adapters),
    },
    title=f'a gate of {layers - 1} exits{through}, {target}',
    inside=True,
  )


def gate_directory(
  model_dir: str | os.PathLike, name: str = trained_parts.GATE.key
) -> str:
  """Returns the directory of a gate in that of its model.

  Raises:
    ValueError: for a folder that is the model's or elsewhere.
  """
  return trained_parts.part_directory(model_dir, name)


def gate_of(tree: Params) -> Gate:
  """Returns the gate of a parameter tree {'gate': {...}}."""
  return Gate(**tree[trained_parts.GATE.key])


def init_gate_state(
  config: model.T5Config, optimizer: Optimizer, *, shape: GateShape, seed: int
) -> TrainState:
  """Returns the state at step 0: a gate that answers 1/2 everywhere."""
  key = jax.random.key(seed)
  params = {trained_parts.GATE.key: shape.init(config, key)}
  return TrainState.start(params, optimizer.transformation, rng=key)


@functools.lru_cache(maxsize=8)
def make_gate_step(
  config: model.T5Config,
  optimizer: Optimizer,
  *,
  target: GateTarget,
  states: gate_states.GateStates,
) -> Callable[..., tuple[TrainState, StepMetrics]]:
  """Returns the jitted `(state, batch, frozen) -> (state, metrics)`.

  It donates the state, whose parameters are the gate's; `frozen`, the model's
  and perhaps 'exit_adapters' beside them, are only read. In the metrics
  `exits.losses` are binary cross-entropies of the target's labels and
  `exits.accuracies` shares of right decisions, of the first L-1 layers.
  """

  def gate_step(state, batch, frozen):
    params = {name: frozen[name] for name in frozen if name != _ADAPTERS}
    adapters = frozen.get(_ADAPTERS)
    key = jax.random.fold_in(state.rng, state.step)
    judge = gate_of(state.params)
    examples = states(config, params, batch, judge, key, adapters)

    def loss_of(tree):
      scores = examples.scores(gate_of(tree))
      return target.loss(scores, examples), scores

    def exits(scores):
      counts = classifier_evaluation.count_decisions(
        scores, target.labels(examples), examples.weights
      )
      return counts.exits()

    return descend(
      state, loss_of, transformation=optimizer.transformation, exits=exits
    )

  return jax.jit(gate_step, donate_argnums=0)
