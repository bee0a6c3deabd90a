"""A tuning with everything in it, for what reads or shows one."""

import math

from calm_jax import records

PROMISES = (
  records.PromisedLoss(loss='textual', metric='rouge_l', tolerance=0.1),
  records.PromisedLoss(loss='signed', metric='rouge_l', tolerance=0.05),
)


def candidate(policy, setting, milliseconds, means, **fields):
  """One candidate; of a full model of 10 ms."""
  return records.TunedCandidate(
    policy=policy,
    setting=setting,
    described={'type': 'ComputePolicy'},
    milliseconds=milliseconds,
    speed_up=10 / milliseconds,
    mean_exit_layer=3.0 if means else math.nan,
    screening_means=means,
    screening_p_value=0.01 if means else math.nan,
    **fields,
  )


def tuning(**changes):
  """Two policies, one of them lossless; what was tested in every way."""
  tested = dict(test_means=(0.05, 0.01), test_p_value=0.02)
  return records.Tuning(
    **{
      'fingerprint': 'f',
      'promises': PROMISES,
      'p_value': 'betting(seed=0)',
      'error_rate': 0.05,
      'seed': 3,
      'screening_ids': ('a', 'b', 'c'),
      'test_ids': ('d', 'e'),
      'batch_size': 8,
      'full_milliseconds': 10.0,
      'candidates': (
        candidate('<margin>', 0.8, 9.0, (0.01, 0.0)),
        candidate('<margin>', 0.4, 6.0, (0.05, 0.02), certified=True, **tested),
        candidate('<margin>', 0.2, 4.0, (0.2, 0.1), test_means=(0.3, 0.1)),
        candidate('<margin>', 0.0, 3.9, (0.9, 0.8)),
        candidate('drafts', {}, 8.0, (), lossless=True),
      ),
      'front': (0, 1, 2, 3),
      'sequence': (1, 2, 3),
      'paper': 0,
      'compared': '<margin>',
      'left_out': ('<margin>, threshold 0.6',),
      'chosen': 1,
      'sentence': 'It is fast.',
      'context': records.RunContext(device='cpu <0>', dtype='float32'),
      **changes,
    }
  )
