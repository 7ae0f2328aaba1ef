"""What comes between bridge and Vault: each answer leaves a row that tells the truth.

All rows have one server, one proxy and one bridge, one after the other.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.integration.vault_faults.support import (
    REFUSED,
    Ground,
    ground,
    on_each_product,
)
from tests.support.clients.callers import RETRYABLE
from tests.support.harness.workers import await_true
from tests.support.parts import faulty_proxy
from tests.support.parts.faulty_proxy import Answer, Exchange, Fault, FaultyProxy, on
from tests.support.parts.vault import Product, Server

pytestmark = on_each_product("vault-answers")
SIGN = on("/sign/")
HTML = Answer(200, {"Content-Type": "text/html"}, b"<html>It works!</html>")
AWAY = Answer.of(302, Location="http://127.0.0.1:9/v1/elsewhere")
FAILED = Answer.of(500, "internal error")


def instead(answer: Answer) -> Fault:
    """The server has signed, and another answer comes."""
    return faulty_proxy.altered(lambda _: answer)


@dataclass(frozen=True)
class Row:
    name: str
    fault: Fault
    allowed: frozenset[str] = RETRYABLE
    outcome: str = "failed"
    """Of the attempts that met it."""


ROWS = (
    Row("500 after issuing", instead(FAILED), outcome="unknown"),
    Row("503", faulty_proxy.answered(Answer.of(503, "Vault is sealed"))),
    Row("473 (a standby)", faulty_proxy.answered(Answer.of(473))),
    Row("504 of a load balancer", instead(Answer(504)), outcome="unknown"),
    Row("redirect", faulty_proxy.answered(AWAY), REFUSED),
    Row("HTML with 200", instead(HTML), REFUSED, "unknown"),
    Row("slow: answers after 3 s", faulty_proxy.delayed(3), outcome="unknown"),
    Row("trickle: a byte each 0.1 s", faulty_proxy.trickled(), outcome="unknown"),
    Row("cut after the request", faulty_proxy.cut_after, outcome="unknown"),
    Row("cut before the request", faulty_proxy.cut_before, outcome="unknown"),
)


@dataclass(frozen=True)
class Proxied:
    ground: Ground
    proxy: FaultyProxy


@pytest.fixture(scope="module")
def shared(
    vault_product: Product, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxied]:
    folder = tmp_path_factory.mktemp("bridge")
    with (
        Server(folder / "server", vault_product) as server,
        FaultyProxy(server.url) as proxy,
        ground(folder / "b", server, addresses=[proxy.url]) as made,
    ):
        yield Proxied(made, proxy)


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_calls_go_on_once_answers_are_whole_again(shared: Proxied, row: Row) -> None:
    bridge, proxy = shared.ground.bridge, shared.proxy
    met: set[str] = set()

    def fault(exchange: Exchange) -> None:
        met.add(exchange.request.headers["x-meshca-attempt"])
        row.fault(exchange)

    shared.ground.survive(
        row.name, lambda: proxy.put(fault, SIGN), proxy.clear, allowed=row.allowed
    )

    def endings() -> dict[str, str]:
        return {
            one["attempt"]: one["kind"]
            for one in bridge.rows()
            if one.get("attempt") in met and one["kind"] != "intent"
        }

    await_true(lambda: len(endings()) == len(met))
    # An answer that came when the fault had ended may have come in time.
    assert {row.outcome} <= {*endings().values()} <= {row.outcome, "issued"}
