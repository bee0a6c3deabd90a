"""One set of colours for every picture: pale is shallow, dark is deep.

The ramp gets steadily darker, so that it also reads in grey print and for
readers who do not tell hues apart. Tokens on the page, in the terminal and bars
of a histogram share it.
"""

# From one layer to all of them.
_RAMP = (
  (223, 243, 228),
  (160, 218, 190),
  (84, 176, 182),
  (44, 120, 163),
  (43, 76, 132),
  (38, 38, 89),
)
_INK = (27, 31, 39)
# The same among the 256 colours of terminals, which are too few to blend.
_ANSI_RAMP = (194, 157, 115, 79, 73, 37, 31, 25, 24, 18, 17)

FULL = '#262659'
EARLY = '#d1495b'
STATIC = '#7a8290'
ORACLE = '#e0a030'
BASELINE = '#a8adb5'
# Lines beside each other: the dark ones of Okabe and Ito's eight colours, which
# readers tell apart whose eyes have two kinds of cones.
LINES = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#56b4e9', '#7a5195')


def depth_colour(exit_layer: int, num_layers: int) -> str:
  """Returns the background of a token that used `exit_layer` of L layers.

  >>> depth_colour(1, 8), depth_colour(8, 8)
  ('#dff3e4', '#262659')
  """
  return '#{:02x}{:02x}{:02x}'.format(*_blend(exit_layer, num_layers))


def text_colour(exit_layer: int, num_layers: int) -> str:
  """Returns black or white, whichever reads better on `depth_colour`.

  >>> text_colour(1, 8), text_colour(8, 8)
  ('#1b1f27', '#ffffff')
  """
  luminance = _luminance(_blend(exit_layer, num_layers))
  # The contrast ratios of WCAG 2.
  against_white = 1.05 / (luminance + 0.05)
  against_ink = (luminance + 0.05) / (_luminance(_INK) + 0.05)
  return '#ffffff' if against_white > against_ink else '#1b1f27'


def ansi_colours(exit_layer: int, num_layers: int) -> tuple[int, int]:
  """Returns (background, text) as indices into the 256 terminal colours.

  >>> ansi_colours(8, 8)
  (17, 231)
  """
  _check(exit_layer, num_layers)
  share = (exit_layer - 1) / max(num_layers - 1, 1)
  place = round(share * (len(_ANSI_RAMP) - 1))
  return _ANSI_RAMP[place], 231 if place >= _ANSI_RAMP.index(31) else 16


def _blend(exit_layer: int, num_layers: int) -> tuple[int, int, int]:
  """Returns the ramp's red, green and blue for one depth."""
  _check(exit_layer, num_layers)
  place = (exit_layer - 1) / max(num_layers - 1, 1) * (len(_RAMP) - 1)
  low = min(int(place), len(_RAMP) - 2)
  share = place - low
  return tuple(
    round(first + share * (second - first))
    for first, second in zip(_RAMP[low], _RAMP[low + 1], strict=True)
  )


def _luminance(colour: tuple[int, int, int]) -> float:
  """Returns the relative luminance of sRGB, in [0, 1] (WCAG 2)."""
  linear = [
    value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
    for value in (channel / 255 for channel in colour)
  ]
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _check(exit_layer: int, num_layers: int) -> None:
  """Raises ValueError for a number of layers that there is not."""
  if not 1 <= exit_layer <= num_layers:
    raise ValueError(
      f'exit_layer is {exit_layer}, expected 1..{num_layers}, the layers used.'
    )
