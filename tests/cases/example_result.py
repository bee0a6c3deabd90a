"""An evaluation result with every field filled, for tests of reporting."""

import math

import numpy as np

from calm_jax import records

NUM_LAYERS = 8


def policy_row(name, kind, setting, quality, textual, mean, histogram):
  """Returns a row whose histogram is given in percent of 5,000 tokens."""
  return records.PolicyRow(
    name=name,
    kind=kind,
    setting=setting,
    quality={'rouge_l': quality, 'exact_match': quality - 9.0},
    textual_consistency=textual,
    textual_standard_error=0.0 if kind == 'full' else 0.004,
    risk_consistency=textual / 3,
    risk_standard_error=0.002,
    mean_exit_layer=mean,
    exit_layer_histogram=tuple(50 * count for count in histogram),
    num_tokens=50 * sum(histogram),
  )


def sample(source, text, full_text, loss, seed):
  """Returns a sample whose exit layers are drawn."""
  generator = np.random.default_rng(seed)

  def decoded(text, layers=None):
    words = text.split(' ')
    pieces = [
      piece
      for word in words
      for piece in ('\u2581' + word[:5], word[5:])
      if piece
    ] + ['</s>']
    drawn = np.minimum(1 + generator.geometric(0.45, len(pieces)), NUM_LAYERS)
    drawn[generator.random(len(pieces)) < 0.3] = 1
    return records.DecodedText(
      text=text,
      tokens=tuple(range(3, 3 + len(pieces))),
      pieces=tuple(pieces),
      exit_layers=tuple([layers] * len(pieces) if layers else drawn.tolist()),
      confidences=tuple(
        [math.nan] * len(pieces)
        if layers
        else generator.random(len(pieces)).tolist()
      ),
    )

  return records.SampleOutput(
    example_id=f'{seed:016x}',
    source=source,
    references=(full_text, full_text + ' indeed'),
    early=decoded(text),
    full=decoded(full_text, NUM_LAYERS),
    loss=loss,
  )


def evaluation_result(**changes) -> records.EvaluationResult:
  """Returns the example, with some fields changed."""
  fields = {
    'task': 'embedded_numbers',
    'split': 'test',
    'num_examples': 500,
    'num_layers': NUM_LAYERS,
    'primary_metric': 'rouge_l',
    'rows': (
      policy_row('full model', 'full', None, 86.2, 0, 8, [0] * 7 + [100]),
      policy_row(
        'early exit, certified',
        'certified',
        0.7,
        85.1,
        0.082,
        3.18,
        [31, 22, 14, 10, 8, 6, 5, 4],
      ),
      policy_row(
        'static, layer 1', 'static', 1, 41.7, 0.55, 1, [100] + [0] * 7
      ),
      policy_row(
        'static, layer 4', 'static', 4, 73.9, 0.21, 4, [0] * 3 + [100] + [0] * 4
      ),
      policy_row(
        'oracle', 'oracle', None, 86.1, 0.001, 1.7, [68, 15, 7, 4, 3, 1, 1, 1]
      ),
      records.PolicyRow(
        name='copy of the source',
        kind='baseline',
        setting=None,
        quality={'rouge_l': 33.0, 'exact_match': 0.0},
        textual_consistency=0.8,
        textual_standard_error=0.01,
        risk_consistency=math.nan,
        risk_standard_error=math.nan,
        mean_exit_layer=math.nan,
        exit_layer_histogram=(0,) * NUM_LAYERS,
        num_tokens=0,
      ),
    ),
    'sweep': tuple(
      policy_row(
        f'threshold {threshold}',
        'early_exit',
        threshold,
        86.3 - 30 * (1 - threshold) ** 3,
        0.3 * (1 - threshold),
        1.6 + 5.8 * threshold**2,
        [30, 20, 10, 10, 10, 10, 5, 5],
      )
      for threshold in (0.9, 0.8, 0.5, 0.3)
    )
    + tuple(
      policy_row(
        f'static {layer}',
        'static',
        layer,
        quality,
        0.1,
        layer,
        [12] * 8,
      )
      for layer, quality in ((2, 58.0), (3, 67.3), (5, 78.8), (6, 82.0))
    ),
    'certificate': records.CertificateSummary(
      certified=True,
      threshold=0.7,
      setting=0.7,
      tolerance=0.1,
      error_rate=0.05,
      loss='textual',
      metric='rouge_l',
      measure='SoftmaxMargin',
      num_examples=500,
      calibration_loss=0.079,
      description='Certified: setting 7 of 21, threshold 0.7. With probability '
      'at least 0.95 over the draw of the 500 calibration examples, its '
      'expected textual loss on inputs like them is at most 0.1.',
    ),
    'timings': tuple(
      records.TimingRow(
        name=name,
        batch_size=batch_size,
        depth_loop='unrolled',
        milliseconds_per_step=step,
        milliseconds_per_batch=20 * step,
        speed_up=speed_up,
        ceiling=ceiling,
        num_batches=10,
        num_repeats=5,
        mean_exit_layer=mean,
      )
      for name, batch_size, step, speed_up, ceiling, mean in (
        ('full model', 1, 1.31, 1.0, 1.0, 8.0),
        ('early exit, certified', 1, 0.79, 1.66, 2.1, 3.2),
        ('full model', 8, 2.5, 1.0, 1.0, 8.0),
        ('early exit, certified', 8, 2.2, 1.14, 1.3, 3.2),
      )
    ),
    'samples': (
      sample(
        'on 3 May 1987 we paid 4,718 euros for <b>17</b> chairs',
        'le trois mai mille neuf cent quatre-vingt-huit nous avons payé',
        'le trois mai mille neuf cent quatre-vingt-sept nous avons payé quatre '
        'mille sept cent dix-huit euros pour dix-sept chaises',
        0.41,
        1,
      ),
      sample(
        'it is 12 degrees', 'il fait douze degrés', 'il fait douze degrés', 0, 2
      ),
    ),
    'sample_selection': 'the worst output, then one at random (seed 0)',
    'context': records.RunContext(
      device='cpu',
      dtype='float32',
      machine='2 cores, x86_64',
      versions={'jax': '0.10.2', 'flax': '0.12.8'},
      seeds={'training': 0},
      command='scripts/demo.sh',
      details={'parameters': 'checksum 0123abcd'},
    ),
  }
  return records.EvaluationResult(**{**fields, **changes})
