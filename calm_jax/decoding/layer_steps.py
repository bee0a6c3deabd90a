"""One layer of one position: what is done to it, whatever the depth loop.

`Layers` fills a layer's K/V, runs it and lets the exit rule look; `plan_steps`
has the layer plan's turns, before and after. Rows are masked: one that stopped
keeps its exit state, whatever is computed for the others.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from calm_jax import row_masks
from calm_jax.array_types import Array, PyTree
from calm_jax.decoding import companions as company
from calm_jax.decoding import feed_forwards, plan_steps
from calm_jax.decoding.layer_rows import Memory, Rows
from calm_jax.decoding.policy import ComputePolicy, PolicyState
from calm_jax.interfaces import (
  BoundDecoder,
  LayerView,
  LayerWork,
  PlanView,
  Work,
)


@dataclasses.dataclass(frozen=True)
class Layers:
  """The layers of one position: what any depth loop may do with them.

  Attributes:
    bound: the decoder with its parameters.
    policy: the policy.
    positions: int32 [B], the position each row decodes.
    alive: bool [B], rows whose sequence has not ended.
    asked: bool [B], rows that the exit rule is asked about; the others run all
      layers, and nobody wants logits of the last one. None for all rows, whose
      last layer is read out.
    walk: the layers that are in the program, ascending; None for all. Every
      row ends at the last of them.
  """

  bound: BoundDecoder
  policy: ComputePolicy
  positions: Array
  alive: Array
  asked: Array | None = None
  walk: tuple[int, ...] | None = None

  @property
  def num_layers(self) -> int:
    """L."""
    return self.bound.num_layers

  @property
  def walked(self) -> tuple[int, ...]:
    """The layers that are in the program, ascending."""
    return tuple(range(self.num_layers)) if self.walk is None else self.walk

  @property
  def ends_early(self) -> bool:
    """Whether a layer plan has left the top layer out of the program."""
    planned = not self.policy.layer_plan.every_layer
    return planned and self.walked[-1] + 1 < self.num_layers

  def start(self, hidden: Array, policy: PolicyState) -> Rows:
    """Returns rows before the first layer; `hidden` [B, 1, D]."""
    batch_size = hidden.shape[0]
    rows = Rows(
      hidden=hidden,
      active=self.alive,
      exit_layers=jnp.full((batch_size,), -1, jnp.int32),
      confidences=jnp.full((batch_size,), jnp.nan, jnp.float32),
      rejected_confidences=jnp.full((batch_size,), -jnp.inf, jnp.float32),
      reading=None,
      policy=dataclasses.replace(policy, cache_fill=None),
      companions=self.policy.cache_fill.companions(
        policy.cache_fill, self.positions
      ),
      lacking=self.policy.cache_fill.lacking(policy.cache_fill, self.positions),
      work=Work.none((batch_size,)),
    )
    if not self.policy.exit_rule.needs_logits:
      return rows
    read = functools.partial(self._read, layer=0, first=True, of=self.alive)
    reading = jax.tree.map(
      lambda shape: jnp.zeros(shape.shape, shape.dtype),
      jax.eval_shape(read, rows).reading,
    )
    return dataclasses.replace(rows, reading=reading)

  def fill(
    self, layer: Array | int, rows: Rows, memory: Memory
  ) -> tuple[Rows, Memory, LayerWork]:
    """Writes the K/V of a layer that is about to run, or is left over.

    Returns the rows, now with who runs the layer beside them, the memory, and
    what the layer plan asks of the layer.
    """
    plan = self.policy.layer_plan
    rows, asked = plan_steps.ask(plan, self._plan_view(layer, rows), rows)
    write = functools.partial(
      self._fill,
      layer,
      places=self.positions if asked.slots is None else asked.slots,
    )
    filled = plan_steps.fill(
      plan, asked, write, alive=self.alive, rows=rows, memory=memory
    )
    return *filled, asked

  def _plan_view(self, layer: Array | int, rows: Rows) -> PlanView:
    """Returns what the layer plan sees of a layer that will run."""
    return PlanView(
      layer=layer,
      positions=self.positions,
      hidden=rows.hidden[:, 0],
      active=rows.active,
      alive=self.alive,
    )

  def _fill(
    self,
    layer: Array | int,
    rows: Rows,
    memory: Memory,
    *,
    wanted: Array,
    places: Array,
  ) -> tuple[Rows, Memory]:
    """Writes the K/V of a layer for the rows that are wanted, bool [B].

    At places int32 [B] of the cache.
    """
    fill, state = self.policy.cache_fill, memory.cache_fill
    if rows.companions is not None:
      state = fill.take_back(state, rows.companions, self.positions)
    state, cache, work = fill.step(
      state,
      self.bound,
      layer=layer,
      hidden=rows.hidden,
      positions=places,
      cache=memory.cache,
      active=rows.active,
      alive=wanted,
    )
    companions = fill.companions(state, self.positions)
    done = rows.work.plus(
      fills=work.projections > 0, projections=work.projections
    )
    if work.caught_up is not None:
      done = done.plus(caught_up=work.caught_up)
    rows = dataclasses.replace(rows, companions=companions, work=done)
    return rows, Memory(cache=cache, cache_fill=state)

  def finish(self, rows: Rows, memory: Memory) -> Memory:
    """Returns the memory once every row has stopped and all is filled."""
    fill, state = self.policy.cache_fill, memory.cache_fill
    if rows.companions is not None:
      state = fill.take_back(state, rows.companions, self.positions)
    state = fill.finish(state, rows.hidden, self.positions, self.alive)
    return dataclasses.replace(memory, cache_fill=state)

  def run(
    self, layer: Array | int, rows: Rows, cache: PyTree, work: LayerWork
  ) -> Rows:
    """Runs a layer whose K/V are in the cache, and lets the exit rule look."""
    previous, plan = rows.hidden, self.policy.layer_plan
    view = self._plan_view(layer, rows)

    def attend(hidden, positions):
      return self.bound.attend(layer, hidden, positions, cache, work.context)

    def attend_here(hidden):
      return attend(hidden, self.positions[:, None])

    def feed_forward(hidden):
      return self.bound.feed_forward(layer, hidden)

    companions = rows.companions
    attended = previous
    if companions is None:
      run = functools.partial(
        row_masks.run_rows, rows.active, branch=plan.may_skip_for_all
      )
      attended = run(work.attention, attend_here, previous)
      hidden = feed_forwards.run_chosen(
        rows.active,
        work.feed_forward,
        own=feed_forward,
        twins=plan.twins,
        layer=layer,
        hidden=attended,
        branch=plan.may_skip_for_all,
      )
    else:
      hidden, companions = company.run_together(
        lambda hidden, positions: feed_forward(attend(hidden, positions)),
        previous,
        self.positions,
        companions,
      )
    rows = dataclasses.replace(
      rows,
      hidden=row_masks.keep_rows(rows.active, hidden, previous),
      companions=companions,
      work=rows.work.plus(**plan_steps.done(plan, rows.active, work)),
    )
    rows = self._exit(layer, rows, previous, work.ran)
    if all(part is None for part in work):
      return rows
    view = dataclasses.replace(view, attended=attended[:, 0], left=hidden[:, 0])
    return plan_steps.tell(plan, view, rows, work=work)

  def read(self, rows: Rows) -> Rows:
    """Returns rows with the logits of their exit states."""
    checked = self.policy.exit_rule.needs_logits
    if checked and not self.policy.readout.reads_exit_states:
      return rows
    # The layer each state came from; rows that are not decoded have none.
    layer = jnp.maximum(rows.exit_layers - 1, 0)
    return self._read(rows, layer, first=not checked, of=self.alive)

  @property
  def first_check(self) -> int:
    """The layer of the first check of every token; the last one is a check."""
    looks = self.policy.exit_rule.looks
    *before, last = self.walked
    return next((layer for layer in before if looks(layer)), last)

  def _read(
    self, rows: Rows, layer: Array | int, *, first: Array | bool, of: Array
  ) -> Rows:
    """Computes logits of the present states, for the rows in `of` [B]."""
    state, reading = self.policy.readout.step(
      rows.policy.readout,
      self.bound,
      hidden=rows.hidden[:, 0],
      layer=layer,
      first=first,
      active=of,
    )
    outputs = self.policy.readout.num_outputs(
      self.bound.vocab_size, layer=layer, first=first
    )
    extra = self.policy.readout.extra_products(layer)
    return dataclasses.replace(
      rows,
      reading=reading,
      work=rows.work.plus(
        checks=of, outputs=of * outputs, extra_products=of * extra
      ),
      policy=dataclasses.replace(rows.policy, readout=state),
    )

  def _exit(
    self, layer: Array | int, rows: Rows, previous: Array, ran: Array | None
  ) -> Rows:
    """Ends the rows that the exit rule, or the last layer, ends here.

    The rule is not asked about rows in which the layer did not run; `ran` bool
    [B], None for all.
    """
    rule = self.policy.exit_rule
    last = layer == self.walked[-1]
    looks = rule.looks(layer)
    asked, wanted = rows.active, looks | last
    if self.asked is not None:
      asked = rows.active & self.asked
      wanted = looks = looks if looks is False else looks & asked.any()
    read_of = asked
    if ran is not None:
      # Whatever ran, the last layer's end is where a row is read out.
      read_of, asked = asked & (ran | last), asked & ran
    now = rows
    if rule.needs_logits:
      first = layer == self.first_check
      read = functools.partial(self._read, layer=layer, first=first, of=read_of)
      now = row_masks.when(wanted, read, rows)

    def look(_):
      logits, token_ids, log_total = now.reading or (None, None, None)
      view = LayerView(
        layer=layer,
        positions=self.positions,
        hidden=now.hidden[:, 0],
        previous_hidden=previous[:, 0],
        logits=logits,
        token_ids=token_ids,
        log_total=log_total,
        active=asked,
        lacking=rows.lacking,
      )
      state, stops, confidences = rule.step(now.policy.exit_rule, view)
      state = row_masks.keep_rows(asked, state, now.policy.exit_rule)
      if asked is not rows.active:
        stops &= asked
        confidences = jnp.where(asked, confidences, jnp.nan)
      return state, stops, confidences.astype(jnp.float32)

    nothing_seen = (
      now.policy.exit_rule,
      jnp.zeros(rows.active.shape, bool),
      jnp.full(rows.active.shape, jnp.nan, jnp.float32),
    )
    state, stops, confidences = row_masks.when(looks, look, nothing_seen)
    leaves = rows.active & stops
    stops = rows.active & (stops | last)
    depth, seen, passed = layer + 1, confidences, ~stops
    if self.ends_early:
      # A row that never left: as where the layers above are in the program.
      depth = jnp.where(leaves, depth, self.num_layers)
      seen, passed = jnp.where(leaves, seen, jnp.nan), ~leaves
    rejected = rows.active & passed & ~jnp.isnan(confidences)
    highest = jnp.maximum(rows.rejected_confidences, confidences)
    return Rows(
      hidden=now.hidden,
      companions=rows.companions,
      lacking=rows.lacking,
      work=now.work,
      active=rows.active & ~stops,
      exit_layers=jnp.where(stops, depth, rows.exit_layers),
      confidences=jnp.where(stops, seen, rows.confidences),
      rejected_confidences=jnp.where(
        rejected, highest, rows.rejected_confidences
      ),
      reading=row_masks.keep_rows(stops, now.reading, rows.reading),
      policy=dataclasses.replace(now.policy, exit_rule=state),
    )
