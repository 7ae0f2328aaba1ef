"""The ledger of one writer: records intents, outcomes and refusals."""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Self

from bridge.config import LedgerConfig
from bridge.errors import LedgerError
from bridge.ledger.chain import Head, bounded
from bridge.ledger.events import Accepted, CallEnding, Ending, Event, Intent, Summary
from bridge.ledger.heads import HeadKey, SignedHead, problem_of
from bridge.ledger.journal.journal import Journal, JournalOptions
from bridge.ledger.journal.progress import Progress
from bridge.ledger.journal.recovery import last_published, require_new
from bridge.ledger.journal.segments import way_out
from bridge.ledger.sink import HeadPublisher, HeadSink, newest_head
from bridge.system.background import BackgroundLoop
from bridge.system.clock import Clock

_TICK_SECONDS = 0.25
_OPEN_PER_SECOND = 1
"""Rows of calls that an open breaker keeps away: each says the same."""
_HEADS_OVERDUE = timedelta(seconds=60)
_BRAKE_SECONDS = 0.1
"""How long an intent waits when the archive is at its bound behind the journal."""
_CALLERS = 5
"""So many callers that are refused all the time get their rows side by side."""
_SAMPLES = 256
_JOURNAL_DEFAULTS = JournalOptions()


class RefusalMeter:
    """Decides which refused calls get a row; the others are counted in a summary.

    Anybody who reaches the port can cause such calls, and so can a workload that asks
    without pause. They must not fill the disk.

    Args:
        per_second: The most rows a second.
        of_each: The most of them for one caller and rule.
    """

    def __init__(self, per_second: int, of_each: int | None = None) -> None:
        self._per_second = per_second
        self._of_each = per_second if of_each is None else of_each
        self._lock = threading.Lock()
        self._second = 0
        self._admitted: Counter[tuple[str, str]] = Counter()
        self._above: Counter[str] = Counter()

    def admit(self, rule: str, who: str = "") -> bool:
        """Return whether this call gets a row; otherwise it is counted.

        Args:
            rule: The rule that the call broke. Call `due` before, with the time.
            who: The caller, if that is proven.
        """
        with self._lock:
            admitted, key = self._admitted, (who, rule)
            if (
                admitted.total() < self._per_second
                and admitted.get(key, 0) < self._of_each
            ):
                admitted[key] += 1
                return True
            self._above[rule] += 1
            return False

    def due(self, second: int) -> Summary | None:
        """Begin `second` if it is a new one; return the counts of the one before."""
        with self._lock:
            if second == self._second:
                return None
            before, self._second = self._second, second
            self._admitted.clear()
            if not self._above:
                return None
            rules, self._above = dict(self._above), Counter()
        return Summary(since=before, until=before + 1, rules=rules)


_CAUGHT_UP_ROWS = 100
"""With fewer rows to come, a rebuild is over."""


class ArchiveLag:
    """Measures how far the archive is behind one journal.

    Args:
        durable: Returns the last row of the journal that is on disk.
        progress: Shared with the archive feeder.
        monotonic: Seconds that nobody sets. By the time of day, a clock that jumps
            ahead would stop issuing.
    """

    def __init__(
        self,
        durable: Callable[[], Head],
        progress: Progress,
        monotonic: Callable[[], float],
    ) -> None:
        self._durable = durable
        self._progress = progress
        self._monotonic = monotonic
        self._began = durable().seq
        self._caught_up = monotonic()
        self._samples: deque[tuple[int, float]] = deque(maxlen=_SAMPLES)
        self._least: int | None = None
        self._fed_then: int | None = None

    def sample(self) -> None:
        """Note which row is the last one now. For one thread, often."""
        now, tip, fed = self._monotonic(), self._durable().seq, self._progress.fed
        if not self._samples or self._samples[-1][0] != tip:
            self._samples.append((tip, now))
        if fed is None:
            return
        while self._samples and fed >= self._samples[0][0]:
            # Not before the end of a rebuild, in which rows are older than that.
            self._caught_up = max(self._caught_up, self._samples.popleft()[1])
        is_fed = self._least is not None and fed != self._fed_then
        self._fed_then = fed
        self.rows()
        if fed >= tip or self.is_rebuilt() or is_fed:
            self._caught_up = now

    def is_rebuilt(self) -> bool:
        """Return whether the archive is new, and still lacks rows of the time before.

        It is fed beside the service, for as long as that takes.
        """
        fed = self._progress.fed
        return fed is not None and fed < self._progress.rebuild_until

    def rows(self) -> int:
        """Return how many rows count as missing in the archive.

        In a rebuild, these are rows since its begin, and of them as many as were
        written while the feeder did not come nearer. Until the feeder has opened the
        archive, these are the rows since the start.
        """
        fed, tip = self._progress.fed, self._durable().seq
        known = self._began if fed is None else fed
        rows = max(tip - max(known, self._progress.rebuild_until), 0)
        return rows if fed is None else min(rows, self._growth(max(tip - fed, 0)))

    def _growth(self, missing: int) -> int:
        # By how much more rows are missing than at the best moment of a rebuild, which
        # lasts here until the archive also has the rows that came meanwhile.
        is_rebuilt, least = self.is_rebuilt(), self._least
        if least is None and not is_rebuilt:
            return missing
        least = missing if least is None else min(least, missing)
        is_over = not is_rebuilt and least <= _CAUGHT_UP_ROWS
        self._least = None if is_over else least
        return missing if is_over else missing - least

    def seconds(self) -> float:
        """Return for how long the archive has not had all rows; 0 in a rebuild."""
        if self.is_rebuilt() or (self._progress.fed is not None and not self.rows()):
            return 0.0
        return self._monotonic() - self._caught_up

    def rebuild(self) -> str:
        """Return how far a rebuild of the archive is; empty without one."""
        if not self.is_rebuilt():
            return ""
        fed, until = self._progress.fed or 0, self._progress.rebuild_until
        return (
            f"is rebuilt from the journal and has {max(fed, 0)} of {until} rows: "
            "`meshca ledger search` lacks the others"
        )


class Ledger:
    """The journal and the published heads of one writer. Safe between threads.

    `bridge.ledger.journal.journal.Journal` says what the ledger proves.
    """

    def __init__(
        self,
        config: LedgerConfig,
        journal: Journal,
        publisher: HeadPublisher,
        clock: Clock,
        monotonic: Callable[[], float],
    ) -> None:
        """Put the parts together; `open` is the way to get one."""
        self._max_lag = config.max_lag
        self._heads_interval = config.heads.interval
        self._journal = journal
        self._lag = ArchiveLag(lambda: journal.head, journal.progress, monotonic)
        self._publisher = publisher
        self._clock = clock
        # Each kind has a meter: unauthenticated calls must not use up the rate of known
        # callers.
        self._refusals = RefusalMeter(config.refusals_per_second)
        self._excess = RefusalMeter(config.excess_per_second)
        self._known = RefusalMeter(
            config.excess_per_second * _CALLERS, config.excess_per_second
        )
        self._open = RefusalMeter(_OPEN_PER_SECOND)
        self._seconds_lock = threading.Lock()
        self._tried = self._published = clock()
        self._heads_trouble = ""
        name = f"ledger-heads-{journal.folder.name}"
        self._loop = BackgroundLoop(name, lambda: self._tick(clock()), _TICK_SECONDS)
        self._pause: Callable[[float], object] = self._loop.wait

    @classmethod
    def open(
        cls,
        config: LedgerConfig,
        *,
        writer: str,
        clock: Clock,
        options: JournalOptions = _JOURNAL_DEFAULTS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> Self:
        """Open the journal and publish the first head.

        Another process feeds the archive, see `bridge.ledger.archive.feeder`: what it
        complains of shows in `problem`, and in `intend`.

        Args:
            config: Section `ledger` of the configuration.
            writer: The name of this writer, the same after a restart.
            clock: Gives each row its time.
            options: See `JournalOptions`; the published head is added.
            monotonic: Measures for how long the archive is behind.

        Raises:
            ConfigError: The key of the heads cannot be used.
            LedgerError: The journal cannot be used, or does not hold its published
                head; or the sink is not as it was, or the first head cannot be
                published.
        """
        folder, key = config.journal, head_key(config)
        sink = HeadSink(config.heads.sink, key)
        newest = require_published(sink, key, folder / writer)
        with ExitStack() as undo:
            journal = Journal.open(
                folder,
                writer=writer,
                clock=clock,
                options=_with_head(options, newest),
            )
            undo.callback(journal.close)
            publisher = HeadPublisher(writer, key, sink, clock)
            publisher.publish(journal.head, journal.append_durable)
            ledger = cls(config, journal, publisher, clock, monotonic)
            undo.pop_all()
        ledger._loop.start()
        return ledger

    def intend(self, intent: Intent) -> None:
        """Record an intent. Sign only after the return.

        Raises:
            LedgerError: The intent may not be on disk, or the archive is too far
                behind (rule `ledger.lag`).
        """
        if (refusal := self._refusal()) is not None:
            rule, reason = refusal
            raise LedgerError("the ledger takes no intent", rule=rule, detail=reason)
        if (pause := self._brake()) > 0:
            self._pause(pause)
        self._journal.append_durable(intent)

    def end(self, ending: Ending, *, durable: bool = False) -> None:
        """Record how an attempt or a call ended.

        Args:
            ending: The outcome; a detail that is too long is cut.
            durable: Return when the outcome is on disk, for a certificate whose serial
                number the backend chose.

        Raises:
            LedgerError: The outcome is not, or may not be, on record.
        """
        if ending.detail:
            ending = replace(ending, detail=bounded(ending.detail))
        if durable:
            self._journal.append_durable(ending)
        else:
            self._journal.append(ending)

    def record(self, event: Event) -> None:
        """Write a row that belongs to no call, and return when it is on disk.

        Raises:
            LedgerError: The row may not be on disk.
        """
        self._journal.append_durable(event)

    def refuse_unauthenticated(self, ending: Ending) -> bool:
        """Record an unauthenticated call: a row, or a count in a summary.

        Returns:
            Whether the call has a row of its own.

        Raises:
            LedgerError: The journal is shut.
        """
        return self._end_metered(ending, self._refusals)

    def refuse_excess(self, ending: Ending) -> bool:
        """Record a call above a rate limit. See `refuse_unauthenticated`."""
        return self._end_metered(ending, self._excess)

    def refuse_open(self, ending: Ending) -> bool:
        """Record a call that no issuing CA gets, since the breakers are open.

        See `refuse_unauthenticated`; one row a second.
        """
        return self._end_metered(ending, self._open)

    def refuse(self, ending: Ending) -> bool:
        """Record any other refused call of a caller whose credential was proven.

        See `refuse_unauthenticated`. The rate holds for each caller and rule. The pods
        of one account are callers of their own: one ztunnel, which every node has, must
        not use up the rows of all.
        """
        pod = ending.pod_uid if isinstance(ending, CallEnding) else ""
        who = f"{ending.cluster} {ending.requester or ending.caller} {pod}"
        return self._end_metered(ending, self._known, who)

    def _end_metered(self, ending: Ending, meter: RefusalMeter, who: str = "") -> bool:
        self._summarize()
        if not meter.admit(ending.rule, who):
            return False
        self.end(ending)
        return True

    def problem(self) -> str | None:
        """Return why no certificate may be issued, or None."""
        refusal = self._refusal()
        return refusal and refusal[1]

    def rebuild(self) -> str:
        """Return how far a rebuild of the archive is; empty without one."""
        return self._lag.rebuild()

    def lag(self) -> tuple[int, float]:
        """Return how many rows, and seconds, the archive is behind the journal."""
        return self._lag.rows(), self._lag.seconds()

    def close(self) -> None:
        """Write all waiting rows, publish the head, and close.

        The archive gets the last rows from its feeder, which ends after the writers.
        """
        self._loop.close()
        with suppress(LedgerError):
            self._summarize(all_counts=True)
        with suppress(LedgerError):
            self._journal.flush()
            self._publisher.publish(self._journal.head, self._journal.append)
        with suppress(LedgerError):
            self._journal.finish()
        with suppress(LedgerError):
            # Unless the row `closed` is the only new one.
            self._publisher.publish(self._journal.head, own_rows=1)
        self._journal.close()

    def _refusal(self) -> tuple[str, str] | None:
        if (refusal := self._journal.refusal()) is not None:
            return refusal
        progress = self._journal.progress
        if progress.is_broken:
            return "ledger.chain", progress.reason()
        entries, seconds = self.lag()
        if entries > self._max_lag.entries or seconds > self._max_lag.seconds:
            trouble = progress.reason()
            return "ledger.lag", (
                f"the archive is {entries} rows and {seconds:.0f} s behind"
                f"{trouble and ': '}{trouble}"
            )
        if self._heads_trouble and self._clock() - self._published > _HEADS_OVERDUE:
            return "ledger.heads", self._heads_trouble
        return None

    def _brake(self) -> float:
        # From half of `max_lag.entries` on each intent waits longer, up to the bound.
        # Under a load that leaves the feeder too little of the core, callers then wait
        # for a moment and are not refused. `min`: since `_refusal` the archive may have
        # fallen behind by more than the bound.
        most = self._max_lag.entries
        half = most / 2
        return _BRAKE_SECONDS * (min(self._lag.rows(), most) - half) / half

    def _tick(self, now: datetime) -> None:
        self._lag.sample()
        with suppress(LedgerError):
            self._journal.progress.keep(self._journal.folder)
        with suppress(LedgerError):
            self._summarize()
        # A clock that was set back counts as the end of the interval.
        if timedelta() <= now - self._tried < self._heads_interval:
            return
        self._tried = now
        try:
            self._publisher.publish(self._journal.head, self._journal.append)
        except LedgerError as error:
            self._heads_trouble = error.detail or str(error)
        else:
            self._heads_trouble, self._published = "", now

    def _summarize(self, *, all_counts: bool = False) -> None:
        # The time is read under the lock: a thread that comes late would begin a second
        # of before again.
        with self._seconds_lock:
            # No second is -1.
            second = -1 if all_counts else int(self._clock().timestamp())
            for meter in (self._refusals, self._excess, self._known, self._open):
                if (summary := meter.due(second)) is not None:
                    self._journal.append(summary)


def require_published(sink: HeadSink, key: HeadKey, folder: Path) -> SignedHead | None:
    """Require that a sink is whole, and has what a journal says that it has.

    Args:
        sink: The sink of the heads.
        key: The key of the heads.
        folder: The journal's.

    Returns:
        The newest head of this journal, which the journal has to hold.

    Raises:
        LedgerError: A line of the sink is missing, out of place, repeated or changed;
            or no head of this journal is there, or another key signed it.
    """
    newest = newest_head(sink.path, folder.name)
    if newest is None:
        require_new(folder, sink.path)
        sink.hold(folder.name, None)
        return None
    problem = problem_of(newest, key.public_key())
    sink.hold(folder.name, None if problem else last_published(folder, newest.seq))
    if problem:
        raise LedgerError(
            f"{sink.path}: the newest head of {folder.name}: {problem}. Put the key "
            f"back that signed it; {way_out(folder.name)}",
            rule="ledger.heads",
        )
    return newest


def _with_head(options: JournalOptions, newest: SignedHead | None) -> JournalOptions:
    if newest is None:
        return options
    accepted = None
    if newest.operator:
        accepted = Accepted(by=newest.operator, detail=newest.reason)
    return replace(options, published=newest.tip, accepted=accepted)


def head_key(config: LedgerConfig) -> HeadKey:
    """Return the key of the heads: the configured one, or the one beside the journal.

    Raises:
        ConfigError: The key cannot be used.
        LedgerError: The key cannot be made.
    """
    if config.heads.key is not None:
        return HeadKey.load(config.heads.key)
    return HeadKey.load_or_make(config.journal / "heads.key")
