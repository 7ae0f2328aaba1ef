"""Tokens and logins end: callers hear of it at most for a moment, and nobody restarts.

All rows have one server; each bridge has a login of its own.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.integration.vault_faults.support import (
    REFUSED,
    Ground,
    ground,
    on_each_product,
)
from tests.support.clients.callers import RETRYABLE
from tests.support.harness.vault import VaultBridge
from tests.support.harness.workers import await_true
from tests.support.parts.pki import write_private
from tests.support.parts.vault import Product, Server
from tests.support.parts.vault_mounts import AppRole

pytestmark = on_each_product("vault-tokens")


@pytest.fixture(scope="module")
def server(
    vault_product: Product, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    with Server(folder / "server", vault_product) as made:
        yield made


@pytest.fixture(scope="module")
def by_file(
    server: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ground]:
    with ground(tmp_path_factory.mktemp("bridge") / "file", server) as made:
        yield made


class Role:
    """AppRole with one role, which a test changes."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.file = Path()
        self._made: list[AppRole] = []

    @property
    def made(self) -> AppRole:
        (found,) = self._made
        return found

    def login(self, policy: str, folder: Path) -> Mapping[str, object]:
        self._made.append(AppRole.make(self.server, policy))
        self.file = folder / "secret-id"
        return self.made.login(self.file)

    def change(self, bridge: VaultBridge, fields: Mapping[str, object]) -> None:
        """Change the role, and wait until the bridge has a token of what it is now.

        A login that is under way may still get one of what the role was before.
        """
        api = self.server.api
        api.call("POST", f"auth/{self.made.mount}/role/{self.made.role}", fields)
        asked = bridge.logins()
        before: list[str] = []

        def are_over() -> bool:
            before[:] = bridge.tokens(asked)
            return bool(before)

        await_true(are_over)
        if before[-1]:  # a batch token ends by itself
            api.ask("POST", "auth/token/revoke-accessor", {"accessor": before[-1]})
        await_true(lambda: len(bridge.tokens(asked)) > len(before))

    def renew(self, **fields: object) -> None:
        """Put another SecretID into the file."""
        secret = self.made.new_secret_id(**fields)
        write_private(self.file, f"{secret}\n".encode())

    def revoke(self) -> None:
        """Revoke all tokens that logins with it have made."""
        self.server.api.post(f"sys/leases/revoke-prefix/auth/{self.made.mount}")


@pytest.fixture(scope="module")
def role(server: Server) -> Role:
    return Role(server)


@pytest.fixture(scope="module")
def by_role(
    server: Server, role: Role, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ground]:
    folder = tmp_path_factory.mktemp("bridge") / "approle"
    with ground(folder, server, role.login) as made:
        yield made


class TestTokenFile:
    def test_a_revoked_token_is_replaced_by_the_next_one_in_the_file(
        self, by_file: Ground
    ) -> None:
        api, bridge = by_file.server.api, by_file.bridge
        token = bridge.token_file.read_text().strip()
        by_file.survive(
            "token revoked (token file)",
            lambda: api.post("auth/token/revoke", token=token),
            bridge.new_token,
        )

    def test_a_token_without_uses_is_replaced_by_the_next_one_in_the_file(
        self, by_file: Ground
    ) -> None:
        bridge = by_file.bridge
        by_file.survive(
            "token used up (token file)",
            lambda: bridge.new_token(num_uses=40),
            bridge.new_token,
        )


class TestAppRole:
    def test_a_policy_that_was_taken_away_costs_no_login(self, by_role: Ground) -> None:
        bridge = by_role.bridge
        logins = bridge.logins()
        by_role.survive(
            "policy taken away",
            lambda: bridge.permit({}),
            lambda: bridge.permit(bridge.rules),
            allowed=REFUSED,
            failures=20,
        )
        assert bridge.logins() == logins

    def test_a_revoked_token_is_replaced_by_one_login(
        self, by_role: Ground, role: Role
    ) -> None:
        bridge, logins = by_role.bridge, by_role.bridge.logins()
        by_role.is_unmoved("token revoked (AppRole)", role.revoke)
        assert bridge.logins() == logins + 1

    def test_tokens_with_few_uses_are_replaced_before_they_are_used_up(
        self, by_role: Ground, role: Role
    ) -> None:
        bridge = by_role.bridge
        role.change(bridge, {"token_num_uses": 10})
        logins = bridge.logins()
        by_role.is_unmoved("token used up each 10 calls (AppRole)", lambda: None)
        await_true(lambda: bridge.logins() >= logins + 3)
        role.change(bridge, {"token_num_uses": 0})

    def test_a_token_that_is_not_renewable_is_replaced_before_it_ends(
        self, by_role: Ground, role: Role
    ) -> None:
        bridge = by_role.bridge
        ttl = dict.fromkeys(("token_ttl", "token_max_ttl"), "6s")

        def until_two_more() -> None:
            role.change(bridge, {"token_type": "batch", **ttl})
            logins = bridge.logins()
            await_true(lambda: bridge.logins() >= logins + 2)

        by_role.is_unmoved("token not renewable, ends after 6 s", until_two_more)
        role.change(bridge, {"token_type": "service", **dict.fromkeys(ttl, "1h")})

    def test_a_secret_id_that_is_used_up_is_tried_once(
        self, by_role: Ground, role: Role
    ) -> None:
        bridge, logins = by_role.bridge, by_role.bridge.logins()

        def begin() -> None:
            path = f"auth/{role.made.mount}/role/{role.made.role}/secret-id/destroy"
            role.server.api.post(path, secret_id=role.file.read_text().strip())
            role.revoke()

        by_role.survive(
            "secret_id used up",
            begin,
            role.renew,
            allowed=RETRYABLE | {"FAILED_PRECONDITION"},
            failures=20,
        )
        # One with each SecretID: no call and no probe tried the old one again.
        assert bridge.logins() == logins + 2
