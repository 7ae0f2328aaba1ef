"""What a run of the soak writes, and how it judges."""

import shutil
from pathlib import Path

import pytest

from tests.soak import latency, report
from tests.soak.__main__ import _PARTS
from tests.soak.result import Fault, Result
from tests.support.clients.load import Probe, Prober

WITHOUT_FAULTS = {"memory", "latency"}


def result_of(part: str, saw: str) -> Result:
    result = Result(part)
    result.judge(f"{part} {saw}", good=part != "storm")
    result.note(f"beside {part}: {saw}")
    if part not in WITHOUT_FAULTS:
        row = Fault(fault=part, saw=saw, on_record="all", recovery="1 s")
        result.faults.append(row)
    return result


def test_each_part_has_its_place_and_a_later_run_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FAULTS", "FIGURES"):
        copy = tmp_path / name
        shutil.copy(getattr(report, name), copy)
        monkeypatch.setattr(report, name, copy)
    for saw in ("first", r"second \1"):
        report.write([result_of(part, saw) for part in _PARTS], "here and now")
    faults, figures = report.FAULTS.read_text(), report.FIGURES.read_text()
    for part in _PARTS:
        assert f"{part} second \\1" in figures
        assert f"\n* beside {part}: second \\1\n" in figures
        assert (f"| {part} | second \\1 | all | 1 s |" in faults) is (
            part not in WITHOUT_FAULTS
        )
    assert "first |" not in faults
    assert "FAIL: storm" in figures
    assert "## The ledger" in faults


def test_a_document_without_a_place_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path / "figures.md"
    empty.write_text("nothing\n")
    monkeypatch.setattr(report, "FIGURES", empty)
    with pytest.raises(LookupError, match="<!-- soak memory -->"):
        report.write([result_of("memory", "x")], "here")


@pytest.mark.parametrize(
    ("codes", "normal"),
    [
        ("OOOOO", 0.0),
        ("SSOOOOO", 2.0),
        ("OOOOSOOOOO", 5.0),
        ("OOOO", None),
        ("LOOOOO", 1.0),
    ],
)
def test_normal_is_when_some_in_a_row_go_well(codes: str, normal: float | None) -> None:
    prober = object.__new__(Prober)
    kinds = {"O": ("OK", 0.01), "S": ("RESOURCE_EXHAUSTED", 0.01), "L": ("OK", 2.0)}
    prober.probes = [Probe(100.0 + at, *kinds[one]) for at, one in enumerate(codes)]
    assert prober.normal_after(100.0) == normal


def rounds_of(*rates_and_p99: tuple[float, float, float]) -> list[latency.Round]:
    return [
        latency.Round(before, after, 900.0, 1_000.0, 2.0, p99)
        for before, after, p99 in rates_and_p99
    ]


@pytest.mark.parametrize(
    ("rounds", "p99_ms", "which"),
    [
        pytest.param(
            rounds_of(
                *[(1000.0, 1069.0, 20.0), (1000.0, 931.0, 30.0), (1e3, 1e3, 10.0)],
                *[(1000.0, 1071.0, 900.0), (1000.0, 929.0, 900.0)],
            ),
            20.0,
            "the 3 of 5 rounds",
            id="a-machine-that-changed-is-not-judged",
        ),
        pytest.param(
            rounds_of((1e3, 1e3, 10.0), (1e3, 5e2, 500.0), (1e3, 2e3, 900.0)),
            500.0,
            "all 3 rounds",
            id="too-few-steady-rounds-do-not-stand-for-all",
        ),
    ],
)
def test_p99_is_judged_where_the_machine_kept_its_speed(
    rounds: list[latency.Round], p99_ms: float, which: str
) -> None:
    found = latency.summary(rounds)
    assert found.p99_ms == p99_ms
    assert which in found.text
    assert "busy for 80% of the time" in found.text
