"""Labels as a tree of tokens, as far as tokens tell them apart."""

import dataclasses
import functools

import numpy as np

# What a decoder embeds before it has said anything.
_START = 0


@dataclasses.dataclass(frozen=True)
class LabelTree:
  """The prefixes that a decoder must have read to tell C labels apart.

  A node is a prefix of labels behind which they differ, or that leads to such a
  one; the first is the empty prefix. Behind the token that tells a label apart
  there are no nodes, so that labels whose first tokens differ have one node.

  Attributes:
    tokens: the token ids of each label, C tuples.
  """

  tokens: tuple[tuple[int, ...], ...]

  def __post_init__(self):
    """Raises ValueError for labels that cannot be told apart."""
    if len(self.tokens) < 2:
      raise ValueError(
        f'there are {len(self.tokens)} labels; a classifier needs at least 2'
      )
    for label in self.tokens:
      if not label or min(label) < 1:
        raise ValueError(
          f'the label {list(label)} holds no token, or 0, which is padding; '
          'give the token ids of each label, EOS included'
        )
    whole = set(self.tokens)
    if len(whole) < len(self.tokens):
      raise ValueError('two labels have the same tokens; name them otherwise')
    inner = {label[:end] for label in whole for end in range(len(label))}
    if both := sorted(inner & whole):
      raise ValueError(
        f'the label {list(both[0])} begins another one, so no token tells them '
        'apart; let every label end with EOS'
      )

  @functools.cached_property
  def _children(self) -> dict[tuple[int, ...], list[int]]:
    """The tokens that may follow prefixes behind which labels differ."""
    after: dict[tuple[int, ...], list[int]] = {}
    for label in self.tokens:
      for end, token in enumerate(label):
        tokens = after.setdefault(label[:end], [])
        if token not in tokens:
          tokens.append(token)
    return {prefix: found for prefix, found in after.items() if len(found) > 1}

  @functools.cached_property
  def nodes(self) -> tuple[tuple[int, ...], ...]:
    """The P prefixes, shorter ones first."""
    found = {
      prefix[:end]
      for prefix in self._children
      for end in range(len(prefix) + 1)
    }
    return tuple(sorted(found | {()}, key=lambda node: (len(node), node)))

  @functools.cached_property
  def inputs(self) -> np.ndarray:
    """The last token of each node, int32 [P]; 0 of the empty one."""
    last = [node[-1] if node else _START for node in self.nodes]
    return np.array(last, np.int32)

  @functools.cached_property
  def positions(self) -> np.ndarray:
    """The position that a node is decoded at, int32 [P]."""
    return np.array([len(node) for node in self.nodes], np.int32)

  @functools.cached_property
  def read(self) -> np.ndarray:
    """Positions of the nodes that a node reads, -1 of others: int32 [P, P]."""
    return np.array(
      [
        [len(other) if node[: len(other)] == other else -1]
        for node in self.nodes
        for other in self.nodes
      ],
      np.int32,
    ).reshape(len(self.nodes), -1)

  @functools.cached_property
  def candidates(self) -> np.ndarray:
    """The N different tokens that tell labels apart, int32 [N]."""
    if len(self.nodes) == 1:
      return np.array([label[0] for label in self.tokens], np.int32)
    found = {token for tokens in self._children.values() for token in tokens}
    return np.array(sorted(found), np.int32)

  @functools.cached_property
  def allowed(self) -> np.ndarray:
    """Which candidates may follow a node, bool [P, N]."""
    following = [self._children.get(node, []) for node in self.nodes]
    return np.array([np.isin(self.candidates, f) for f in following])

  @functools.cached_property
  def steps(self) -> np.ndarray:
    """Where a label is chosen at a node, int32 [C, M, 2]: node and candidate.

    Candidate -1 where there is nothing more to choose.
    """
    places = {node: place for place, node in enumerate(self.nodes)}
    which = {token: place for place, token in enumerate(self.candidates)}
    chosen = [
      [
        (places[label[:end]], which[token])
        for end, token in enumerate(label)
        if label[:end] in self._children
      ]
      for label in self.tokens
    ]
    longest = max(map(len, chosen))
    padded = [path + [(0, -1)] * (longest - len(path)) for path in chosen]
    return np.array(padded, np.int32)
