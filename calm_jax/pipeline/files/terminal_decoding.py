"""Texts decoded for the eyes: coloured by exit layer, or typed and answered."""

from collections.abc import Sequence

from calm_jax import pipeline, records, reporting
from calm_jax.pipeline.files import input_lines, line_decoding
from calm_jax.pipeline.files.input_lines import STANDARD_INPUT, BadLine
from calm_jax.processes import speaking

UNCERTIFIED = 'UNCERTIFIED: the certificate is of something else'


def show(
  generator: pipeline.TextGenerator,
  inputs: Sequence[str],
  options: line_decoding.LineOptions,
  uncertified: bool,
) -> list[pipeline.GeneratedText]:
  """Decodes texts, prints them in colours and returns all outputs in order."""
  outputs = generator.generate(
    inputs,
    too_long=options.too_long,
    batch_size=options.batch_size,
    num_samples=options.num_samples,
    seed=options.seed,
  )
  for source, samples in zip(inputs, outputs, strict=True):
    speaking.say(f'input:  {reporting.shown(source)}')
    for output in samples:
      for warning in output.warnings:
        speaking.tell(f'warning: {warning}')
      decoded = records.DecodedText(
        text=output.text,
        tokens=output.tokens,
        pieces=output.pieces,
        exit_layers=output.exit_layers,
        confidences=output.confidences,
        prefix_length=output.prefix_length,
        encoder_exit_layer=output.encoder_exit_layer,
      )
      speaking.say(f'output: {reporting.shown(output.text)}')
      speaking.say(
        reporting.render_output(
          decoded,
          num_layers=generator.bound.num_layers,
          num_encoder_layers=generator.num_encoder_layers,
        )
      )
      if output.error is not None:
        speaking.tell(f'error: {output.error}')
      if uncertified:
        speaking.say(UNCERTIFIED)
  return [output for samples in outputs for output in samples]


def talk(
  generator: pipeline.TextGenerator,
  options: line_decoding.LineOptions,
  input_format: str,
) -> None:
  """Answers every line of a terminal, token by token."""
  num_layers = generator.bound.num_layers
  colour = reporting.supports_colour()
  speaking.tell('one text a line, Ctrl-D to end')
  speaking.say(reporting.legend(num_layers, colour=colour))
  lines = input_lines.read_file(STANDARD_INPUT, input_format)
  for found in line_decoding.usable_lines(generator, lines, options):
    if isinstance(found, BadLine):
      speaking.tell(f'line {found.number} {found.reason}')
      continue
    line, request = found
    for warning in request.warnings:
      speaking.tell(f'warning: {warning}')
    tokens = generator.stream(
      line.text,
      too_long=options.too_long,
      seed=options.seed,
      number=request.number,
    )
    try:
      for place, token in enumerate(tokens):
        shown = reporting.colour_token(
          token.piece,
          token.exit_layer,
          num_layers=num_layers,
          colour=colour,
          first=place == 0,
        )
        print(shown, end='', flush=True)
    except FloatingPointError as error:
      speaking.tell(f'error: {error}')
    print(flush=True)
