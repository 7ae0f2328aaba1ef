"""The workers of each configuration, and how one configuration follows another.

A reload starts workers beside the old ones, and ends the old ones when the new ones are
ready: whatever a configuration changes, it is either in service as a whole or not at
all. All of it is driven by `tick`, with the time as its argument.
"""

import logging
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice

from bridge.config import BridgeConfig, ConfigText
from bridge.errors import ConfigError
from bridge.process.reload import Reloads
from bridge.process.role import WorkerOrder
from bridge.process.worker_process import Spawn, Worker

_READY_SECONDS = 30.0
"""The longest that the workers of a new configuration may take to get ready."""
_MARGIN_SECONDS = 7.0
"""Added to `limits.drain`; a worker ends itself before that, where it still can."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerDefaults:
    """What all workers have in common."""

    folder: str
    """Private to the parent and its workers."""
    cpus: Sequence[int]
    """The cores that the workers may use; one each, in turn."""
    log_level: str = "INFO"


@dataclass(slots=True)
class _Generation:
    # The workers of one configuration.
    source: ConfigText
    workers: tuple[Worker, ...]
    ready_by: float = float("inf")

    @property
    def is_ready(self) -> bool:
        return all(worker.is_ready for worker in self.workers)

    @property
    def is_gone(self) -> bool:
        return all(worker.is_gone for worker in self.workers)

    def refusal(self) -> str:
        refused = (worker.reason for worker in self.workers if worker.is_refused)
        return next(refused, "")


class Supervisor:
    """Starts, watches and replaces workers.

    Args:
        source: The first configuration.
        spawn: Starts a worker.
        surroundings: What all workers have in common.
        reloads: Is told what becomes of a change.
    """

    def __init__(
        self,
        source: ConfigText,
        spawn: Spawn,
        surroundings: WorkerDefaults,
        reloads: Reloads,
    ) -> None:
        self._spawn = spawn
        self._surroundings = surroundings
        self._reloads = reloads
        self._restarts: Counter[str] = Counter()
        self._leaving: list[_Generation] = []
        self._next: _Generation | None = None
        self._is_proven = False
        self._is_stopping = False
        self._current = self._generation(source, taken=())

    @property
    def config(self) -> BridgeConfig:
        """What is in service."""
        return self._current.source.config

    @property
    def is_over(self) -> bool:
        """Whether everything has ended after `stop`."""
        return self._is_stopping and not self._leaving

    @property
    def is_settled(self) -> bool:
        """Whether nothing is expected to happen soon."""
        is_whole = self._is_proven and all(
            worker.child for worker in self._current.workers
        )
        return is_whole and self._next is None and not self._leaving

    def workers(self) -> tuple[Worker, ...]:
        """Return every worker: the serving ones first, then others. For threads."""
        others = (self._next, *self._leaving)
        generations = (self._current, *(each for each in others if each is not None))
        # One that is on its way out is in two of them for a moment.
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
            ConfigError: The first configuration cannot be used, says a worker that
                has tried.
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

        Whatever comes of it, `Reloads` is told.
        """
        if self._is_stopping:
            return
        if self._next is not None:
            self._leave(self._next, now)
            self._next = None
        try:
            _require_replaceable(self.config, source.config)
        except ConfigError as error:
            self._reloads.refused(error)
            return
        self._next = self._generation(source, taken=self.workers())
        self._next.ready_by = now + _READY_SECONDS
        _log.info("a new configuration: starting its workers")

    def stop(self, now: float) -> None:
        """Begin to end everything; what is under way is finished."""
        if self._is_stopping:
            return
        self._is_stopping = self._is_proven = True
        for generation in (self._next, self._current):
            if generation is not None:
                self._leave(generation, now)
        self._next = None

    def kill(self) -> None:
        """End everything at once."""
        for worker in self.workers():
            worker.kill()

    def _look_at_first(self) -> None:
        if any(worker.is_ready for worker in self._current.workers):
            self._is_proven = True
        elif refusal := self._current.refusal():
            raise ConfigError(refusal)

    def _look_at_next(self, new: _Generation, now: float) -> None:
        if new.is_ready:
            old, self._current, self._next = self._current, new, None
            self._is_proven = True
            self._leave(old, now)
            self._reloads.done()
        elif (why := new.refusal()) or now >= new.ready_by:
            self._next = None
            self._leave(new, now)
            self._reloads.refused(ConfigError(why or _unready(new.workers)))

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

    def _generation(self, source: ConfigText, taken: Sequence[Worker]) -> _Generation:
        # A journal has one writer: a name is free when its worker has gone.
        free = _free_names({worker.order.writer for worker in taken})
        names = tuple(islice(free, source.config.workers))
        around = self._surroundings
        workers = [
            Worker(
                WorkerOrder(
                    path=str(source.path),
                    text=source.text,
                    writer=writer,
                    cpu=around.cpus[index % len(around.cpus)],
                    folder=around.folder,
                    log_level=around.log_level,
                    settles_beside=None if index else names,
                ),
                self._spawn,
            )
            for index, writer in enumerate(names)
        ]
        return _Generation(source, tuple(workers))


def _free_names(taken: Collection[str]) -> Iterator[str]:
    return (name for index in count() if (name := f"w{index}") not in taken)


def _require_replaceable(old: BridgeConfig, new: BridgeConfig) -> None:
    changed = []
    if not new.workers:
        changed.append("workers (to 0)")
    if old.admin != new.admin:
        changed.append("admin.listen")
    if changed:
        raise ConfigError(
            f"{' and '.join(changed)} cannot be changed while the bridge runs: restart"
        )


def _unready(workers: Sequence[Worker]) -> str:
    reasons = (
        f"{worker.order.writer} {worker.reason or 'runs and is not ready'}"
        for worker in workers
        if not worker.is_ready
    )
    return f"its workers did not get ready in time: {'; '.join(reasons)}"
