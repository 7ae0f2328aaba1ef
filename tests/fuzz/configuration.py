"""Fuzz target: the configuration file.

Any bytes are a configuration, the same one each time, or a `ConfigError` that names
the file.
"""

from pathlib import Path

from bridge.config import parse
from bridge.config.consistency import consistency_problems
from bridge.errors import ConfigError
from tests.fuzz.engine import main

FILE = Path("/etc/meshca/bridge.yaml")


def run(data: bytes) -> None:
    """Read `data` as the content of the file."""
    text = data.decode("utf-8", "replace")
    try:
        found = parse(text, FILE)
    except ConfigError as error:
        lines = str(error).splitlines()
        if not lines or not lines[0].startswith(f"{FILE}: "):
            raise AssertionError("the message does not name the file") from error
        return
    if parse(text, FILE) != found:
        raise AssertionError("read twice, it says two things")
    if (
        not found.clusters
        or not found.issuance.issuing_cas
        or [*consistency_problems(found)]
    ):
        raise AssertionError("a configuration that can do nothing was accepted")


if __name__ == "__main__":
    main(run)
