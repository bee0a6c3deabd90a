"""What a tuning chose, loaded: policies that were written down whole."""

import pytest
from cases import text_cases, tuning_cases

from calm_jax import decoding, exits, records, runs


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  return text_cases.save_run(tmp_path_factory.mktemp('run'))


@pytest.mark.slow
def test_lossless_drafts_of_first_layers_are_made_again(run):
  policy = decoding.ComputePolicy(
    cache_fill=decoding.CatchUp(block_sizes=(3,)),
    verification=decoding.DraftAhead(
      runs.load_first_layers(run, layers=1), decoding.VerifyEvery(3)
    ),
  )
  described = decoding.describe(policy, {})
  made = runs.policy_described(records.to_jsonable(described), run)
  assert decoding.describe(made, {}) == described
  assert made.verifies and made.verification.head.layers == 1


def test_numbers_of_the_setting_are_in_it(run):
  threshold = exits.DecayingThreshold(0.3, temperature=4.0)
  rule = exits.ConfidenceExit(exits.SoftmaxMargin(), threshold)
  policy = decoding.ComputePolicy(
    exit_rule=exits.LayerBudget(rule, per_request=7)
  )
  described = decoding.describe(policy, {})
  made = runs.policy_described(described, run)
  assert decoding.describe(made, {}) == described
  assert made.exit_rule.rule.threshold.value == 0.3
  with pytest.raises(ValueError, match='cannot be made again'):
    runs.policy_described({**described, 'exit_rule': {'type': 'Nothing'}}, run)


def test_what_is_not_there_is_named(run, tmp_path):
  with pytest.raises(FileNotFoundError, match=r'tuned\.json; calm_jax\.cli'):
    runs.tuned_certificate(run)
  records.write_json(tmp_path / records.TUNED_NAME, {'chosen': 3})
  with pytest.raises(ValueError, match='was not written by this version'):
    runs.read_tuning(run, tuned=str(tmp_path))
  found = tuning_cases.tuning()
  records.write_json(tmp_path / records.TUNED_NAME, found)
  assert records.to_jsonable(
    runs.read_tuning(run, tuned=str(tmp_path))
  ) == records.to_jsonable(found)
  assert runs.tuned_certificate(run, tuned=str(tmp_path)) is None


def test_where_nothing_is_chosen_it_is_the_full_model(run, tmp_path):
  """Whatever was tested first, and whether its parts are still there."""
  found = tuning_cases.tuning(chosen=None, certificate='certificate.json')
  records.write_json(tmp_path / records.TUNED_NAME, found)
  folder = {'tuned': str(tmp_path)}
  assert runs.load_tuned_policy(run, **folder) == decoding.ComputePolicy()
  assert runs.tuned_certificate(run, **folder) is None
