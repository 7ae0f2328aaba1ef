"""What the parent process is made of, and its admin address."""

import subprocess
import sys

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
