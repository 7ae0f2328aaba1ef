"""The server is sealed, restarted or stopped: nobody restarts the bridge.

All rows have one server and one bridge, one after the other.
"""

import os
import signal
from collections.abc import Iterator

import pytest

from tests.integration.vault_faults.audit_socket import AuditSocket
from tests.integration.vault_faults.support import Ground, ground, on_each_product
from tests.support.harness.vault import VaultBridge
from tests.support.harness.workers import await_true
from tests.support.parts.vault import Product, Server

_SIGN = "/sign/"
pytestmark = on_each_product("vault-server")


@pytest.fixture(scope="module")
def shared(
    vault_product: Product, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ground]:
    folder = tmp_path_factory.mktemp("bridge")
    with (
        Server(folder / "server", vault_product) as server,
        ground(folder / "b", server) as made,
    ):
        yield made


def test_a_server_that_was_sealed_is_used_again(shared: Ground) -> None:
    shared.survive("sealed and unsealed", shared.server.seal, shared.server.unseal)


def test_a_server_that_was_killed_is_used_again(shared: Ground) -> None:
    shared.survive("killed and started", shared.server.kill, shared.server.start)


def test_a_server_with_an_earlier_token_store_needs_another_token(
    shared: Ground,
) -> None:
    bridge, server = shared.bridge, shared.server
    saved = server.save_store()
    before = bridge.tokens_used()
    bridge.new_token()
    await_true(lambda: bridge.tokens_used() > before)
    shared.survive(
        "restarted with another token store (token file)",
        lambda: server.restart(store=saved),
        bridge.new_token,
        failures=40,
    )


def test_a_server_that_stalls_holds_nobody_for_longer_than_the_timeout(
    shared: Ground,
) -> None:
    pid = shared.server.pid
    shared.survive(
        "stopped (SIGSTOP)",
        lambda: os.kill(pid, signal.SIGSTOP),
        lambda: os.kill(pid, signal.SIGCONT),
    )


def test_requests_beyond_a_quota_are_told_so(shared: Ground) -> None:
    api, front = shared.server.api, shared.bridge.pki.mount
    quota = "sys/quotas/rate-limit/low"
    # OpenBao's own default tells no time to wait.
    shared.survive(
        "429 without Retry-After",
        lambda: api.call("POST", quota, {"path": f"{front}/", "rate": 1}),
        lambda: api.delete(quota),
        front="istio",
    )
    api.post("sys/quotas/config", enable_rate_limit_response_headers=True)
    shared.survive(
        "429 with Retry-After",
        lambda: api.call(
            "POST", quota, {"path": f"{front}/", "rate": 1, "interval": "2s"}
        ),
        lambda: api.delete(quota),
        front="istio",
    )


def test_a_certificate_whose_answer_could_not_be_audited_is_on_record(
    shared: Ground,
) -> None:
    bridge, api = shared.bridge, shared.server.api
    with AuditSocket(bridge.audit_log) as device:
        options = {"address": device.address, "socket_type": "tcp"}
        api.post("sys/audit/socket", type="socket", options=options)
        api.delete(f"sys/audit/{bridge.audit_device}")

        def end() -> None:
            device.serve()
            bridge.audit()
            api.delete("sys/audit/socket")

        before = unaudited(bridge)

        def is_lost() -> bool:
            if device.is_away and not unaudited(bridge) - before:
                # The answer was faster than the end of the device.
                device.serve()
                device.leave_after(_SIGN)
            return bool(unaudited(bridge) - before)

        shared.faults.survive(
            shared.named("audit device gone after the request"),
            lambda: device.leave_after(_SIGN),
            until=is_lost,
            end=end,
            # A probe may take the signature in place of a call. Then the breaker opens.
            patience=60.0,
        )


def unaudited(bridge: VaultBridge) -> set[str]:
    """Return the attempts that ended as unknown, and whose answer was not audited."""
    unknown = {row["attempt"] for row in bridge.rows(kind="unknown")}
    return unknown & {one.attempt for one in bridge.unanswered()}
