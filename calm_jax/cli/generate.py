r"""Turns texts into texts with a trained model, each token at its own depth.

One sentence, its tokens coloured by the layer they left at:

  python -m calm_jax.cli.generate --gin_file=runs/generate.gin \
    --gin_file=policies/softmax_margin.gin --gin.MODEL_DIR=runs/e2e_nlg \
    --gin.INPUTS='name[Aromi], food[Italian], area[riverside]'

A file, one text or JSON object {"inputs": "...", "id": ...} a line, into a file
with one JSON object a line: output, tokens, pieces, where in the output each of
them stands, exit layers, confidences, and whatever the input held besides.
Progress goes to stderr. Started again after whatever happened, it goes on:

  ... --gin.INPUT_FILE=inputs.jsonl --gin.OUTPUT_FILE=predictions.jsonl

Lines that cannot be used (empty, not UTF-8, not JSON, too long) are named and
end the job before anything is decoded; --gin.BAD_LINES=skip leaves them out,
--gin.TOO_LONG=truncate cuts long ones with a warning. Standard input is '-';
typed into a terminal, each line is answered token by token:

  ... --gin.INPUT_FILE=-

The certified threshold is used if the run directory holds a certificate for
this policy; a threshold given by hand decodes without a guarantee. To draw
several outputs a text: --gin.SAMPLER=@decoding.Temperature()
--gin.NUM_SAMPLES=4 --gin.ALLOW_UNCERTIFIED=True. Whatever checkpoint
calm_jax.cli.convert reads decodes too, given its vocabulary:
--gin.generate.run.vocabulary=spiece.model; for ByT5's and mT5's,
--gin.generate.run.vocabulary='@runs.TextFeatures()' with
--gin.runs.TextFeatures.vocabulary=bytes and .extra_ids=125. What every
output begins with, and tokens (pieces or ids) that none has:
--gin.generate.run.forced_prefix='The' --gin.generate.run.suppressed_tokens=▁a

--gin.AUDIT=0.05 decodes one line in twenty, drawn at random, at full depth as
well and keeps in its row how far the early text is from that;
calm_jax.cli.monitor reads such rows and says whether the certificate still
holds. Once it has raised an alarm, everything is decoded at full depth.
"""

import functools
import os
from collections.abc import Callable, Sequence

from calm_jax import (
  calibration,
  decoding,
  exits,
  interfaces,
  pipeline,
  quantisation,
  records,
  runs,
)
from calm_jax.calibration import monitor_words
from calm_jax.cli import gin_runner
from calm_jax.pipeline import files as text_files
from calm_jax.pipeline.files import terminal_decoding
from calm_jax.processes import speaking


def run(
  *,
  model_dir: str,
  policy: decoding.ComputePolicy,
  files: text_files.TextFiles,
  options: text_files.LineOptions | None = None,
  threshold: float | None = None,
  certificate: str | None = None,
  allow_uncertified: bool = False,
  sampler: decoding.Sampler | None = None,
  vocabulary: str | runs.TextFeatures | None = None,
  forced_prefix: str | Sequence[int] | None = None,
  suppressed_tokens: Sequence[int | str] | int | None = None,
  max_length: int | None = None,
  allow_nonfinite: bool = False,
  weights: quantisation.Int8Weights | str = 'certified',
  depth_loop: interfaces.DepthLoop | None = None,
) -> list[pipeline.GeneratedText]:
  """Decodes texts and shows them, or writes them to a file.

  Args:
    model_dir: a run directory of `calm_jax.cli.train`; with `vocabulary`, any
      checkpoint.
    policy: the policy that the certificate was made for.
    files: the texts, and where their outputs go.
    options: how lines are decoded; the defaults if None.
    threshold: decode at this threshold in [0, 1] instead of the certified one;
      1.0 is the full model.
    certificate: its path; that of `model_dir` if None.
    allow_uncertified: use a certificate of another checkpoint, vocabulary or
      policy too; outputs are then marked as uncertified.
    sampler: how tokens are chosen; the most probable if None.
    vocabulary: for checkpoints that are no run directory, a SentencePiece model
      or 'bytes', with T5's 100 extra ids; `runs.TextFeatures` where more is to
      be said.
    forced_prefix: what every output begins with, a text or ids; what the
      checkpoint says if None. No certificate covers that.
    suppressed_tokens: ids or pieces that are never said, or one of them; what
      the checkpoint says if None. Not covered by one either.
    max_length: the most tokens of an output, EOS included; that of training if
      None, and the one that certificates hold for.
    allow_nonfinite: decode with parameters that are not numbers too.
    weights: 'float', 'int8' or a `quantisation.Int8Weights`; 'certified' for
      those that the certificate was made with, which without one are float.
    depth_loop: how layers are looped over, which changes no output; that of
      this backend if None.

  Returns:
    The outputs that were shown, one after the other; none where they went to a
    file.
  """
  files.check()
  options = text_files.LineOptions() if options is None else options
  _check_audit(files, options)
  policy, certificate = _policy(policy, model_dir, threshold, certificate)
  load = functools.partial(
    pipeline.load,
    model_dir,
    sampler=sampler,
    suppressed_tokens=suppressed_tokens,
    forced_prefix=forced_prefix,
    max_length=max_length,
    depth_loop=depth_loop,
    allow_nonfinite=allow_nonfinite,
    vocabulary=vocabulary,
  )
  generator = load(
    policy=policy,
    certificate=certificate,
    allow_uncertified=allow_uncertified,
    weights=weights,
  )
  if generator.bound.weights is not None and generator.certificate is None:
    speaking.tell(
      "weights in 8 bits: outputs are near the float model's, and nothing says "
      'how near; calm_jax.cli.calibrate --gin.WEIGHTS=int8 certifies it'
    )
  uncertified = certificate is not None and generator.certificate is None
  if uncertified:
    speaking.tell(terminal_decoding.UNCERTIFIED)
  for line in generator.cautions:
    speaking.tell(f'certificate: {line}')
  generator, auditor = _watched(generator, certificate, options, load, files)
  if files.is_shown:
    return terminal_decoding.show(generator, files.inputs, options, uncertified)
  if files.is_typed:
    terminal_decoding.talk(generator, options, files.input_format)
  else:
    text_files.decode_file(generator, files, options, auditor=auditor)
  return []


def _check_audit(
  files: text_files.TextFiles, options: text_files.LineOptions
) -> None:
  """Raises ValueError for audits that nothing would be left of."""
  if options.audit is not None and (files.is_shown or files.is_typed):
    raise ValueError(
      'AUDIT writes audits into rows, and these texts are shown and leave '
      'none: give INPUT_FILE and OUTPUT_FILE'
    )


def _watched(
  generator: pipeline.TextGenerator,
  certificate: str | None,
  options: text_files.LineOptions,
  load: Callable[..., pipeline.TextGenerator],
  files: text_files.TextFiles,
) -> tuple[pipeline.TextGenerator, pipeline.Auditor | None]:
  """Returns what decodes, at full depth after an alarm, and its auditor."""
  in_8_bits = generator.bound.weights is not None

  def full():
    policy = decoding.full_model(generator.policy)
    return load(policy=policy, certificate=None, weights='float')

  if generator.certificate is not None and certificate is not None:
    state = os.path.join(os.path.dirname(certificate), records.MONITOR_NAME)
    alarm = calibration.standing_alarm(generator.certificate, state)
    if alarm is not None:
      speaking.tell(
        f'{monitor_words.in_words(alarm)}. This job decodes at full depth; '
        f'calm_jax.cli.monitor --certificate={certificate} --reset takes the '
        'alarm back'
      )
      return full() if in_8_bits else generator.at_full_depth(), None
  if options.audit is None:
    return generator, None
  return generator, pipeline.Auditor.of(
    generator,
    fraction=options.audit,
    seed=options.seed,
    # So that files of few lines have others audited each.
    among=os.path.basename(files.output_file or ''),
    metric=options.audit_metric,
    full=full() if in_8_bits else None,
  )


def _policy(
  policy: decoding.ComputePolicy,
  model_dir: str,
  threshold: float | None,
  certificate: str | None,
) -> tuple[decoding.ComputePolicy, str | None]:
  """Returns the policy to decode with and the certificate to apply, if any."""
  policy.check_composition()
  if policy.verifies:
    if certificate is not None:
      raise ValueError(
        f'CERTIFICATE, {certificate}, is for unchecked early tokens; '
        f'{type(policy.verification).__name__} checks them, so that the output '
        "is the full model's and needs none"
      )
    speaking.tell("drafts are checked: outputs are the full model's")
    if threshold is not None:
      policy = decoding.with_setting(policy, threshold)
    return policy, None
  if threshold is not None:
    if certificate is not None:
      raise ValueError(
        f'give THRESHOLD, {threshold:g} by hand, or CERTIFICATE, {certificate}'
      )
    calibration.check_settings([threshold])
    speaking.tell(f'threshold {threshold:g}, given by hand: no guarantee')
    return decoding.with_setting(policy, threshold), None
  if certificate is not None and not os.path.exists(certificate):
    raise FileNotFoundError(
      f'there is no certificate {certificate}; calm_jax.cli.calibrate writes '
      'one'
    )
  if certificate is None and _is_full_model(policy):
    speaking.tell('decoding with the full model, which needs no certificate')
    return policy, None
  if certificate is None:
    certificate = runs.certificate_path(model_dir)
    if not os.path.exists(certificate):
      has_budget = isinstance(policy.exit_rule, exits.LayerBudget)
      speaking.tell(
        f'no certificate at {certificate}: decoding with the full model'
        + (' within its layer budget' if has_budget else '')
      )
      return decoding.full_within_budget(policy), None
  return policy, certificate


def _is_full_model(policy: decoding.ComputePolicy) -> bool:
  full = decoding.full_model(policy)
  return decoding.describe(policy, {}) == decoding.describe(full, {})


if __name__ == '__main__':
  gin_runner.main('generate', one_process=True, writes_to=())
