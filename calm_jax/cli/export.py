r"""Exports a trained run as one program for cpu, cuda and tpu.

  python -m calm_jax.cli.export --gin_file=runs/export.gin \
    --gin_file=policies/softmax_margin.gin --gin.MODEL_DIR=runs/e2e_nlg \
    --gin.OUTPUT_DIR=exported/e2e_nlg

OUTPUT_DIR becomes a directory of three files: the program (StableHLO by
jax.export, any batch size, the threshold an input), its parameters
(safetensors) and manifest.json, which says what they are, by hashes, and which
certificate holds. What was written is read back and decodes some inputs as the
run itself does. With --gin.WEIGHTS=int8 the decoder's matrices are in 8 bits,
and the certificate must be one that was made with these. --dry_run prints what
would be exported and writes nothing. calm_jax.deployment.load_artifact reads
it; python -m calm_jax.examples.numpy_client shows a client that needs no
calm_jax.
"""

import dataclasses
import functools
import os
from typing import Any

import jax
import jax.numpy as jnp

from calm_jax import (
  decoding,
  deployment,
  interfaces,
  model,
  quantisation,
  records,
  runs,
)
from calm_jax.calibration.certificate import Certificate
from calm_jax.cli import gin_runner


def run(
  *,
  model_dir: str,
  output_dir: str,
  policy: decoding.ComputePolicy,
  sampler: decoding.Sampler | None = None,
  certificate: str | None = None,
  allow_uncertified: bool = False,
  program: deployment.ProgramPlan | None = None,
  depth_loop: interfaces.DepthLoop | None = None,
  weights: quantisation.Int8Weights | str | None = None,
  dry_run: bool = False,
) -> records.ExportManifest | None:
  """Exports a run, reads the artifact back and compares.

  Args:
    model_dir: a run directory of `calm_jax.cli.train`.
    output_dir: the artifact's directory; must not be there yet.
    policy: the policy that the certificate was made for.
    sampler: Greedy if None; one that draws makes a program that takes a seed.
    certificate: MODEL_DIR/calibration/certificate.json if None and there.
    allow_uncertified: export without a certificate where it does not hold.
    program: its sizes and platforms; those of training, and the defaults, if
      None.
    depth_loop: how the program walks the layers; `WhileDepthLoop` if None.
    weights: 'float', 'int8', or which matrices are in 8 bits.
    dry_run: print what would be exported and stop.

  Raises:
    FileNotFoundError, FileExistsError, ValueError: naming what is in the way.
  """
  policy.check_composition()
  deployment.check_free(output_dir)
  weights = quantisation.as_weights(weights)
  loaded = runs.load_run(model_dir)
  if loaded.notes:
    print(f'{" ".join(loaded.notes)} The program has no such rules.')
  program = deployment.ProgramPlan() if program is None else program
  spec = program.spec(
    # As in all jobs of the run, whatever length the program is for.
    decoding.at_output_length(policy, loaded.feature_lengths['targets']),
    sampler=decoding.as_sampler(sampler),
    eos_id=loaded.tokenizer.eos_id,
    feature_lengths=loaded.feature_lengths,
  )
  certified = _find_certificate(
    certificate, model_dir, loaded, spec, weights, allow_uncertified
  )
  if certified is not None and certified.certified:
    # The threshold is an input; what else the setting sets is the program's.
    policy = decoding.with_setting(spec.policy, certified.setting)
    spec = dataclasses.replace(spec, policy=policy)
  bind = functools.partial(
    decoding.bind,
    model.as_layered_decoder(loaded.config),
    depth_loop=decoding.WhileDepthLoop() if depth_loop is None else depth_loop,
    weights=weights,
  )
  if dry_run:
    shapes = jax.eval_shape(bind, loaded.params)
    print(deployment.describe_program(shapes, spec))
    print(f'dry run: {output_dir} would be written; nothing was')
    return None
  bound = bind(runs.int8_params(loaded, weights))
  manifest = deployment.export_artifact(
    bound,
    output_dir,
    spec,
    parameter_fingerprint=loaded.fingerprint,
    tokenizer_fingerprint=loaded.tokenizer.fingerprint,
    certificate=None if certified is None else _stated(certified),
    context={
      'model': dataclasses.asdict(loaded.config),
      'step': loaded.step,
      'prefix': loaded.prefix,
      'extra_ids': loaded.tokenizer.extra_ids,
    },
  )
  for file in (manifest.program, manifest.parameters):
    print(f'{file.name}: {file.num_bytes:,} bytes')
  print(
    f'jax {jax.__version__} wrote it: read by those built until '
    f'{manifest.window_ends}; export again before'
  )
  _compare(output_dir, bound, spec)
  return manifest


def _find_certificate(
  path: str | None,
  model_dir: str,
  loaded: runs.LoadedRun,
  spec: deployment.ProgramSpec,
  weights: quantisation.Int8Weights | None,
  allow_uncertified: bool,
) -> Certificate | None:
  """Returns the certificate that holds, if one does."""
  if path is None and spec.policy.verifies:
    print(
      "drafts are checked: outputs are the full model's, of which nothing "
      'needs to be certified'
    )
    return None
  default = runs.certificate_path(model_dir)
  if path is None and not os.path.exists(default):
    print(f'no certificate at {default}: every call must give a threshold')
    return None
  path = default if path is None else path
  certificate = Certificate.load(path)
  found = runs.certificate_differences(
    certificate,
    spec.policy,
    runs.decoding_context(
      sampler=spec.sampler,
      **{
        **loaded.context(),
        'input_length': spec.source_length,
        'max_length': spec.max_length,
        'weights': quantisation.describe_weights(weights),
      },
    ),
  )
  differing = list(found.breaking)
  if certificate.threshold is None or not spec.has_threshold:
    differing.append('threshold: the certified setting has none')
  elif not certificate.certified and not decoding.is_full_at_one(spec.policy):
    differing.append(
      'policy: nothing was certified of it, and at threshold 1 it is not the '
      'full model (its readout chooses among a part of the vocabulary, a plan '
      'of it skips layers or source positions, or a budget stops it)'
    )
  elif not certificate.certified and weights is not None:
    differing.append(
      'weights: nothing was certified of them, and at threshold 1 they are not '
      "the full model in float; export that instead, with WEIGHTS = 'float'"
    )
  if not differing:
    print('\n'.join([f'{path} holds: {certificate.describe()}', *found.told]))
    return certificate
  reasons = f'{path} does not hold for this {"; ".join(differing)}'
  if not allow_uncertified:
    raise ValueError(
      f'{reasons}. Calibrate again, or export without a guarantee: '
      '--gin.ALLOW_UNCERTIFIED=True'
    )
  print(f'UNCERTIFIED: {reasons}')
  return None


def _stated(certificate: Certificate) -> dict[str, Any]:
  """Returns what a manifest says of a certificate."""
  return {
    'threshold': certificate.threshold,
    'certified': certificate.certified,
    'tolerance': certificate.tolerance,
    'error_rate': certificate.error_rate,
    **_promises(certificate),
    'statement': certificate.describe(),
    'context': certificate.context,
  }


def _promises(certificate: Certificate) -> dict[str, Any]:
  """Returns what a manifest says of several losses; nothing of a single one."""
  if not certificate.promises:
    return {}
  return {
    'promises': [
      {
        'loss': bound.loss,
        'metric': bound.metric,
        'tolerance': bound.tolerance,
      }
      for bound in certificate.promises
    ]
  }


def _compare(
  output_dir: str,
  bound: interfaces.BoundDecoder,
  spec: deployment.ProgramSpec,
) -> None:
  """Reads the artifact back and decodes some inputs both ways.

  Raises:
    ValueError: if they differ in float32, where they should not.
  """
  platform = jax.export.default_export_platform()
  if platform not in spec.platforms:
    print(f'{output_dir}: not tried, it is not for {platform}')
    return
  compared = deployment.compare_with_decoder(
    bound, deployment.load_artifact(output_dir), spec
  )
  if not compared.equal and bound.decoder.dtype == jnp.float32:
    raise ValueError(
      f'{output_dir} does not decode as the run does: of {compared.num_tokens} '
      f'tokens {compared.different_tokens} differ, and '
      f'{compared.different_exit_layers} exits. Do not use it'
    )
  print(
    f'{output_dir}: read back; of {compared.num_tokens} tokens on {platform} '
    f'{compared.different_tokens} differ from the run, and '
    f'{compared.different_exit_layers} exits'
  )


if __name__ == '__main__':
  gin_runner.main(
    'export', takes_dry_run=True, one_process=True, writes_to=('output_dir',)
  )
