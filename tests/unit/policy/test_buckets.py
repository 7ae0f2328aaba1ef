"""Ceilings that several processes share."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from bridge.errors import ConfigError
from bridge.policy import buckets as module
from bridge.policy.buckets import SharedBuckets
from bridge.policy.rate_limit import Ceiling

TAKER = """
import sys
from pathlib import Path
from bridge.policy.buckets import SharedBuckets
from bridge.policy.rate_limit import Ceiling
ceiling = Ceiling(0.001, 500, shared=SharedBuckets(Path(sys.argv[1])))
sys.stdin.read(1)
print(sum(ceiling.admits("a", 100.0) for _ in range(400)))
"""


def opened(tmp_path: Path) -> SharedBuckets:
    return SharedBuckets(tmp_path / "ceilings")


def test_processes_take_from_one_bucket_and_none_counts_in_vain(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-c", TAKER, str(tmp_path / "ceilings")]
    pipe = subprocess.PIPE
    takers = [
        subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(2)
    ]
    taken = [int(taker.communicate("x")[0]) for taker in takers]
    assert sum(taken) == 500


def test_the_disk_has_room_for_every_place_before_the_first_call(
    tmp_path: Path,
) -> None:
    opened(tmp_path)
    found = (tmp_path / "ceilings").stat()
    assert found.st_blocks * 512 >= found.st_size


def test_a_disk_without_room_is_named_and_left_as_it_was(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with pytest.raises(
            ConfigError,
            match=rf"^limits: {tmp_path}/ceilings: .*: File too large \(it ",
        ):
            opened(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "ceilings").stat().st_size == 0


def test_a_folder_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no/ceilings: .*No such file or directory"):
        opened(tmp_path / "no")


def test_what_others_have_counted_stays_when_the_file_is_opened(tmp_path: Path) -> None:
    first = Ceiling(0.001, 1, shared=opened(tmp_path))
    assert first.admits("a", 100.0)
    assert not Ceiling(0.001, 1, shared=opened(tmp_path)).admits("a", 100.0)


def test_the_rate_and_the_burst_are_those_of_one_process(tmp_path: Path) -> None:
    ceilings = [Ceiling(2, 3, shared=opened(tmp_path)) for _ in range(2)]
    both = [ceilings[n % 2].admits("a", 100.0) for n in range(4)]
    assert both == [True, True, True, False]
    assert not ceilings[1].admits("a", 100.4)
    assert ceilings[1].admits("a", 100.5)


def test_keys_and_ceilings_do_not_share_a_bucket(tmp_path: Path) -> None:
    shared = opened(tmp_path)
    ceiling, other = Ceiling(1, 1, shared=shared), Ceiling(1, 2, shared=shared)
    assert ceiling.admits("a", 100.0)
    assert ceiling.admits("b", 100.0)
    assert other.admits("a", 100.0)
    assert not ceiling.admits("a", 100.0)


def test_where_all_places_are_taken_a_call_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SLOTS", 1)
    monkeypatch.setattr(module, "_PROBES", 2)
    ceiling = Ceiling(1, 1, shared=opened(tmp_path))
    assert [ceiling.admits(key, 100.0) for key in "abcc"] == [True] * 4
    # A bucket that is full again leaves its place.
    assert ceiling.admits("c", 101.5)
    assert not ceiling.admits("c", 101.6)
