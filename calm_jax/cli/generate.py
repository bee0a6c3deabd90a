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
--gin.generate.run.vocabulary=spiece.model, or bytes for ByT5's. What every
output begins with, and tokens (pieces or ids) that none has:
--gin.generate.run.forced_prefix='The' --gin.generate.run.suppressed_tokens=▁a
"""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from calm_jax import (
  calibration,
  decoding,
  exits,
  pipeline,
)
from calm_jax.cli import gin_runner, jobs
from calm_jax.pipeline.files import (
  input_lines,
  line_decoding,
  terminal_decoding,
)
from calm_jax.pipeline.files.input_lines import STANDARD_INPUT, InputLine
from calm_jax.pipeline.files.row_files import RowFile
from calm_jax.processes import speaking
from calm_jax.records import provenance


def run(
  *,
  model_dir: str,
  policy: decoding.ComputePolicy,
  inputs: Sequence[str] | str | float = (),
  input_file: str | None = None,
  input_format: str = 'auto',
  output_file: str | None = None,
  bad_lines: str = 'fail',
  too_long: str = 'refuse',
  batch_size: int = 16,
  threshold: float | None = None,
  certificate: str | None = None,
  allow_uncertified: bool = False,
  sampler: Any = None,
  num_samples: int = 1,
  seed: int = 0,
  vocabulary: str | None = None,
  extra_ids: int = 100,
  feature_lengths: Mapping[str, int] | None = None,
  prefix: str = '',
  forced_prefix: str = '',
  suppressed_tokens: Sequence[int | str] | int = (),
  allow_nonfinite: bool = False,
) -> list[pipeline.GeneratedText]:
  """Decodes texts and shows them, or writes them to a file.

  Args:
    model_dir: a run directory of `calm_jax.cli.train`; with `vocabulary`, any
      checkpoint.
    policy: the policy that the certificate was made for.
    inputs: texts, or one text (which gin may have read as a number).
    input_file: instead, a file with one a line; '-' is standard input.
    input_format: see `input_lines.read_file`.
    output_file: where rows go; for `input_file`, standard output if None.
    bad_lines: see `line_decoding.LineOptions`.
    too_long: see `line_decoding.LineOptions`.
    batch_size: texts decoded together, at most.
    threshold: decode at this threshold in [0, 1] instead of the certified one;
      1.0 is the full model.
    certificate: its path; that of `model_dir` if None.
    allow_uncertified: use a certificate of another checkpoint, vocabulary or
      policy too; outputs are then marked as uncertified.
    sampler: how tokens are chosen; the most probable if None.
    num_samples: outputs per text, for samplers that draw and for beams.
    seed: of what they draw.
    vocabulary: for checkpoints that are no run directory, a SentencePiece model
      or 'bytes'.
    extra_ids: with `vocabulary`, the sentinels after it.
    feature_lengths: with `vocabulary`, longest 'inputs' and 'targets'.
    prefix: with `vocabulary`, put in front of every input.
    forced_prefix: what every output begins with. No certificate covers that.
    suppressed_tokens: ids or pieces that are never said, or one of them; not
      covered by one either.
    allow_nonfinite: decode with parameters that are not numbers too.

  Returns:
    The outputs that were shown, one after the other; none where they went to a
    file.
  """
  if not isinstance(inputs, (list, tuple)):
    inputs = [str(inputs)]
  _check_source(inputs, input_file, input_format)
  options = line_decoding.LineOptions(
    bad_lines=bad_lines,
    too_long=too_long,
    batch_size=batch_size,
    num_samples=num_samples,
    seed=seed,
    forced_prefix=forced_prefix,
  )
  policy, certificate = _policy(policy, model_dir, threshold, certificate)
  about = {}
  if vocabulary is not None:
    about = dict(
      extra_ids=extra_ids, feature_lengths=feature_lengths, prefix=prefix
    )
  generator = pipeline.TextGenerator.from_run(
    model_dir,
    policy=policy,
    certificate=certificate,
    sampler=sampler,
    allow_uncertified=allow_uncertified,
    suppressed_tokens=suppressed_tokens,
    allow_nonfinite=allow_nonfinite,
    vocabulary=vocabulary,
    **about,
  )
  # Before any line is read.
  pipeline.prefix_tokens(
    forced_prefix, generator.tokenizer, max_length=generator.max_length
  )
  uncertified = certificate is not None and generator.certificate is None
  if uncertified:
    speaking.tell(terminal_decoding.UNCERTIFIED)
  if input_file is None and output_file is None:
    return terminal_decoding.show(generator, inputs, options, uncertified)
  typed = input_file == STANDARD_INPUT and sys.stdin.isatty()
  if typed and output_file is None:
    terminal_decoding.talk(generator, options, input_format)
  else:
    _write(generator, inputs, input_file, input_format, output_file, options)
  return []


def _check_source(
  inputs: Sequence[str], input_file: str | None, input_format: str
) -> None:
  """Checks that there is one source of texts, before a model is loaded."""
  if bool(inputs) == (input_file is not None):
    raise ValueError(
      'give either INPUTS, a text, or INPUT_FILE, a file of them (- reads '
      f'standard input); got {list(inputs)!r} and {input_file!r}'
    )
  input_lines.check_format(input_format)
  if input_file not in (None, STANDARD_INPUT) and not os.path.exists(
    input_file
  ):
    raise FileNotFoundError(f'there is no input file {input_file}')


def _policy(
  policy: decoding.ComputePolicy,
  model_dir: str,
  threshold: float | None,
  certificate: str | None,
) -> tuple[decoding.ComputePolicy, str | None]:
  """Returns the policy to decode with and the certificate to apply, if any."""
  if threshold is not None:
    calibration.check_settings([threshold])
    speaking.tell(f'threshold {threshold:g}, given by hand: no guarantee')
    return decoding.with_threshold(policy, threshold), None
  if certificate is None:
    certificate = jobs.certificate_path(model_dir)
    if not os.path.exists(certificate):
      has_budget = isinstance(policy.exit_rule, exits.LayerBudget)
      speaking.tell(
        f'no certificate at {certificate}: decoding with the full model'
        + (' within its layer budget' if has_budget else '')
      )
      return decoding.full_within_budget(policy), None
  return policy, certificate


def _write(
  generator: pipeline.TextGenerator,
  inputs: Sequence[str],
  input_file: str | None,
  input_format: str,
  output_file: str | None,
  options: line_decoding.LineOptions,
) -> None:
  """Decodes all lines of an input into rows."""

  def lines():
    if input_file is None:
      return [InputLine(number, text) for number, text in enumerate(inputs, 1)]
    return input_lines.read_file(input_file, input_format)

  about = {
    **generator.describe(),
    'too_long': options.too_long,
    'batch_size': options.batch_size,
    'num_samples': options.num_samples,
    'seed': options.seed,
    'forced_prefix': options.forced_prefix,
  }
  context = provenance.run_context(
    device=jax.devices()[0].device_kind,
    dtype=str(generator.source.get('dtype', '')),
    libraries=jobs.LIBRARIES,
    details={},
  )
  names = {None: 'INPUTS', STANDARD_INPUT: 'standard input'}
  source = names.get(input_file, input_file)
  with RowFile(output_file, about, context=context, stream=sys.stdout) as rows:
    total = None
    # Pipes can be read only once.
    if input_file is None or os.path.isfile(input_file):
      total = line_decoding.survey(
        generator, lines(), rows, options, source=source
      )
    line_decoding.decode_lines(
      generator,
      lines(),
      rows,
      options,
      source=source,
      say=speaking.tell,
      total=total,
    )


if __name__ == '__main__':
  gin_runner.main('generate', one_process=True, writes_to=())
