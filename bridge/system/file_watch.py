"""A watch of files: by events of the kernel, and by a look each second."""

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from bridge.system.background import BackgroundLoop
from bridge.system.files import Stamp, digest_of, stamp_of

POLL_SECONDS = 1.0
_STEP_MILLISECONDS = 100
_SETTLE_SECONDS = 0.05
_SETTLE_ROUNDS = 20


class FileWatch:
    """Calls `changed` whenever the content of a set of files is another one.

    The kernel's events make the watch quick. The look at each file's stamp (real path,
    inode, time, size, mode) makes it reliable: events alone miss network file systems,
    folders that are replaced whole, and links that lead elsewhere.

    Args:
        paths: The files; symbolic links are followed, and any may be absent.
        digest: `digest_of` the content that the caller holds, so that a change before
            the start is not lost.
        changed: Is called by the thread of this watch, and may close it.
        poll_seconds: How often the files are looked at.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        digest: str,
        changed: Callable[[], None],
        *,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        self._paths = tuple(paths)
        self._digest = digest
        self._changed = changed
        self._poll_seconds = poll_seconds
        self._seen: Stamp | None = None
        self._stop = threading.Event()
        self._has_events = True
        self._events = self._wait_for_events()
        self._loop = BackgroundLoop(
            "file-watch",
            self._step,
            lambda: 0.0 if self._has_events else poll_seconds,
            is_immediate=True,
        )

    def start(self) -> None:
        """Start the thread."""
        self._loop.start()

    def close(self) -> None:
        """Stop, and wait for the thread to end, unless it is the caller's own."""
        self._stop.set()
        self._loop.close()

    def _step(self) -> None:
        # Without events (any longer), the loop waits for the interval instead.
        self._has_events = next(self._events, False)
        if self._seen is not None and stamp_of(self._paths) == self._seen:
            return
        self._seen, digest = self._settled()
        if digest != self._digest and not self._stop.is_set():
            self._digest = digest
            self._changed()

    def _wait_for_events(self) -> Iterator[bool]:
        # At once, then after each event and at least every poll_seconds.
        yield True
        from watchfiles import watch  # noqa: PLC0415 - 40 ms of the start of a process

        folders = sorted({path.parent for path in self._paths})
        try:
            for _ in watch(
                *folders,
                # Events of other files end a wait too. If they were filtered out, a
                # busy neighbour would keep the look at the stamps from being due.
                watch_filter=None,
                step=_STEP_MILLISECONDS,
                debounce=_STEP_MILLISECONDS,
                rust_timeout=int(self._poll_seconds * 1000),
                yield_on_timeout=True,
                stop_event=self._stop,
                raise_interrupt=False,
                recursive=False,
                ignore_permission_denied=True,
            ):
                yield True
        except (OSError, RuntimeError):
            # No inotify instance is left, or a folder is gone: the look still works.
            return

    def _settled(self) -> tuple[Stamp | None, str]:
        # Files that are written one after the other are one change. A stamp counts only
        # if it was the same before and after the read, and again a moment later:
        # otherwise a swap back would go unseen. Without a stamp, the next step reads
        # again.
        before: tuple[Stamp, str] | None = None
        digest = self._digest
        for _ in range(_SETTLE_ROUNDS):
            stamp, digest = stamp_of(self._paths), digest_of(self._paths)
            now = (stamp, digest) if stamp_of(self._paths) == stamp else None
            if now is not None and now == before:
                return now
            before = now
            if self._stop.wait(_SETTLE_SECONDS):
                break
        return None, digest
