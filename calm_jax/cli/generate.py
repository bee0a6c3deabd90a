"""Decodes sentences with a trained model, each token coloured by its depth.

  python -m calm_jax.cli.generate --gin_file=runs/generate.gin \
    --gin_file=policies/softmax_margin.gin --gin.MODEL_DIR=runs/e2e_nlg \
    --gin.INPUTS='name[Aromi], food[Italian], area[riverside]'

The certified threshold is used if the run directory holds a certificate for
this policy; a threshold given by hand decodes without a guarantee.
"""

import os
from collections.abc import Sequence

from calm_jax import calibration, decoding, pipeline, records, reporting
from calm_jax.cli import gin_runner, jobs


def run(
  *,
  model_dir: str,
  inputs: Sequence[str] | str | float,
  policy: decoding.ComputePolicy,
  threshold: float | None = None,
  allow_uncertified: bool = False,
) -> list[pipeline.GeneratedText]:
  """Decodes texts and prints them.

  Args:
    model_dir: a run directory of `calm_jax.cli.train`.
    inputs: texts, or one text (which gin may have read as a number).
    policy: the policy that the certificate was made for.
    threshold: decode at this threshold in [0, 1] instead of the certified one;
      1.0 is the full model.
    allow_uncertified: use a certificate of another checkpoint, vocabulary or
      policy too; outputs are then marked as uncertified.
  """
  if not isinstance(inputs, (list, tuple)):
    inputs = [str(inputs)]
  certificate = None
  if threshold is not None:
    calibration.check_settings([threshold])
    jobs.say(f'threshold {threshold:g}, given by hand: no guarantee')
    policy = decoding.with_threshold(policy, threshold)
  else:
    certificate = os.path.join(model_dir, 'calibration', 'certificate.json')
    if not os.path.exists(certificate):
      jobs.say(f'no certificate at {certificate}: decoding with the full model')
      certificate, policy = None, decoding.full_model(policy)
  generator = pipeline.TextGenerator.from_checkpoint(
    model_dir,
    policy=policy,
    certificate=certificate,
    allow_uncertified=allow_uncertified,
  )
  outputs = generator.generate(inputs)
  for source, output in zip(inputs, outputs, strict=True):
    decoded = records.DecodedText(
      text=output.text,
      tokens=output.tokens,
      pieces=output.pieces,
      exit_layers=output.exit_layers,
      confidences=output.confidences,
    )
    num_layers = generator.decoder.num_layers
    jobs.say(f'input:  {source}\noutput: {output.text}')
    jobs.say(reporting.render_output(decoded, num_layers=num_layers))
    if certificate is not None and not output.certified:
      jobs.say('UNCERTIFIED: the certificate is of something else')
  return outputs


if __name__ == '__main__':
  gin_runner.main('generate')
