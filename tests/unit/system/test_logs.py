import logging
import re
import subprocess
import sys

from bridge.system.logs import UTCFormatter, on_one_line

CODE = """
import logging, os, warnings
from bridge.system.logs import set_up
set_up({level!r}, who="w1 ")
logging.getLogger("bridge.x").info("ours")
for name in ("alembic.runtime", "watchfiles.main", "grpc._cython"):
    logging.getLogger(name).info("theirs")
    logging.getLogger(name).warning("act")
warnings.warn("a line for programmers")
print(os.environ["GRPC_VERBOSITY"])
"""


def lines(level: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(level=level)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={"TZ": "Asia/Seoul"},
    )
    assert done.stdout == "NONE\n"
    return done.stderr.splitlines()


def test_libraries_tell_only_what_asks_for_action() -> None:
    first, *others = lines("INFO")
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT[\d:]{8}\.\d{3}Z INFO w1 bridge.x: ours", first
    )
    assert [line.partition(" ")[2] for line in others] == [
        "WARNING w1 alembic.runtime: act",
        "WARNING w1 watchfiles.main: act",
        "WARNING w1 grpc._cython: act",
    ]
    assert lines("ERROR") == []


def test_a_time_says_that_it_is_utc() -> None:
    record = logging.LogRecord("a", logging.INFO, "", 0, "b", None, None)
    record.created, record.msecs = 1_700_000_000.25, 250.0
    said = UTCFormatter("%(asctime)s %(message)s").format(record)
    assert said == "2023-11-14T22:13:20.250Z b"


def test_nobody_writes_lines_of_his_own() -> None:
    assert on_one_line("a\nERROR x: b\x1b[0m") == "a\ufffdERROR x: b\ufffd[0m"
    assert on_one_line("x" * 2000) == "x" * 600 + "..."
    assert on_one_line("\0" * 2000) == "\ufffd" * 200 + "..."
    assert on_one_line("x" * 600) == "x" * 600
