"""Logins at a real server: how each begins, what ends it, and how often it is made."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509

from bridge.spi import (
    BackendAuthError,
    BackendBrokenError,
    BackendCredentialError,
    BackendError,
    Latch,
    PluginContext,
)
from bridge.testing.leaves import leaf_request
from bridge_vault import VaultTransitCA
from tests.support.harness.faults import WELL_AGAIN_SECONDS
from tests.support.harness.journals import whole_lines
from tests.support.harness.vault import VaultBridge
from tests.support.harness.workers import await_true
from tests.support.parts import vault_mounts
from tests.support.parts.kubernetes import APIServer
from tests.support.parts.pki import write_private
from tests.support.parts.vault import Product, Server
from tests.support.parts.vault_mounts import JWT, AppRole, TLSCertificate, Transit

NAME = x509.UniformResourceIdentifier("spiffe://corp.example/ns/shop/sa/cart")
CALL_SECONDS = 5.0
FORGOTTEN_SECONDS = 60.0
LIFE_SECONDS = 6
THREADS = 24

pytestmark = pytest.mark.xdist_group("vault-logins")


class Ground:
    """A server with TLS and an audit log, a Transit engine, and its policy."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server = server
        hierarchy = vault_mounts.write_hierarchy(folder / "hierarchy")
        self.transit = Transit.make(server, hierarchy, folder / "chain.pem")
        self.policy = vault_mounts.write_policy(server, self.transit.rules)
        self._audit_log = folder / "audit.jsonl"
        vault_mounts.audit_to(server, self._audit_log)

    def logins(self, mount: str) -> int:
        """Return how many logins a mount was asked for."""
        entries = map(json.loads, whole_lines(self._audit_log))
        return sum(
            one["type"] == "request" and one["request"]["path"] == f"auth/{mount}/login"
            for one in entries
        )

    @contextmanager
    def ca(
        self, login: Mapping[str, object], latch: Path, **more: object
    ) -> Iterator[VaultTransitCA]:
        """Make an issuing CA, whose latch is in a file."""
        context = PluginContext(
            name="ca", base=latch.parent, chain=self.transit.chain, latch=Latch(latch)
        )
        made = VaultTransitCA(self.transit.options(login, **more), context)
        try:
            yield made
        finally:
            made.close()

    def revoke(self, mount: str) -> None:
        """Revoke all tokens of a mount's logins."""
        self.server.api.post(f"sys/leases/revoke-prefix/auth/{mount}")


@pytest.fixture(scope="module")
def ground(
    vault_product: Product, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ground]:
    folder = tmp_path_factory.mktemp("logins")
    server = Server(folder / "server", vault_product, storage="inmem", tls=True)
    with server:
        yield Ground(server, folder)


def issue(ca: VaultTransitCA) -> None:
    ca.issue(ca.prepare(leaf_request((NAME,))), timeout=CALL_SECONDS)


def is_issuing(ca: VaultTransitCA) -> bool:
    with suppress(BackendError):
        issue(ca)
        return True
    return False


def kubernetes(server: Server, policy: str, cluster: APIServer) -> str:
    """Mount the method for the service account mesh/bridge; return the mount."""
    cluster.new_account("vault", "vault")
    cluster.allow_reviews("vault", "vault")
    mount = f"kubernetes-{cluster.port}"
    server.api.post(f"sys/auth/{mount}", type="kubernetes")
    server.api.post(
        f"auth/{mount}/config",
        kubernetes_host=cluster.url,
        kubernetes_ca_cert=cluster.ca_file.read_text("ascii"),
        token_reviewer_jwt=cluster.token("vault", "vault"),
        disable_local_ca_jwt=True,
    )
    server.api.post(
        f"auth/{mount}/role/bridge",
        bound_service_account_names=["bridge"],
        bound_service_account_namespaces=["mesh"],
        audience="vault",
        token_policies=[policy],
    )
    return mount


@pytest.mark.parametrize("kind", ["token", "approle", "jwt", "tls"])
def test_a_login_gives_certificates(ground: Ground, tmp_path: Path, kind: str) -> None:
    server, policy = ground.server, ground.policy
    file = tmp_path / "secret"
    methods: dict[str, Callable[[], Mapping[str, object]]] = {
        "token": lambda: vault_mounts.token_login(
            vault_mounts.new_token(server, policy), file
        ),
        "approle": lambda: AppRole.make(server, policy).login(file),
        "jwt": lambda: JWT.make(server, policy).login(file),
        "tls": lambda: TLSCertificate.make(server, policy).login(tmp_path),
    }
    with ground.ca(methods[kind](), tmp_path / "latch.json") as ca:
        ca.check(timeout=CALL_SECONDS)
        issue(ca)


def test_the_login_kubernetes_gives_certificates_as_long_as_the_cluster_says(
    tmp_path: Path,
) -> None:
    # The Vault that the tests build has only the methods of its own repository.
    with (
        Server(tmp_path / "server", storage="inmem", tls=True) as server,
        APIServer(tmp_path / "cluster") as cluster,
    ):
        ground = Ground(server, tmp_path)
        mount = kubernetes(server, ground.policy, cluster)
        file = tmp_path / "secret"
        login = {
            "kubernetes": {"role": "bridge", "token_file": str(file), "mount": mount}
        }
        cluster.new_account("mesh", "bridge")
        cluster.new_account("other", "bridge")
        other = cluster.token("other", "bridge", "vault")
        write_private(file, other.encode())
        with ground.ca(login, tmp_path / "latch.json") as ca:
            # Vault takes the token for one of the cluster, but not of the role.
            with pytest.raises(BackendError, match="login") as caught:
                issue(ca)
            assert "namespace not authorized" in caught.value.detail
            assert "expected a mount" not in caught.value.detail
            file.write_text(cluster.token("mesh", "bridge", "vault"))
            await_true(lambda: is_issuing(ca))
            ca.check(timeout=CALL_SECONDS)
            # A service account that is gone logs nobody in, once the API server has
            # forgotten that its token was good.
            cluster.delete_account("mesh", "bridge")

            def is_refused() -> bool:
                ground.revoke(mount)
                return not is_issuing(ca)

            await_true(is_refused, seconds=FORGOTTEN_SECONDS)
            with pytest.raises(BackendError, match="login"):
                issue(ca)


def test_a_root_token_is_used_and_not_renewed(ground: Ground, tmp_path: Path) -> None:
    login = vault_mounts.token_login(ground.server.root_token, tmp_path / "token")
    with ground.ca(login, tmp_path / "latch.json") as ca:
        issue(ca)


@dataclass(frozen=True)
class Life:
    """Fields of an AppRole role, and how many logins fit three lives of its tokens."""

    id: str
    fields: dict[str, object]
    least: int
    most: int


LIVES = [
    Life("renewable", {"token_ttl": LIFE_SECONDS}, 1, 1),
    Life("periodic", {"token_period": LIFE_SECONDS}, 1, 1),
    Life("ends", {"token_ttl": LIFE_SECONDS, "token_explicit_max_ttl": 10}, 2, 5),
    Life("maximum", {"token_ttl": LIFE_SECONDS, "token_max_ttl": 10}, 2, 5),
    Life("batch", {"token_ttl": LIFE_SECONDS, "token_type": "batch"}, 3, 7),
    Life("uses", {"token_num_uses": 20}, 3, 10_000),
]


@pytest.fixture(scope="module")
def lived(
    ground: Ground, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, tuple[int, list[Exception]]]:
    """Issue for three lives by each role; give the logins and failures of each."""
    folder = tmp_path_factory.mktemp("lives")

    def live(row: Life) -> tuple[int, list[Exception]]:
        approle = AppRole.make(ground.server, ground.policy, **row.fields)
        login = approle.login(folder / row.id)
        failures: list[Exception] = []
        with ground.ca(login, folder / f"{row.id}.json") as ca:
            end = time.monotonic() + 3 * LIFE_SECONDS
            while time.monotonic() < end:
                try:
                    issue(ca)
                except BackendError as error:
                    failures.append(error)
                time.sleep(0.05)  # the server has two cores, and other tests
        return ground.logins(approle.mount), failures

    with ThreadPoolExecutor(len(LIVES)) as pool:
        return dict(zip([row.id for row in LIVES], pool.map(live, LIVES), strict=True))


@pytest.mark.parametrize("row", LIVES, ids=lambda row: row.id)
def test_a_token_of_each_life_is_kept_or_replaced_in_time(
    lived: Mapping[str, tuple[int, list[Exception]]], row: Life
) -> None:
    logins, failures = lived[row.id]
    assert failures == []
    assert row.least <= logins <= row.most


def test_a_revoked_token_costs_one_login(ground: Ground, tmp_path: Path) -> None:
    approle = AppRole.make(ground.server, ground.policy)
    login = approle.login(tmp_path / "secret-id", num_uses=2)
    with ground.ca(login, tmp_path / "latch.json") as ca:
        issue(ca)
        ground.revoke(approle.mount)
        with ThreadPoolExecutor(THREADS) as pool:
            assert all(pool.map(lambda _: is_issuing(ca), range(THREADS)))
    assert ground.logins(approle.mount) == 2


def test_a_policy_that_was_taken_away_costs_no_login(
    ground: Ground, tmp_path: Path
) -> None:
    server, rules = ground.server, ground.transit.rules
    policy = vault_mounts.write_policy(server, rules)
    approle = AppRole.make(server, policy)
    login = approle.login(tmp_path / "secret-id", num_uses=1)
    with ground.ca(login, tmp_path / "latch.json") as ca:
        issue(ca)
        vault_mounts.write_policy(server, {"other": ("read",)}, policy)
        for _ in range(5):
            with pytest.raises(BackendBrokenError, match=r"policies do not permit"):
                issue(ca)
        vault_mounts.write_policy(server, rules, policy)
        issue(ca)
    assert ground.logins(approle.mount) == 1


def test_a_token_that_may_not_look_itself_up_is_told_at_the_login(
    ground: Ground, tmp_path: Path
) -> None:
    approle = AppRole.make(ground.server, ground.policy, token_no_default_policy=True)
    login = approle.login(tmp_path / "secret-id")
    with (
        ground.ca(login, tmp_path / "latch.json") as ca,
        pytest.raises(BackendBrokenError, match=r"may not look itself up$") as raised,
    ):
        issue(ca)
    assert "read on auth/token/lookup-self" in raised.value.detail


class TestSecretID:
    def test_a_used_up_one_is_tried_once_and_another_one_in_the_file_is_used(
        self, ground: Ground, tmp_path: Path
    ) -> None:
        approle, file = AppRole.make(ground.server, ground.policy), tmp_path / "id"
        with ground.ca(approle.login(file, num_uses=1), tmp_path / "latch.json") as ca:
            issue(ca)
            ground.revoke(approle.mount)
            await_true(lambda: not is_issuing(ca))
            with pytest.raises(BackendCredentialError, match=r"refuse") as raised:
                issue(ca)
            assert not is_issuing(ca)
            assert "invalid role or secret ID" in raised.value.detail
            assert file.read_text().strip() not in raised.value.detail
            assert ground.logins(approle.mount) == 2
            approle.login(file)
            began = time.monotonic()
            await_true(lambda: is_issuing(ca))
            assert time.monotonic() - began <= WELL_AGAIN_SECONDS
        assert ground.logins(approle.mount) == 3

    def test_a_locked_role_is_waited_for(self, ground: Ground, tmp_path: Path) -> None:
        approle, file = AppRole.make(ground.server, ground.policy), tmp_path / "id"
        api = ground.server.api_with("")
        login = approle.login(file)
        wrong = {"role_id": approle.role_id, "secret_id": "wrong"}
        while api.ask("POST", f"auth/{approle.mount}/login", wrong)[0] != 403:
            pass
        with ground.ca(login, tmp_path / "latch.json") as ca:
            with pytest.raises(BackendAuthError, match=r"refuses the login$") as raised:
                issue(ca)
            assert "a role that is not locked" in raised.value.detail
            found = ground.server.api.get("sys/locked-users")["by_namespace"]
            (alias,) = (
                one
                for namespace in found
                for mount in namespace["mount_accessors"]
                for one in mount["alias_identifiers"]
            )
            (locked,) = (
                mount["mount_accessor"]
                for namespace in found
                for mount in namespace["mount_accessors"]
            )
            ground.server.api.post(f"sys/locked-users/{locked}/unlock/{alias}")
            await_true(lambda: is_issuing(ca))

    def test_a_wrong_one_is_tried_once_by_all_workers_and_restarts(
        self, vault_server: Server, tmp_path: Path
    ) -> None:
        made: list[AppRole] = []
        file = tmp_path / "secret-id"

        def login(policy: str, _: Path) -> Mapping[str, object]:
            made.append(AppRole.make(vault_server, policy))
            option = made[0].login(file)
            write_private(file, b"wrong\n")
            return option

        bridge = VaultBridge(
            tmp_path / "served", vault_server, login, workers=3, awaits="/healthz"
        )
        for _ in range(2):
            with bridge:
                checked = bridge.run("check").stdout
                assert "SecretID" in checked or "refused before" in checked
                await_true(lambda: bridge.metric("meshca_latched") > 0)
            assert bridge.logins() == 1
        vault_server.api.delete(f"sys/audit/{bridge.audit_device}")


def test_a_server_with_another_store_latches_nothing(
    vault_product: Product, tmp_path: Path
) -> None:
    with Server(tmp_path / "server", vault_product) as server:
        ground = Ground(server, tmp_path)
        approle = AppRole.make(server, ground.policy)
        login = approle.login(tmp_path / "secret-id")
        saved = server.save_store()
        with ground.ca(login, tmp_path / "latch.json") as ca:
            issue(ca)
            server.restart(empty=True)
            await_true(lambda: not is_issuing(ca))
            with pytest.raises(BackendAuthError, match=r"refuses the login$"):
                issue(ca)
            server.restart(store=saved)
            began = time.monotonic()
            await_true(lambda: is_issuing(ca))
            assert time.monotonic() - began <= WELL_AGAIN_SECONDS


class TestTokenFile:
    def test_a_replaced_one_is_used_within_seconds(
        self, ground: Ground, tmp_path: Path
    ) -> None:
        server, file = ground.server, tmp_path / "token"
        first = vault_mounts.new_token(server, ground.policy)
        second = vault_mounts.new_token(server, ground.policy)
        login = vault_mounts.token_login(first, file)
        with ground.ca(login, tmp_path / "latch.json") as ca:
            issue(ca)
            vault_mounts.token_login(second, file)
            server.api.post("auth/token/revoke", token=first)
            issue(ca)  # no call fails

    def test_a_periodic_one_lives_on(self, ground: Ground, tmp_path: Path) -> None:
        period = f"{LIFE_SECONDS}s"
        token = vault_mounts.new_token(ground.server, ground.policy, period=period)
        login = vault_mounts.token_login(token, tmp_path / "token")
        with ground.ca(login, tmp_path / "latch.json") as ca:
            end = time.monotonic() + 2 * LIFE_SECONDS
            while time.monotonic() < end:
                issue(ca)
                time.sleep(0.1)

    def test_one_that_ended_is_told(self, ground: Ground, tmp_path: Path) -> None:
        fields = {"ttl": "1s", "explicit_max_ttl": "1s"}
        token = vault_mounts.new_token(ground.server, ground.policy, **fields)
        login = vault_mounts.token_login(token, tmp_path / "token")
        with ground.ca(login, tmp_path / "latch.json") as ca:
            await_true(lambda: not is_issuing(ca))
            with pytest.raises(BackendAuthError, match=r"does not know") as raised:
                issue(ca)
        assert str(tmp_path / "token") in raised.value.detail
        assert token not in f"{raised.value!r} {raised.value.detail}"

    def test_a_wrapping_one_is_told_and_not_used_up(
        self, ground: Ground, tmp_path: Path
    ) -> None:
        wrapping = wrapped(ground.server, ground.policy)
        login = vault_mounts.token_login(wrapping, tmp_path / "token")
        with (
            ground.ca(login, tmp_path / "latch.json") as ca,
            pytest.raises(BackendAuthError, match=r"holds a wrapping token$"),
        ):
            issue(ca)
        answer = ground.server.api_with(wrapping).post("sys/wrapping/unwrap")
        assert answer["client_token"]


def wrapped(server: Server, policy: str) -> str:
    """Return a token that wraps a token with a policy."""
    fields = {"policies": [policy], "ttl": "1h"}
    _, answer = server.api.ask(
        "POST", "auth/token/create", fields, **{"X-Vault-Wrap-TTL": "60s"}
    )
    return str(answer["wrap_info"]["token"])
