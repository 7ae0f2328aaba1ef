"""Notices that files were replaced: told by the kernel, and by looking each second."""

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from bridge_file.reading import Stamp, digest_of, stamp_of

POLL_SECONDS = 1.0
_STEP_MILLISECONDS = 100
_SETTLE_SECONDS = 0.05
_SETTLE_ROUNDS = 20


class Watch:
    """Calls `changed` whenever the content of a set of files is another one.

    The kernel's events make it quick; the look at each file's real path, inode, time
    and size makes it sure. Events alone miss network file systems, folders that are
    replaced whole, and links that lead elsewhere.

    Args:
        paths: The files; symbolic links are followed, and any may be absent.
        digest: Of the content that the caller holds (`digest_of`), so that a change
            before the start is not lost.
        changed: Called from the thread of this watch, and may close it.
        poll_seconds: How often the files are looked at.
        use_events: Whether to ask the kernel as well.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        digest: str,
        changed: Callable[[], None],
        *,
        poll_seconds: float = POLL_SECONDS,
        use_events: bool = True,
    ) -> None:
        self._paths = tuple(paths)
        self._digest = digest
        self._changed = changed
        self._poll_seconds = poll_seconds
        self._use_events = use_events
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name="file-watch", daemon=True
        )

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Stop, and wait for the thread to end, unless it is the caller's own."""
        self._stop.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        seen: Stamp | None = None
        for _ in self._wakes():
            if seen is not None and stamp_of(self._paths) == seen:
                continue
            seen, digest = self._settled()
            if digest != self._digest and not self._stop.is_set():
                self._digest = digest
                self._changed()

    def _wakes(self) -> Iterator[None]:
        # At once, then on each event and at least every poll_seconds, until stopped.
        yield
        if self._use_events:
            yield from self._event_wakes()
        while not self._stop.wait(self._poll_seconds):
            yield

    def _event_wakes(self) -> Iterator[None]:
        from watchfiles import watch  # noqa: PLC0415 - 40 ms of the start of a process

        folders = sorted({path.parent for path in self._paths})
        try:
            for _ in watch(
                *folders,
                # Events of other files wake us too: were they filtered out, a busy
                # neighbour would keep the look at the stamps from ever being due.
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
                yield
        except (OSError, RuntimeError):
            # No inotify instance is left, or a folder is gone: looking still works.
            return

    def _settled(self) -> tuple[Stamp | None, str]:
        # Files that are written one after the other are told once, not once each. A
        # stamp is believed only if it was the same before and after the reading, and
        # again a moment later: else a swap back could hide behind it. Without a stamp,
        # the next wake reads again.
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
