"""Law 12, from the outside: what the decoder is really called for.

Every function of the toy decoder notes its calls while the compiled program
runs, and the ledger must say the same of every position. One row, in the
reference loop, so that a call is somebody's.
"""

import dataclasses

import jax
import numpy as np
import pytest
from fakes import toy_decoder as toy

from calm_jax import decoding, exits
from calm_jax.draft_heads import DraftHead

L, T, V = 4, 12, toy.VOCAB_SIZE
SCHEDULE = exits.ScheduledExit(np.array([1, 1, 3, 1, 2, 1, 1, 1, 4, 1, 1, 2]))


def margin(threshold):
  """Returns a rule that lets tokens leave earlier the later they come."""
  decaying = exits.DecayingThreshold(threshold, temperature=4.0, max_length=T)
  return exits.ConfidenceExit(exits.SoftmaxMargin(), decaying)


MARGIN = margin(0.68)
SPARSE = dataclasses.replace(MARGIN, minimum_exit_layer=2, interval=2)
HEAD = DraftHead(np.ones((3, 2, 4)), np.zeros(4), np.ones((4, 2)))
PRUNED = decoding.PrunedVocabulary(num_blocks=2, block_size=2)


def policy(rule=SCHEDULE, **slots):
  return decoding.ComputePolicy(exit_rule=rule, **slots)


def lossless(rule, tokens=3):
  return policy(
    rule,
    cache_fill=decoding.CatchUp((2, 5)),
    verification=decoding.VerifyEvery(tokens),
  )


POLICIES = {
  'full': policy(exits.NeverExit()),
  'eager': policy(),
  'deferred': policy(cache_fill=decoding.DeferredExitState(block_size=2)),
  'exact': policy(cache_fill=decoding.CatchUp((2, 5))),
  # Longer gaps than its blocks are: some run before the present position.
  'exact, small blocks': policy(cache_fill=decoding.CatchUp((1,))),
  'checks': policy(MARGIN),
  'sparse checks': policy(SPARSE, cache_fill=decoding.CatchUp((4,))),
  'candidates': policy(margin(0.8), readout=PRUNED),
  'candidates, then all': policy(
    margin(0.8), readout=dataclasses.replace(PRUNED, final='full')
  ),
  'drafts': lossless(exits.FixedExit(1)),
  'drafts of any depth': lossless(SCHEDULE),
  'checked drafts': lossless(MARGIN, tokens=2),
  'drafts of a head': policy(
    exits.NeverExit(),
    cache_fill=decoding.CatchUp((2, 5)),
    verification=decoding.DraftAhead(HEAD, decoding.VerifyEvery(3)),
  ),
}


class Calls:
  """What the functions of a decoder were called for, one after the other."""

  def __init__(self):
    self._made = []

  def decoder(self):
    """Returns the toy decoder whose functions note their calls."""
    plain = toy.toy_decoder(L)

    def note(name, **values):
      def made(**values):
        values = {key: np.asarray(value) for key, value in values.items()}
        self._made.append((name, values))

      jax.debug.callback(made, ordered=True, **values)

    def embed(params, tokens, positions):
      note('embed', positions=positions)
      return plain.embed(params, tokens, positions)

    def fill_layer(params, layer, hidden, positions, cache, where):
      note('fill', layer=layer, positions=positions, where=where)
      return plain.fill_layer(params, layer, hidden, positions, cache, where)

    def attend(params, layer, hidden, positions, cache, context=None):
      note('attend', layer=layer, positions=positions)
      return plain.attend(params, layer, hidden, positions, cache, context)

    def feed_forward(params, layer, hidden):
      note('feed_forward', layer=layer)
      return plain.feed_forward(params, layer, hidden)

    def logits(params, hidden, weights=None):
      # Of this many states, over this many tokens.
      size = V if weights is None else weights.shape[-2]
      note('logits', states=hidden[..., 0].size, size=size)
      return plain.logits(params, hidden, weights)

    return dataclasses.replace(
      plain,
      embed=embed,
      fill_layer=fill_layer,
      attend=attend,
      feed_forward=feed_forward,
      logits=logits,
    )

  def ledger(self):
    """Returns the columns [T] that follow from the calls, added up."""
    jax.effects_barrier()
    columns = ('attention', 'feed_forward', 'caught_up', 'fills')
    columns += ('projections', 'checks', 'outputs')
    sums = {name: np.zeros(T, int) for name in columns}
    present, layer, filled, ran = 0, -1, set(), set()
    for name, call in self._made:
      if name == 'embed':
        # A head has the last tokens embedded, too.
        present, layer = int(call['positions'].max()), -1
      elif name == 'fill':
        where = np.broadcast_to(call['where'], call['positions'].shape)
        filled = set(call['positions'][where].tolist())
        sums['projections'][present] += len(filled)
        # Blocks of a layer follow one another.
        if filled and int(call['layer']) != layer:
          sums['fills'][present] += 1
          layer = int(call['layer'])
      elif name == 'attend':
        # Places that nobody asked for are computed, too, and thrown away.
        ran = filled.intersection(call['positions'].ravel().tolist())
        sums['attention'][present] += present in ran
        sums['caught_up'][present] += len(ran - {present})
      elif name == 'feed_forward':
        sums['feed_forward'][present] += present in ran
      else:
        sums['checks'][present] += 1
        sums['outputs'][present] += call['states'] * call['size']
    return sums


# What others of the list show in part.
_MORE = (
  'full',
  'exact, small blocks',
  'sparse checks',
  'candidates, then all',
  'drafts of any depth',
  'drafts of a head',
  'deferred',
  'checked drafts',
)


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=[pytest.mark.slow] if name in _MORE else [])
    for name in POLICIES
  ],
)
def test_the_ledger_is_what_the_decoder_was_called_for(name):
  calls = Calls()
  bound = decoding.bind(
    calls.decoder(),
    toy.toy_params(L),
    depth_loop=decoding.WhileDepthLoop(),
  )
  work = decoding.generate(
    bound, np.array([[1]]), policy=POLICIES[name], max_length=T, eos_id=-1
  ).work
  for column, counted in calls.ledger().items():
    np.testing.assert_array_equal(
      getattr(work, column)[0], counted, err_msg=column
    )
