"""The rows of exits of an encoder's classifier: one per rule and setting."""

import dataclasses

# What the rule of a certified row begins with; what is promised follows.
CERTIFIED = 'certified: '
# The setting of a certificate that certifies nothing.
NOTHING = 'nothing certified'
# The rule of what others are held against, or what its name ends in.
FULL_ENCODER = 'full encoder'


@dataclasses.dataclass(frozen=True)
class EncoderExitRow:
  """One exit rule at one setting, on the inputs of a token file.

  Attributes:
    run: the run, in words.
    rule: the rule's name; what is promised, behind `CERTIFIED`.
    setting: its setting, in words.
    accuracy: the share of inputs that are classified rightly.
    agreement: the share that are as the last layer's head says.
    mean_layers: encoder layers used, 1..L.
    milliseconds: of a batch, from ids to classes, by the fastest loop, for each
      of the batch sizes; NaN where it was not timed.
    loops: the names of these loops, '' where not timed.
    method: of a certified row, the rule's name; 'calibrated' or 'tuned' where a
      job wrote the certificate, and '' in older files.
  """

  run: str
  rule: str
  setting: str
  accuracy: float
  agreement: float
  mean_layers: float
  milliseconds: tuple[float, ...]
  loops: tuple[str, ...]
  method: str = ''

  @property
  def certified(self) -> bool:
    """Whether it is what a certificate says, be it nothing."""
    return self.rule.startswith(CERTIFIED)

  @property
  def full(self) -> bool:
    """Whether nothing left, by rule."""
    return self.rule.endswith(FULL_ENCODER)

  @property
  def said(self) -> str:
    """Its setting, with the name of the rule where `rule` does not say it."""
    return f'{self.method}: {self.setting}' if self.method else self.setting

  @property
  def key(self) -> tuple[str, str, str]:
    """What is the same in rows that differ by their training's seed alone."""
    same = self.method or self.setting if self.certified else self.setting
    return self.run, self.rule, same
