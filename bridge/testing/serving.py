"""A serving process with nothing in it but a CA, and the search of its memory.

`main` runs in a process of its own, with an order on its input. The process does not
know the secrets, so what is found in it came from the plugin.
"""

import importlib
import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from datetime import timedelta
from operator import attrgetter
from pathlib import Path
from typing import Any

from cryptography import x509

from bridge.spi import IssuingCA, Latch, PluginContext
from bridge.testing.backend import Backend
from bridge.testing.leaves import leaf_request

READY = "ready"
_TIMEOUT_SECONDS = 20.0
_ISSUES = 3
_CHUNK = 1 << 24
_READABLE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) r", re.ASCII)
_KINDS: Mapping[str, type[x509.UniformResourceIdentifier | x509.DNSName]] = {
    kind.__name__: kind for kind in (x509.UniformResourceIdentifier, x509.DNSName)
}


def order_of(backend: Backend) -> str:
    """Write what the process needs to build the CA of a backend, as one line of JSON.

    Raises:
        TypeError: An option is none that JSON can carry, or a path.
    """
    context = backend.context
    paths = {
        "base": context.base,
        "chain": context.chain,
        "state": context.state,
        "latch": context.latch.path,
    }
    # A function and a class have these names; an object of a class would not.
    module, name = attrgetter("__module__", "__qualname__")(backend.factory)
    order = {
        "factory": [module, name],
        "options": dict(backend.options),
        "name": context.name,
        "names": [[type(one).__name__, one.value] for one in backend.names],
        "backdate": backend.backdate.total_seconds(),
        "paths": {name: str(path) for name, path in paths.items() if path},
    }
    return json.dumps(order, default=os.fspath) + "\n"


def held_by(pid: int, secrets: Mapping[str, bytes]) -> set[str]:
    """Return the names of the secrets that stand in a process's memory.

    Args:
        pid: A child of this process; the kernel shows the memory of no other.
        secrets: By name.

    Raises:
        OSError: The memory cannot be read.
    """
    longest = max(map(len, secrets.values()))
    found: set[str] = set()
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for start, end in _readable(pid):
            for offset in range(start, end, _CHUNK):
                size = min(_CHUNK + longest, end - offset)
                try:
                    data = os.pread(memory.fileno(), size, offset)
                except OSError:
                    continue  # a page that cannot be read, such as that of the clock
                found |= {name for name, one in secrets.items() if one in data}
    return found


def _readable(pid: int) -> Iterator[tuple[int, int]]:
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        if (match := _READABLE.match(line)) and not line.endswith("[vsyscall]"):
            yield int(match[1], 16), int(match[2], 16)


def main() -> None:
    """Build the CA of the order, use it, and wait for the end of the input."""
    logging.basicConfig(level=logging.DEBUG)
    order = json.loads(sys.stdin.readline())
    ca = _built(order)
    try:
        ca.check(timeout=_TIMEOUT_SECONDS)
        names = tuple(_KINDS[kind](value) for kind, value in order["names"])
        backdate = timedelta(seconds=order["backdate"])
        for _ in range(_ISSUES):
            prepared = ca.prepare(leaf_request(names, backdate=backdate))
            ca.issue(prepared, timeout=_TIMEOUT_SECONDS)
        sys.stdout.write(f"{READY}\n")
        sys.stdout.flush()
        sys.stdin.read()
    finally:
        ca.close()


def _built(order: Mapping[str, Any]) -> IssuingCA:
    paths = {name: Path(path) for name, path in order["paths"].items()}
    module, name = order["factory"]
    factory = attrgetter(name)(importlib.import_module(module))
    context = PluginContext(
        name=order["name"],
        base=paths["base"],
        chain=paths.get("chain"),
        state=paths.get("state"),
        latch=Latch(paths.get("latch")),
    )
    built: IssuingCA = factory(order["options"], context)
    return built
