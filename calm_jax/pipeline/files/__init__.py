"""Files of texts decoded: their lines, the rows that come out, the terminal."""

from calm_jax.pipeline.files.line_decoding import LineOptions
from calm_jax.pipeline.files.text_files import TextFiles, decode_file

__all__ = ['LineOptions', 'TextFiles', 'decode_file']
