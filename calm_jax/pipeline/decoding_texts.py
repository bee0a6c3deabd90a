"""Texts through a generator: encoded, batched, decoded, put back in order."""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from calm_jax.pipeline.generated_text import GeneratedText

if TYPE_CHECKING:
  from calm_jax.pipeline.text_generator import TextGenerator


def decode_texts(
  generator: 'TextGenerator',
  texts: Iterable[str],
  *,
  decode: Callable[..., list[list[GeneratedText]]],
  batch_size: int = 16,
  too_long: str = 'refuse',
  num_samples: int | None = None,
  seed: int = 0,
  forced_prefixes: Sequence[str | Sequence[int]] | None = None,
) -> list[GeneratedText] | list[list[GeneratedText]]:
  """Decodes texts, in batches of similar length; see `TextGenerator.generate`.

  Args:
    generator: encodes and batches.
    texts: the inputs, without prefix.
    decode: (batch, num_samples=, seed=) -> outputs of each of its requests.
    batch_size: texts decoded together, at most.
    too_long: what to do with texts that are too long.
    num_samples: outputs per text; one, not in a list, if None.
    seed: of what samplers draw.
    forced_prefixes: what the output of each text begins with.

  Raises:
    ValueError: as `TextGenerator.generate`.
  """
  if isinstance(texts, str):
    raise ValueError(f'texts is one text, {texts!r:.60}: give a list of them')
  texts = list(texts)
  if forced_prefixes is None:
    forced_prefixes = [generator.forced_prefix] * len(texts)
  if len(forced_prefixes) != len(texts):
    raise ValueError(
      f'there are {len(forced_prefixes)} forced_prefixes for {len(texts)} '
      "texts; give one for each, '' for nothing"
    )
  pairs = enumerate(zip(texts, forced_prefixes, strict=True))
  encoded = [
    generator.encode(number, text, too_long=too_long, forced_prefix=forced)
    for number, (text, forced) in pairs
  ]
  per_text = 1 if num_samples is None else num_samples
  outputs: dict[int, list[GeneratedText]] = {}
  for batch in generator.batches(encoded, batch_size):
    decoded = decode(batch, num_samples=per_text, seed=seed)
    for request, samples in zip(batch.requests, decoded, strict=True):
      outputs[request.number] = samples
  in_order = [outputs[number] for number in range(len(encoded))]
  if num_samples is None:
    return [output for (output,) in in_order]
  return in_order
