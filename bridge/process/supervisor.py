"""The workers of each configuration, and how one configuration follows another.

A reload starts workers beside the old ones. When all of them are prepared, they listen,
and the old ones end. Either all of a configuration takes effect or none. The supervisor
is driven by `tick`, with the time as its argument.
"""

import logging
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Protocol

from bridge.config import BridgeConfig, ConfigText
from bridge.errors import ConfigError
from bridge.process.reload import Reloads, changes
from bridge.process.role import UNPROVEN, WITHOUT_KEYS, WorkerOrder
from bridge.process.worker_process import Spawn, Worker

_READY_SECONDS = 30.0
"""The longest that the workers of a new configuration may take to get ready."""
_LISTEN_SECONDS = 5.0
"""The longest that they may take to listen, once all are prepared."""
_MARGIN_SECONDS = 7.0
"""Added to `limits.drain`; a worker ends itself before that, where it still can."""
_log = logging.getLogger(__name__)


class Replaceable(Protocol):
    """A part of the parent that a reload replaces together with the workers."""

    def prepare(self, source: ConfigText) -> None:
        """Make the part of another configuration, beside the one in service.

        Raises:
            ConfigError: It cannot be made.
            OSError: The system gives no more descriptors.
            RuntimeError: The system gives no more threads.
        """

    def commit(self) -> None:
        """Put what was prepared in service, and end what it replaces. Never fails."""

    def discard(self) -> None:
        """End what was prepared, if anything was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerDefaults:
    """What all workers have in common."""

    folder: str
    """Private to the parent and its workers."""
    cpus: Sequence[int]
    """The cores that the workers may use; where there are several workers, one each."""
    log_level: str = "INFO"


@dataclass(slots=True)
class _Generation:
    # The workers of one configuration.
    source: ConfigText
    workers: tuple[Worker, ...]
    ready_by: float = float("inf")
    is_held: bool = False

    @property
    def is_ready(self) -> bool:
        return all(worker.is_ready for worker in self.workers)

    @property
    def is_prepared(self) -> bool:
        return all(worker.is_prepared for worker in self.workers)

    def release(self) -> None:
        self.is_held = False
        for worker in self.workers:
            worker.release()

    def unready(self) -> str:
        reasons = (
            f"{worker.order.writer} {worker.why_unready()}"
            for worker in self.workers
            if not (worker.is_prepared if self.is_held else worker.is_ready)
        )
        return f"its workers did not get ready in time: {'; '.join(reasons)}"

    @property
    def is_gone(self) -> bool:
        return all(worker.is_gone for worker in self.workers)

    def refusal(self) -> str:
        refused = (worker.reason for worker in self.workers if worker.is_refused)
        return next(refused, "")

    def named(self, warning: str) -> frozenset[str] | None:
        # None if one of the workers does not answer.
        named: frozenset[str] = frozenset()
        for worker in self.workers:
            if (names := worker.named(warning)) is None:
                return None
            named |= names
        return named


class Supervisor:
    """Starts, watches and replaces workers.

    Args:
        source: The first configuration.
        spawn: Starts a worker.
        defaults: What all workers have in common.
        reloads: Counts the reloads and keeps the last refusal.
        parts: Parts of the parent that a reload replaces with the workers.
    """

    def __init__(
        self,
        source: ConfigText,
        spawn: Spawn,
        defaults: WorkerDefaults,
        reloads: Reloads,
        parts: Sequence[Replaceable] = (),
    ) -> None:
        self._spawn = spawn
        self._defaults = defaults
        self._reloads = reloads
        self._parts = parts
        self._restarts: Counter[str] = Counter()
        self._leaving: list[_Generation] = []
        self._next: _Generation | None = None
        self._is_proven = False
        self._is_stopping = False
        self._current = self._generation(source, taken=())

    @property
    def config(self) -> BridgeConfig:
        """The configuration in service."""
        return self._current.source.config

    @property
    def source(self) -> ConfigText:
        """The configuration in service, with its text."""
        return self._current.source

    @property
    def is_over(self) -> bool:
        """Whether every worker has ended after `stop`."""
        return self._is_stopping and not self._leaving

    @property
    def has_started(self) -> bool:
        """Whether a worker of the first configuration has got through its start."""
        workers = self._current.workers
        return self._is_proven or any(worker.has_answered for worker in workers)

    @property
    def is_settled(self) -> bool:
        """Whether nothing is expected to happen soon."""
        is_whole = all(
            worker.child or worker.is_given_up for worker in self._current.workers
        )
        return self._is_proven and is_whole and self._next is None and not self._leaving

    def workers(self) -> tuple[Worker, ...]:
        """Return every worker: the serving ones first, then others. For threads."""
        others = (self._next, *self._leaving)
        generations = (self._current, *(each for each in others if each is not None))
        # A generation that begins to leave is in two places for a moment.
        return tuple(
            dict.fromkeys(worker for each in generations for worker in each.workers)
        )

    def serving(self) -> tuple[Worker, ...]:
        """Return the workers of the configuration in service. For threads."""
        return self._current.workers

    def restarts(self) -> dict[str, int]:
        """Return how often the worker of each name was started again. For threads."""
        total = self._restarts.copy()
        for worker in self.workers():
            total[worker.order.writer] += worker.restarts
        return total

    def tick(self, now: float) -> None:
        """Do what is due.

        Args:
            now: Seconds of a clock that never goes back.

        Raises:
            ConfigError: A worker has tried the first configuration and cannot use it.
        """
        for worker in self.workers():
            worker.tick(now)
        if not self._is_proven:
            self._look_at_first()
        if self._next is not None:
            self._look_at_next(self._next, now)
        self._look_at_leaving()

    def reload(self, source: ConfigText, now: float) -> None:
        """Begin to replace the workers by those of another configuration.

        `Reloads` is told whether they serve or are refused.
        """
        if self._is_stopping:
            return
        self._abandon_next(now)
        try:
            for part in self._parts:
                part.prepare(source)
        except ConfigError as error:
            self._refuse(error)
            return
        except (OSError, RuntimeError) as error:
            self._refuse(ConfigError(f"it cannot be prepared now: {error}"))
            return
        self._next = self._generation(source, taken=self.workers(), is_held=True)
        self._next.ready_by = now + _READY_SECONDS
        told = changes(self.source.text, source.text) or ["no key has changed"]
        _log.info("a new configuration, starting its workers: %s", "; ".join(told))

    def stop(self, now: float) -> None:
        """Begin to end every worker; calls under way are finished."""
        if self._is_stopping:
            return
        self._is_stopping = self._is_proven = True
        self._abandon_next(now)
        self._leave(self._current, now)

    def kill(self) -> None:
        """End every worker at once."""
        for worker in self.workers():
            worker.kill()

    def _look_at_first(self) -> None:
        if any(worker.is_ready for worker in self._current.workers):
            self._is_proven = True
            for part in self._parts:
                part.commit()
        elif refusal := self._current.refusal():
            raise ConfigError(refusal)

    def _look_at_next(self, new: _Generation, now: float) -> None:
        losses: list[str] = []
        if new.is_held and new.is_prepared and not (losses := self._losses(new)):
            # All that can fail has been tried but for the ports.
            new.release()
            new.ready_by = max(new.ready_by, now + _LISTEN_SECONDS)
        if not new.is_held and new.is_ready:
            old, self._current, self._next = self._current, new, None
            self._is_proven = True
            for part in self._parts:
                part.commit()
            self._leave(old, now)
            self._reloads.done()
        elif (why := new.refusal()) or now >= new.ready_by:
            why = why or "; ".join(losses) or new.unready()
            self._abandon_next(now)
            self._refuse(ConfigError(why))

    def _losses(self, new: _Generation) -> list[str]:
        # What callers would lose although the new workers are ready.
        before, after = self.config, new.source.config
        losses: list[str] = []
        without_keys, unproven = new.named(WITHOUT_KEYS), new.named(UNPROVEN)
        if without_keys is None or unproven is None:
            return ["a new worker does not say what it lacks"]
        # Token keys and remote secrets start empty in new workers. Where those of a
        # cluster cannot be read now, the workers in service have them still.
        absent = without_keys & {one.name for one in before.clusters}
        if absent and (
            lost := absent - (self._current.named(WITHOUT_KEYS) or frozenset())
        ):
            names = ", ".join(sorted(lost))
            losses.append(
                f"no token keys or remote secret of {names}, which the old workers have"
            )
        # An issuing CA that is as it was may be down, and others sign.
        losses += (
            f"issuing_cas.{name} has not signed"
            for name in sorted(unproven)
            if after.issuing_cas[name] != before.issuing_cas.get(name)
        )
        return losses

    def _refuse(self, error: ConfigError) -> None:
        for part in self._parts:
            part.discard()
        self._reloads.refused(error)

    def _abandon_next(self, now: float) -> None:
        if self._next is not None:
            self._leave(self._next, now)
            self._next = None
            for part in self._parts:
                part.discard()

    def _look_at_leaving(self) -> None:
        gone = [each for each in self._leaving if each.is_gone]
        for generation in gone:
            for worker in generation.workers:
                self._restarts[worker.order.writer] += worker.restarts
        self._leaving = [each for each in self._leaving if each not in gone]

    def _leave(self, generation: _Generation, now: float) -> None:
        drain = generation.source.config.limits.drain.total_seconds()
        self._leaving.append(generation)
        for worker in generation.workers:
            worker.stop(now, drain + _MARGIN_SECONDS)

    def _generation(
        self, source: ConfigText, taken: Sequence[Worker], *, is_held: bool = False
    ) -> _Generation:
        # A journal has one writer: a name is free when its worker has ended.
        free = _free_names(source.config, {worker.order.writer for worker in taken})
        names = tuple(islice(free, source.config.workers))
        defaults, anchors = self._defaults, source.anchors
        # The scheduler places a single worker: the workers of other bridges on the
        # machine would keep to the same core.
        cpus = defaults.cpus if names[1:] else [None]
        workers = [
            Worker(
                WorkerOrder(
                    path=str(source.path),
                    text=source.text,
                    writer=writer,
                    cpu=cpus[index % len(cpus)],
                    folder=defaults.folder,
                    log_level=defaults.log_level,
                    anchors=None if anchors is None else anchors.decode("latin-1"),
                    is_held=is_held,
                ),
                self._spawn,
            )
            for index, writer in enumerate(names)
        ]
        return _Generation(source, tuple(workers), is_held=is_held)


def _free_names(config: BridgeConfig, taken: Collection[str]) -> Iterator[str]:
    # Where bridges share an archive, the names of their writers differ.
    replica = config.ledger.replica
    prefix = f"{replica}-w" if replica else "w"
    return (name for index in count() if (name := f"{prefix}{index}") not in taken)
