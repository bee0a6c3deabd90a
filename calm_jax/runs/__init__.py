"""A run directory as a value: its model, its tokenizer, its certificate.

`load_run` reads what training left; `decoding_context` writes down what a
decode depends on; `apply_certificate` is the only bridge from statistics to
decoding, and `policy_of` makes the policy of a certificate again.
"""

from calm_jax.runs.certificates import (
  apply_certificate,
  certificate_differences,
  certificate_path,
  check_covered,
  use_certificate,
  weights_of,
)
from calm_jax.runs.certified_policies import (
  policy_described,
  policy_of,
  sampler_of,
)
from calm_jax.runs.contexts import decoding_context
from calm_jax.runs.encoder_classifiers import (
  label_words,
  load_class_labels,
  load_class_temperatures,
  load_encoder_gate,
  load_encoder_heads,
)
from calm_jax.runs.int8_parameters import (
  int8_params,
  load_first_layers,
  load_int8,
)
from calm_jax.runs.loading import (
  LoadedRun,
  load,
  load_checkpoint,
  load_run,
)
from calm_jax.runs.part_loading import (
  load_classifier,
  load_context_gates,
  load_draft_head,
  load_exit_adapters,
  load_gate,
  load_router,
  load_source_scorer,
  load_twin_router,
  load_twins,
)
from calm_jax.runs.text_features import (
  TextFeatures,
  check_own_vocabulary,
  vocabulary_doubts,
)
from calm_jax.runs.tuned import (
  load_tuned_policy,
  read_tuning,
  tuned_certificate,
  tuned_depth_loop,
)

__all__ = [
  'LoadedRun',
  'TextFeatures',
  'apply_certificate',
  'certificate_differences',
  'certificate_path',
  'check_covered',
  'check_own_vocabulary',
  'decoding_context',
  'int8_params',
  'label_words',
  'load',
  'load_checkpoint',
  'load_class_labels',
  'load_class_temperatures',
  'load_classifier',
  'load_context_gates',
  'load_draft_head',
  'load_encoder_gate',
  'load_encoder_heads',
  'load_exit_adapters',
  'load_first_layers',
  'load_gate',
  'load_int8',
  'load_router',
  'load_run',
  'load_source_scorer',
  'load_tuned_policy',
  'load_twin_router',
  'load_twins',
  'policy_described',
  'policy_of',
  'read_tuning',
  'sampler_of',
  'tuned_certificate',
  'tuned_depth_loop',
  'use_certificate',
  'vocabulary_doubts',
  'weights_of',
]
