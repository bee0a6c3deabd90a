"""A generator whose certificate is watched while it serves."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Self

from calm_jax.calibration import monitor_states
from calm_jax.calibration.monitor_words import in_words
from calm_jax.calibration.risk_monitor import RiskMonitor
from calm_jax.evaluation import text_metrics
from calm_jax.pipeline.auditing import Auditor
from calm_jax.pipeline.decoding_texts import decode_texts
from calm_jax.pipeline.generated_text import GeneratedText, StreamedToken
from calm_jax.pipeline.requests import RequestBatch
from calm_jax.pipeline.text_generator import TextGenerator
from calm_jax.processes import speaking
from calm_jax.processes.file_locks import FileLock
from calm_jax.records import Alarm, MonitorState


class Monitor:
  """Serves, audits a fraction of what it serves, and falls back on an alarm.

  A random fraction of the requests is decoded at full depth as well. Their
  textual losses are bet on (`calibration.LossWatch`), and once they say that
  the certified mean is no longer kept, the alarm is raised and everything from
  the next batch on is decoded at full depth, until somebody calls `reset`.

  What was found is on disk before an audited output is returned, so that a
  restart forgets neither losses nor an alarm. A state belongs to one process at
  a time, which a lock sees to: several processes have a state each, and raise
  alarms of their own; of k of them with an error rate of 0.01 / k each, none
  ever raises a false one with probability 0.99. Threads may share a monitor.
  """

  def __init__(
    self,
    generator: TextGenerator,
    state: str | os.PathLike | None = None,
    *,
    fraction: float = 0.05,
    error_rate: float | None = None,
    guarantee: str | None = None,
    metric: str | Callable | None = None,
    seed: int = 0,
    full: TextGenerator | None = None,
    say: Callable[[str], None] = speaking.tell,
  ):
    """Begins, or goes on with what a state file holds.

    Args:
      generator: a generator that a certificate covers.
      state: the state file, such as `monitor.json` beside the certificate; None
        forgets everything at the end of the process.
      fraction: of the requests that are audited, in (0, 1].
      error_rate: of false alarms; that of the state, or 0.01, if None.
      guarantee: see `calibration.LossWatch`; that of the state, or 'ever', if
        None.
      metric: see `Auditor.of`.
      seed: which requests are audited.
      full: see `Auditor.of`.
      say: gets the line that tells of an alarm.

    Raises:
      ValueError: if there is nothing to watch, if the state is of another
        certificate, of other numbers or of another process, or cannot be read.
    """
    self._generator, self._say, self._closed = generator, say, False
    if metric is None and state is not None:
      begun, certificate = monitor_states.read(state), generator.certificate
      # Another certificate's state is refused below, by its name.
      if begun and certificate and begun.certificate == certificate.fingerprint:
        metric = begun.metric
    self._auditor = Auditor.of(
      generator, fraction=fraction, seed=seed, metric=metric, full=full
    )
    assert generator.certificate is not None
    self._full = generator.at_full_depth() if full is None else full
    self._lock = None
    if state is not None:
      state = os.path.expanduser(state)
      self._lock = FileLock(state, 'state file, as each process has its own')
    try:
      self._risk = RiskMonitor(
        generator.certificate,
        state,
        error_rate=error_rate,
        guarantee=guarantee,
        metric=text_metrics.metric_name(self._auditor.loss.metric),
      )
    except BaseException:
      self.close()
      raise
    self._turn = threading.Lock()
    self._next = self._risk.state.served
    self._tell()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *error) -> None:
    self.close()

  def close(self) -> None:
    """Lets another process have the state; nothing is served after it."""
    self._closed = True
    if self._lock is not None:
      self._lock.release()

  @property
  def alarm(self) -> Alarm | None:
    """The alarm that stands, None if there is none."""
    return self._risk.alarm

  @property
  def state(self) -> MonitorState:
    """What was seen so far."""
    return self._risk.state

  @property
  def serving(self) -> TextGenerator:
    """What decodes the next request: early exits, or full depth.

    Raises:
      ValueError: if the monitor was closed.
    """
    self._check_open()
    return self._generator if self.alarm is None else self._full

  def reset(self) -> None:
    """Goes back to early exits after an alarm; see `RiskMonitor.reset`."""
    self._check_open()
    with self._turn:
      self._risk.reset()

  def describe(self) -> str:
    """Says in a few lines what was seen, and whether there is an alarm."""
    return self._risk.describe()

  def generate(
    self, texts: Iterable[str], **options: Any
  ) -> list[GeneratedText] | list[list[GeneratedText]]:
    """Decodes texts; the options are those of `TextGenerator.generate`."""
    return decode_texts(self._generator, texts, decode=self.decode, **options)

  def decode(
    self, batch: RequestBatch, *, num_samples: int = 1, seed: int = 0
  ) -> list[list[GeneratedText]]:
    """Decodes one batch; returns the outputs of each of its requests."""
    serving = self.serving
    outputs = serving.decode(batch, num_samples=num_samples, seed=seed)
    if serving is self._generator:
      self._audit(batch, [samples[0].text for samples in outputs], seed)
    return outputs

  def stream(
    self, text: str, *, number: int = 0, seed: int = 0, **options: Any
  ) -> Iterator[StreamedToken]:
    """Yields tokens as `TextGenerator.stream` does.

    A request is counted, and perhaps audited, once its stream has ended. One
    that its reader leaves is decoded to the end then, and one that stops at
    numbers that are none counts with what was said: else the outputs that
    people leave would be those that nobody looks at.
    """
    serving, found = self.serving, []
    tokens = serving.stream(text, number=number, seed=seed, **options)
    try:
      for token in tokens:
        found.append(token.text)
        yield token
    finally:
      if serving is self._generator:
        with contextlib.suppress(FloatingPointError):
          found.extend(token.text for token in tokens)
        request = serving.encode(number, text, **options)
        (batch,) = serving.batches([request], 1)
        self._audit(batch, [''.join(found)], seed)

  def _audit(
    self, batch: RequestBatch, texts: Sequence[str], seed: int
  ) -> None:
    """Audits requests that were served early, and tells of an alarm."""
    served = len(texts)
    with self._turn:
      first = self._next
      self._next += served
    audits = self._auditor.audit(
      batch, texts, numbers=range(first, first + served), seed=seed
    )
    values = {place: audit.value for place, audit in audits.items()}
    with self._turn:
      raised = self._risk.observe(values, served=served)
    if raised:
      self._tell()

  def _check_open(self) -> None:
    if self._closed:
      raise ValueError(
        'this monitor was closed, and its state may be that of another process '
        'now: make a new one'
      )

  def _tell(self) -> None:
    if self.alarm is not None:
      self._say(
        f'{in_words(self.alarm)}. Every request is decoded at full depth from '
        'here on, until Monitor.reset()'
      )
