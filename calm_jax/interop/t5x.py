"""CALM inside T5X: a T5X model that trains all exits and decodes with a policy.

`EarlyExitModel` is an ordinary T5X encoder-decoder model around T5X's own
network (t5x.examples.t5): parameters, their logical axes, checkpoints,
optimizers and scores are T5X's. Only the loss (arXiv 2207.07061, Eq. 6) and the
decoder are ours. T5X is found on the Python path; no other file imports it.
"""

from collections.abc import Mapping
from typing import Any

import clu.metrics as clu_metrics
import flax
import jax
import jax.numpy as jnp
import numpy as np
from t5x import losses as t5x_losses
from t5x import models as t5x_models

from calm_jax import decoding, model, training
from calm_jax.array_types import Array, PyTree
from calm_jax.data import packing
from calm_jax.data.seqio import exit_metrics, tasks
from calm_jax.interfaces import DepthLoop
from calm_jax.interop import t5x_networks
from calm_jax.training import layer_weights as layer_weights_lib
from calm_jax.training import losses, step


class EarlyExitModel(t5x_models.EncoderDecoderModel):
  """A T5X encoder-decoder model whose every decoder layer is an exit."""

  def __init__(
    self,
    module: Any,
    input_vocabulary: Any,
    output_vocabulary: Any,
    optimizer_def: Any,
    *,
    policy: decoding.ComputePolicy | None = None,
    sampler: decoding.Sampler | None = None,
    depth_loop: DepthLoop | None = None,
    layer_weights: layer_weights_lib.LayerWeightsFn = training.linear_weights,
    **options: Any,
  ):
    """Makes the model.

    Args:
      module: `t5x.examples.t5.network.Transformer(config)`.
      input_vocabulary: a seqio vocabulary.
      output_vocabulary: a seqio vocabulary; has the id that ends a sequence.
      optimizer_def: any of T5X's optimizers.
      policy: how much is computed per token in prediction; the full model by
        default.
      sampler: how tokens are chosen; greedily by default.
      depth_loop: how layers are looped over; chosen by backend if None.
      layer_weights: from the number of decoder layers to one weight per exit.
      **options: of `t5x.models.EncoderDecoderModel`: `z_loss`,
        `label_smoothing`, `loss_normalizing_factor`, `feature_converter_cls`,
        `default_decoder_params`.

    Raises:
      ValueError: if the network is not one whose decoder we can take apart, or
        an option has no meaning here.
    """
    if 'decode_fn' in options:
      raise ValueError(
        'decode_fn is of no use to EarlyExitModel, whose decoder is '
        'calm_jax.decoding.generate: give policy, sampler or depth_loop'
      )
    super().__init__(
      module, input_vocabulary, output_vocabulary, optimizer_def, **options
    )
    self._config = t5x_networks.config_of(module)
    self._policy = policy
    self._sampler = sampler or decoding.Greedy()
    self._depth_loop = depth_loop
    num_layers = self._config.num_decoder_layers
    self._settings = training.LossSettings(
      layer_weights_lib.check_layer_weights(
        layer_weights(num_layers), num_layers
      ),
      z_loss=self._z_loss,
      label_smoothing=self._label_smoothing,
    )

  def get_initial_variables(self, rng, input_shapes, input_types=None):
    """Returns T5X's initial variables, logical axes included.

    Raises:
      ValueError: if the network's parameters are not those of our T5.
    """
    variables = super().get_initial_variables(rng, input_shapes, input_types)
    t5x_networks.check_same_parameters(variables['params'], self._config)
    return variables

  def loss_fn(
    self,
    params: PyTree,
    batch: Mapping[str, Array],
    dropout_rng: Array | None,
  ) -> tuple[Array, t5x_models.MetricsMap]:
    """Returns the weighted loss of all exits and T5X's metrics.

    As everywhere in T5X the loss is the sum over target tokens, unless
    `loss_normalizing_factor` says what to divide it by. `accuracy` is the last
    trained exit's.
    """
    factor, weights = t5x_losses.get_loss_normalizing_factor_and_weights(
      self._loss_normalizing_factor, batch
    )
    targets = batch['decoder_target_tokens']
    if weights is None:
      weights = (targets > 0).astype(jnp.float32)
    states_rng = logits_rng = None
    if dropout_rng is not None:
      states_rng, logits_rng = jax.random.split(dropout_rng)
    params = flax.core.unfreeze(params)
    states = step.batch_states(
      self._config, params, batch, dropout_rng=states_rng
    )
    denominator = jnp.float32(1.0 if factor is None else factor)
    loss, exits = losses.multi_exit_loss(
      step.logits_fn(self._config),
      params,
      states,
      targets=targets,
      weights=weights,
      settings=self._settings,
      denominator=denominator,
      dropout_rng=logits_rng,
    )
    return loss, self._metrics(batch, weights, denominator, loss, exits)

  def _metrics(self, batch, weights, denominator, loss, exits):
    """Returns T5X's metrics and those of every exit that is trained."""
    targets = batch['decoder_target_tokens']
    z_loss = None
    if not self._label_smoothing:
      # What the loss holds besides cross-entropy, in the loss's own unit.
      used = np.flatnonzero(self._settings.layer_weights)
      weights_used = jnp.asarray(self._settings.layer_weights)[used]
      z_loss = loss - (weights_used * exits.losses[used]).sum() * (
        exits.num_tokens / denominator
      )
    metrics = t5x_models.compute_base_metrics(
      # For the accuracy alone, which is replaced below: nothing is computed.
      logits=jnp.zeros((*targets.shape, 1)),
      targets=targets,
      mask=weights,
      loss=loss,
      z_loss=z_loss,
      segment_ids=_segments(batch),
    )

    def per_token(mean):
      return clu_metrics.Average(
        total=mean * exits.num_tokens, count=exits.num_tokens
      )

    for layer, weight in enumerate(self._settings.layer_weights):
      if weight:
        metrics['accuracy'] = per_token(exits.accuracies[layer])
        name = f'exit_{layer + 1}'
        metrics[f'exit_accuracies/{name}'] = metrics['accuracy']
        metrics[f'exit_losses/{name}'] = per_token(exits.losses[layer])
    return metrics

  def predict_batch_with_aux(
    self,
    params: PyTree,
    batch: Mapping[str, Array],
    rng: Array | None = None,
    decoder_params: Mapping[str, Any] | None = None,
    return_all_decodes: bool | None = None,
    num_decodes: int | None = None,
    prompt_with_targets: bool = False,
  ) -> tuple[Array, dict[str, Array]]:
    """Decodes a batch as the policy says.

    Args:
      params: the model's parameters.
      batch: `encoder_input_tokens` [B, S] and `decoder_input_tokens` [B, T], of
        which only the length is read but for `prompt_with_targets`.
      rng: for samplers that draw.
      decoder_params: `eos_id` and `decode_rng` are known.
      return_all_decodes: whether to return all n sequences, the best one last.
      num_decodes: n, sequences drawn or searched for per input.
      prompt_with_targets: whether outputs begin with `decoder_input_tokens`,
        the 0 that they start with and EOS left out.

    Returns:
      Tokens int32 [B, T] and, rectangular as seqio wants them, `scores` [B],
      `exit_layers` [B, T] (layers used, -1 where nothing was decoded) and
      `confidences` [B, T] (at the exit layer, in [0, 1]; -1, which JSON has a
      word for, where nothing looked). With `return_all_decodes` [B, n, ...].

    Raises:
      ValueError: for what this decoder does not do.
    """
    defaults = self._default_decoder_params
    if return_all_decodes is None:
      return_all_decodes = defaults.return_all_decodes
    num_samples = defaults.num_decodes if num_decodes is None else num_decodes
    self._check_decoding(num_samples)
    eos_id, rng = self._eos_and_rng(decoder_params, rng)
    inputs, targets = (
      batch[f'{side}_input_tokens'] for side in ('encoder', 'decoder')
    )
    prompts = None
    if prompt_with_targets:
      prompts = targets[:, 1:] * (targets[:, 1:] != eos_id)
    result = decoding.generate(
      decoding.bind(
        model.as_layered_decoder(self._config),
        flax.core.unfreeze(params),
        depth_loop=self._depth_loop,
      ),
      inputs,
      policy=self._policy,
      sampler=self._sampler,
      max_length=targets.shape[1],
      eos_id=eos_id,
      rng=rng,
      num_samples=num_samples,
      forced_prefix=prompts,
    )
    outputs = {
      'tokens': result.tokens,
      'scores': result.scores,
      'exit_layers': result.exit_layers,
      'confidences': jnp.nan_to_num(result.confidences, nan=-1.0),
    }
    best_last = jnp.argsort(outputs['scores'], axis=1)
    if isinstance(self._sampler, decoding.Search):
      # Best first, by ranks that scores alone do not tell.
      best_last = jnp.broadcast_to(
        jnp.arange(num_samples)[::-1], best_last.shape
      )
    rows = jnp.arange(len(inputs))[:, None]
    outputs = {name: array[rows, best_last] for name, array in outputs.items()}
    if not return_all_decodes:
      outputs = {name: array[:, -1] for name, array in outputs.items()}
    return outputs.pop('tokens'), outputs

  def _check_decoding(self, num_samples):
    searches = isinstance(self._sampler, decoding.Search)
    if num_samples > 1 and self._sampler.deterministic and not searches:
      raise ValueError(
        f'num_decodes = {num_samples} sequences of {self._sampler} would all '
        'be the same: give a sampler that draws, such as decoding.Nucleus, or '
        'decoding.BeamSearch'
      )

  def _eos_and_rng(self, decoder_params, rng):
    """Returns the id that ends a sequence, and the key."""
    options = dict(decoder_params or {})
    eos_id = options.pop('eos_id', self.output_vocabulary.eos_id or 1)
    decode_rng = options.pop('decode_rng', None)
    if options:
      raise ValueError(
        f'decoder_params {sorted(options)} are of T5X decoders; here eos_id '
        'and decode_rng are known, the rest is said by policy and sampler'
      )
    if rng is not None and decode_rng is not None:
      raise ValueError('a key was given twice, as rng and in decoder_params')
    return eos_id, rng if decode_rng is None else decode_rng


def _segments(batch: Mapping[str, Array]) -> dict[str, Array]:
  """Returns what T5X counts examples and padding by: segment ids or tokens."""
  if any(key in batch for key in packing.SEGMENT_KEYS):
    return {
      key.removesuffix('_segment_ids'): batch[key]
      for key in packing.SEGMENT_KEYS
      if key in batch
    }
  return {
    key: batch[key] != 0
    for key in ('encoder_input_tokens', 'decoder_target_tokens')
  }


def task_name(task: Any) -> str:
  """Returns the name, for T5X's run files, of a Task that reports its exits.

  Args:
    task: a definition with `register()`, a seqio Task or its name.
  """
  return exit_metrics.with_exit_metrics(task).name


def task_vocabulary(task: Any) -> Any:
  """Returns the seqio vocabulary of a Task's targets.

  Args:
    task: as for `task_name`.
  """
  return tasks.as_task(task).output_features['targets'].vocabulary
