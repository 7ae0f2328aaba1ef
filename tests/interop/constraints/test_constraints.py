"""Ours, OpenSSL's and Go's verdicts on the same chains, and the document about them."""

from collections import Counter
from pathlib import Path

import pytest

from bridge.dataplanes.planes import data_plane_problems
from tests.interop.constraints import document
from tests.interop.constraints.cases import CASES, REASONS, Case
from tests.interop.constraints.chains import (
    Chain,
    Verdict,
    ask_go,
    ask_openssl,
    build,
    ours,
)

pytestmark = [pytest.mark.interop, pytest.mark.xdist_group("constraints")]

_NOT_EVALUATED = "unhandled critical extension"


@pytest.fixture(scope="module")
def chains() -> dict[str, Chain]:
    return {case.id: build(case) for case in CASES}


@pytest.fixture(scope="module")
def go_says(chains: dict[str, Chain]) -> dict[str, Verdict]:
    return ask_go(chains)


def by_id(case: Case) -> str:
    return case.id


@pytest.mark.parametrize("case", CASES, ids=by_id)
def test_the_three_verdicts_are_those_of_the_table(
    case: Case, chains: dict[str, Chain], go_says: dict[str, Verdict], tmp_path: Path
) -> None:
    chain = chains[case.id]
    openssl, go = ask_openssl(chain, tmp_path), go_says[case.id]
    verdict = ours(case, chain)

    assert (verdict, openssl.accepted, go.accepted) == (
        case.ours,
        case.openssl,
        case.go,
    ), f"OpenSSL: {openssl.reason}; Go: {go.reason}"
    if verdict == "ok":
        assert openssl.accepted
        # A chain that Go does not evaluate is nobody's verdict on a name; whoever
        # loads such a chain is told.
        assert go.accepted or _NOT_EVALUATED in go.reason
        assert go.accepted or data_plane_problems(chain.cas)


def test_the_table_is_large_and_says_each_thing_once() -> None:
    counted = Counter(case.id for case in CASES)
    assert [name for name, times in counted.items() if times > 1] == []
    assert len(CASES) >= 60


def test_every_difference_has_a_reason_and_every_reason_a_difference() -> None:
    assert [case.id for case in CASES if case.differs != bool(case.why)] == []
    assert {case.why for case in CASES if case.why} == REASONS.keys()


def test_the_document_lists_every_difference() -> None:
    assert document.written() == document.render(), (
        "docs/constraints.md is not as the table: run "
        "python -m tests.interop.constraints.document"
    )


def test_the_document_has_the_matrix() -> None:
    assert document.written(document.MATRIX_BEGIN) == document.render_matrix(), (
        "run python -m tests.interop.constraints.document"
    )
