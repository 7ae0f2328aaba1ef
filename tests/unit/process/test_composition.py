"""What a process makes before it starts."""

from pathlib import Path
from typing import Any

import pytest

from bridge.process.composition import Process
from bridge.process.role import ProcessRole
from tests.support.harness.core import World

CEILING = {"rate": 1, "burst": 1}


@pytest.mark.parametrize(
    ("limits", "made"),
    [
        ({}, []),
        ({"per_identity": CEILING}, ["ceilings"]),
        ({"per_cluster": CEILING}, ["ceilings"]),
    ],
)
def test_a_worker_shares_a_file_only_where_there_is_a_ceiling(
    tmp_path: Path, limits: dict[str, Any], made: list[str]
) -> None:
    with World(tmp_path, overrides={"limits": limits}) as world:
        Process(world.config, role=ProcessRole(shared=tmp_path / "ceilings"))
    assert [path.name for path in tmp_path.glob("ceil*")] == made
