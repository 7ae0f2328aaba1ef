"""The tests that look for the secrets of a backend where they must not be."""

# A conformance test is made of `assert`.
# ruff: noqa: S101

import dataclasses
import logging
import os
import subprocess
import sys
import tempfile
import threading
from typing import IO

import pytest

from bridge.testing.backend import Backend, needs
from bridge.testing.contract import TIMEOUT_SECONDS
from bridge.testing.serving import READY, held_by, order_of

_SHORTEST = 8
_SECONDS = 60
_MAIN = "from bridge.testing.serving import main; main()"


class SecrecyTests:
    """What shows no PIN, token or key."""

    def test_no_secret_is_logged_or_shown(
        self,
        backend: Backend,
        caplog: pytest.LogCaptureFixture,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        """Logs, output, warnings, labels, errors and `repr` hold no secret."""
        caplog.set_level(logging.DEBUG)
        said: list[str] = []
        context = dataclasses.replace(backend.context, warn=said.append)
        ca = dataclasses.replace(backend, context=context).build()
        try:
            ca.check(timeout=TIMEOUT_SECONDS)
            prepared = backend.prepare(ca)
            ca.issue(prepared, timeout=TIMEOUT_SECONDS)
            backend.attempt(ca, prepared, 0.0)
            shown = [*_shown(ca), *_shown(ca.describe())]
        finally:
            ca.close()
        backend.attempt(ca, prepared, TIMEOUT_SECONDS)
        backend.require_silent("a warning", *said)
        backend.require_silent("repr", *shown)
        backend.require_silent("a log", caplog.text, *capfd.readouterr())

    @needs("memory")
    def test_no_secret_is_in_the_memory_of_the_serving_process(
        self, backend: Backend
    ) -> None:
        """A process that built the CA, issued and checked does not hold a secret."""
        for name, secret in backend.secrets.items():
            if len(secret) < _SHORTEST:
                pytest.fail(f"the secret {name!r} is too short to be searched for")
        with tempfile.TemporaryFile() as log, _serving(log) as process:
            found = _served(process, backend)
            process.wait(_SECONDS)
            log.seek(0)
            logged = log.read().decode(errors="replace")
        backend.require_silent("the log of a process", logged)
        assert found is not None, f"the process failed:\n{logged}"
        assert not found, f"the serving process holds {sorted(found)}"


def _serving(log: IO[bytes]) -> subprocess.Popen[str]:
    path = os.pathsep.join(filter(None, sys.path))
    return subprocess.Popen(  # noqa: S603 - this interpreter, and a constant
        [sys.executable, "-P", "-c", _MAIN],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
    )


def _served(process: subprocess.Popen[str], backend: Backend) -> set[str] | None:
    # The names of the secrets in its memory while it serves; None if it does not.
    limit = threading.Timer(_SECONDS, process.kill)
    limit.start()
    try:
        assert process.stdin
        assert process.stdout
        process.stdin.write(order_of(backend))
        process.stdin.flush()
        if process.stdout.readline().strip() != READY:
            return None
        return held_by(process.pid, backend.secrets)
    finally:
        limit.cancel()
        process.communicate()


def _shown(value: object) -> list[str]:
    # The value, and what it and its parts are made of.
    parts = [value, *_attributes(value)]
    parts += [one for part in parts[1:] for one in _attributes(part)]
    return [repr(part) for part in parts]


def _attributes(value: object) -> list[object]:
    slots = [name for kind in type(value).__mro__ for name in _slots(kind)]
    named = [getattr(value, name, None) for name in slots]
    return [*getattr(value, "__dict__", {}).values(), *named]


def _slots(kind: type) -> tuple[str, ...]:
    slots = kind.__dict__.get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)
