"""Parts trained for a run's model, from their folders in its directory."""

import os

from calm_jax import exits
from calm_jax.checkpoints import gate_adapters, router_twins, trained_parts
from calm_jax.context_gates import ContextGates
from calm_jax.draft_heads import DraftHead
from calm_jax.exit_adapters import AdaptsExits
from calm_jax.exit_layers import adapters_of
from calm_jax.small_twins import SmallTwins
from calm_jax.source_scorer import SourceScorer
from calm_jax.token_router import TokenRouter


def load_classifier(
  model_dir: str | os.PathLike, *, name: str = trained_parts.CLASSIFIER.key
) -> exits.Classifier:
  """Loads the early-exit classifier that was trained for a run's parameters.

  Args:
    model_dir: a run directory that `calm_jax.cli.train_classifier` was run on.
    name: of the classifier's folder in it.

  Raises:
    FileNotFoundError: if there is none.
    ValueError: if it was trained for other parameters than the directory holds.
  """
  part = trained_parts.CLASSIFIER
  return exits.Classifier(**trained_parts.load_part(part, model_dir, name))


def load_gate(
  model_dir: str | os.PathLike,
  *,
  name: str = trained_parts.GATE.key,
  exit_adapters: str | None = None,
) -> exits.Gate:
  """Loads the gate that was trained for a run's parameters.

  Args:
    model_dir: a run directory that `calm_jax.cli.train_gates` was run on.
    name: of the gate's folder in it.
    exit_adapters: of the folder of those that exits are read through beside it,
      for `decoding.AdaptedVocabulary`; None where they are read as they are.

  Raises:
    FileNotFoundError: if there is none, or there are no such adapters.
    ValueError: if it was trained for other parameters than the directory holds,
      or beside other adapters.
  """
  part = trained_parts.GATE
  gate = exits.Gate(**trained_parts.load_part(part, model_dir, name))
  gate_adapters.check_read_through(model_dir, name, exit_adapters)
  return gate


def load_router(
  model_dir: str | os.PathLike, *, name: str = trained_parts.ROUTER.key
) -> exits.Router:
  """Loads the router that was trained for a run's parameters.

  Args:
    model_dir: a run directory that `calm_jax.cli.train_router` was run on.
    name: of the router's folder in it.

  Raises:
    FileNotFoundError: if there is none.
    ValueError: if it was trained for other parameters than the directory holds.
  """
  part = trained_parts.ROUTER
  return exits.Router(**trained_parts.load_part(part, model_dir, name))


def load_source_scorer(
  model_dir: str | os.PathLike, *, name: str = trained_parts.SOURCE_SCORER.key
) -> SourceScorer:
  """Loads the scorer of source positions trained for a run's parameters.

  Args:
    model_dir: a run directory that `calm_jax.cli.train_source` was run on.
    name: of the scorer's folder in it.

  Raises:
    FileNotFoundError: if there is none.
    ValueError: if it was trained for other parameters than the directory holds.
  """
  part = trained_parts.SOURCE_SCORER
  return SourceScorer(**trained_parts.load_part(part, model_dir, name))


def load_context_gates(
  model_dir: str | os.PathLike, *, name: str = trained_parts.CONTEXT_GATES.key
) -> ContextGates:
  """Loads the gates of its own past trained for a run's parameters.

  Args:
    model_dir: a run directory that `calm_jax.cli.train_context` was run on.
    name: of the gates' folder in it.

  Raises:
    FileNotFoundError: if there is none.
    ValueError: if they were trained for other parameters than the directory
      holds.
  """
  part = trained_parts.CONTEXT_GATES
  return ContextGates(**trained_parts.load_part(part, model_dir, name))


def load_draft_head(
  model_dir: str | os.PathLike, *, name: str = trained_parts.DRAFT_HEAD.key
) -> DraftHead:
  """Loads the head that was trained to draft for a run's parameters.

  Args:
    model_dir: a run directory that `calm_jax.cli.train_draft_head` was run on.
    name: of the head's folder in it.

  Raises:
    FileNotFoundError: if there is none.
    ValueError: if it was trained for other parameters than the directory holds.
  """
  part = trained_parts.DRAFT_HEAD
  return DraftHead(**trained_parts.load_part(part, model_dir, name))


def load_exit_adapters(
  model_dir: str | os.PathLike, *, name: str = trained_parts.EXIT_ADAPTERS.key
) -> AdaptsExits:
  """Loads the adapters that were trained for the exits of a run's model.

  Args:
    model_dir: a run directory that `calm_jax.cli.train_exits` was run on.
    name: of the adapters' folder in it.

  Raises:
    FileNotFoundError: if there are none.
    ValueError: if they were trained for other parameters than the directory
      holds.
  """
  part = trained_parts.EXIT_ADAPTERS
  return adapters_of(**trained_parts.load_part(part, model_dir, name))


def load_twins(
  model_dir: str | os.PathLike, *, name: str = trained_parts.SMALL_TWINS.key
) -> SmallTwins:
  """Loads the small twins of the feed-forwards of a run's model.

  Args:
    model_dir: a run directory that `calm_jax.cli.train_twins` was run on.
    name: of the twins' folder in it.

  Raises:
    FileNotFoundError: if there are none.
    ValueError: if they were trained for other parameters than the directory
      holds.
  """
  part = trained_parts.SMALL_TWINS
  return SmallTwins(**trained_parts.load_part(part, model_dir, name))


def load_twin_router(
  model_dir: str | os.PathLike,
  *,
  name: str = trained_parts.TWIN_ROUTER.key,
  twins: str = trained_parts.SMALL_TWINS.key,
) -> TokenRouter:
  """Loads the router that chooses between a run's feed-forwards and its twins.

  Args:
    model_dir: a run directory that `calm_jax.cli.train_twin_router` was run on.
    name: of the router's folder in it.
    twins: of that of the small twins that it is going to choose.

  Raises:
    FileNotFoundError: if there is none, or there are no such twins.
    ValueError: if it was trained for other parameters than the directory holds,
      or beside other twins.
  """
  part = trained_parts.TWIN_ROUTER
  router = TokenRouter(**trained_parts.load_part(part, model_dir, name))
  router_twins.check_routed(model_dir, name, twins)
  return router
