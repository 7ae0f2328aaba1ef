"""The fuzz targets in every test run: their seeds, and small changes to these."""

import importlib
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.engine import FOLDER, TARGETS, Run, corpus

# What a text is likely to trip over.
TOKENS = (
    *(b"\0", b"\n", b"\r\n", b" ", b"{", b"}", b"[", b"]", b'"', b"\\", b",", b":"),
    *(b"null", b"true", b"1e999", b"-1", b"\xff", b"\xed\xa0\x80", b"\xe2\x80\xa8"),
    *(b"attempt", b"kind", b"seq", b"kid", b"<<", b"&a", b"*a", b"!!", b"../", b"%2f"),
)


def run_of(target: str) -> Run:
    run: Run = importlib.import_module(f"tests.fuzz.{target}").run
    return run


@cache
def seeds(target: str) -> tuple[bytes, ...]:
    return tuple(path.read_bytes() for path in corpus(target))


SEEDS = [
    pytest.param(target, path, id=f"{target}-{path.name}")
    for target in TARGETS
    for path in corpus(target)
]


@st.composite
def changed(draw: st.DrawFn, target: str) -> bytes:
    """Change a seed in a few places, as a fuzzer does."""
    data = bytearray(draw(st.sampled_from(seeds(target))))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        gone = draw(st.integers(0, 8) | st.integers(0, len(data)))
        new = st.binary(max_size=4) | st.sampled_from(TOKENS)
        start, size = draw(st.integers(0, len(data))), draw(st.integers(0, 400))
        copied = bytes(data[start : start + size])
        data[at : at + gone] = draw(new | st.just(copied))
    return bytes(data)


@pytest.mark.parametrize(("target", "path"), SEEDS)
def test_a_seed_holds(target: str, path: Path) -> None:
    run_of(target)(path.read_bytes())


@pytest.mark.parametrize("target", TARGETS)
@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_a_changed_seed_holds(target: str, data: st.DataObject) -> None:
    run_of(target)(data.draw(changed(target)))


def test_a_file_is_run_by_its_name() -> None:
    seed = corpus("spiffe")[0]
    command: list[str | Path] = [sys.executable, "-m", "tests.fuzz.spiffe", seed]
    ran = subprocess.run(
        command,
        cwd=FOLDER.parents[1],
        env={**os.environ, "PYTHONPATH": os.fspath(FOLDER.parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"{seed}: holds" in ran.stdout
