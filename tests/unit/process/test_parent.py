"""What the parent process is made of, and its admin address."""

import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bridge.config import ConfigText, parse
from bridge.process import parent
from bridge.process.helper_process import HelperProcesses
from tests.support.harness.configuration import text
from tests.support.harness.workers import await_true
from tests.support.parts.pki import new_root
from tests.unit.process.test_supervisor import Nursery, source

HEAVY = ("grpc", "sqlalchemy", "sqlite3", "alembic", "bridge.server", "bridge.ledger")
CODE = """
import sys
from bridge.cli import serve
print("bridge.process.parent" in sys.modules)
print(*(name for name in sys.modules if name.startswith({heavy})))
"""


def test_the_parent_imports_neither_grpc_nor_the_database_of_the_ledger() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(heavy=HEAVY)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["True", ""]


@pytest.mark.parametrize(
    ("plugin", "archive", "is_at_once"),
    [
        ("pkcs11", "postgresql://db.example/ledger", True),
        ("file", "postgresql://db.example/ledger", False),
        ("pkcs11", "sqlite:///a.db", False),
    ],
)
def test_the_feeder_starts_at_once_where_a_login_waits_for_it(
    plugin: str, archive: str, *, is_at_once: bool
) -> None:
    cas = {"seoul-1": {"plugin": plugin, "chain": "chain.pem"}}
    written = text(issuing_cas=cas, ledger={"archive": archive})
    config = parse(written, Path("/etc/meshca/bridge.yaml"))
    assert parent._awaits_archive(config) is is_at_once


def test_many_sighups_start_few_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each would start a worker, and one that is replaced at once still runs a while.
    monkeypatch.setattr(HelperProcesses, "run", lambda *_: None)
    path = tmp_path / "bridge.yaml"
    (tmp_path / "roots.pem").write_bytes(new_root().pem)
    path.write_text(f"{source(1).text}\nadmin: {{listen: '127.0.0.1:0'}}\n")
    nursery, events = Nursery(), queue.SimpleQueue[int]()
    first = ConfigText.read(path)
    bridge = threading.Thread(
        target=lambda: parent.run(first, events, spawn=nursery), daemon=True
    )
    bridge.start()
    began = time.monotonic()
    for _ in range(30):
        events.put(signal.SIGHUP)
        time.sleep(0.05)
    time.sleep(parent._APART_SECONDS)
    # The last of them counts, too.
    await_true(lambda: len(nursery.born) > 2 and len(nursery.alive()) == 1)
    most = 3 + (time.monotonic() - began) / parent._APART_SECONDS
    assert len(nursery.born) <= most
    events.put(signal.SIGTERM)
    bridge.join(20)
    assert not bridge.is_alive()
    assert not nursery.alive()
