"""A changed configuration, reloaded by a bridge that serves."""

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from bridge.errors import BackendRefusedError
from tests.support.harness.real_process import SERVER_NAME
from tests.support.harness.workers import Supervised, await_true, is_refused
from tests.support.parts import netports
from tests.support.parts.pki import new_root

pytestmark = pytest.mark.xdist_group("reload")


@pytest.fixture(params=[1, 2], ids=["one worker", "two workers"])
def bridge(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Supervised]:
    with Supervised(tmp_path / "served", request.param) as served:
        yield served
    served.require_sound_ledger()


def test_a_changed_file_is_reloaded(bridge: Supervised) -> None:
    bridge.change(fronts__istio__audiences=["other"])
    bridge.await_reloads("ok")
    assert bridge.metric("meshca_config_generation") == 2
    bridge.ask("other")
    with pytest.raises(BackendRefusedError, match="UNAUTHENTICATED"):
        bridge.ask("istio-ca")


def test_a_bad_file_is_told_and_the_old_configuration_serves(
    bridge: Supervised,
) -> None:
    good = bridge.configuration.read_text()
    bridge.put(good + "misspelt: 1\n")
    bridge.await_reloads("refused")
    status, body = bridge.get("/readyz")
    assert status == 200
    assert "misspelt" in json.loads(body)["warnings"]["configuration"]
    assert bridge.metric("meshca_config_last_reload_successful") == 0
    assert bridge.metric("meshca_config_generation") == 1
    assert "the new configuration is refused" in bridge.log()
    bridge.ask()
    bridge.put(good)
    bridge.await_reloads("ok")
    assert bridge.metric("meshca_config_last_reload_successful") == 1
    assert "configuration" not in json.loads(bridge.get("/readyz")[1])["warnings"]


def test_files_that_have_changed_are_reloaded_by_sighup(bridge: Supervised) -> None:
    another = new_root("another root")
    with bridge.roots.open("ab") as file:
        file.write(another.pem)
    bridge.hang_up()
    bridge.await_reloads("ok")
    assert bridge.ask().cert_chain[-1].count("BEGIN CERTIFICATE") == 2


def test_files_that_cannot_serve_are_refused_by_sighup(bridge: Supervised) -> None:
    good = bridge.roots.read_bytes()
    bridge.roots.write_bytes(new_root("a root of others").pem)
    bridge.hang_up()
    bridge.await_reloads("refused")
    status, body = bridge.get("/readyz")
    assert status == 200
    assert "trust anchors" in json.loads(body)["warnings"]["configuration"]
    bridge.roots.write_bytes(good)
    bridge.ask()


def test_a_link_to_another_file_is_reloaded(bridge: Supervised) -> None:
    # As Kubernetes does it: a link to a folder that is swapped.
    folder = bridge.folder / "v2"
    folder.mkdir()
    text = bridge.configuration.read_text().replace("- istio-ca", "- other")
    (folder / "bridge.yaml").write_text(text)
    link = bridge.folder / "link"
    link.symlink_to(folder / "bridge.yaml")
    link.replace(bridge.configuration)
    bridge.await_reloads("ok")
    bridge.ask("other")


def ask_twice(bridge: Supervised) -> None:
    try:
        bridge.ask()
    except BackendRefusedError as error:
        # The kernel resets a connection that it had given to a listener which closes,
        # before anybody had accepted it (decision 6). Clients connect again.
        if "UNAVAILABLE" not in str(error):
            raise
        bridge.ask()


def test_no_call_fails_during_a_reload(bridge: Supervised) -> None:
    errors: list[BaseException] = []
    asked, stop = threading.Semaphore(0), threading.Event()

    def load() -> None:
        while not stop.wait(0.01):
            try:
                ask_twice(bridge)
            except BackendRefusedError as error:
                errors.append(error)
            asked.release()

    threads = [threading.Thread(target=load) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for count in (1, 2):
            bridge.hang_up()
            bridge.await_reloads("ok", count)
            for _ in range(10):
                assert asked.acquire(timeout=10)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert errors == []


def test_a_change_that_brings_the_first_serving_certificate_lets_peers_in(
    tmp_path: Path,
) -> None:
    absent = {"certificate": "absent.pem", "key": "absent.key"}
    fronts = {"istio": {"tls": {"dns_names": [], **absent}}}
    overrides = {"fronts": fronts}
    bridge = Supervised(tmp_path / "served", 1, overrides, awaits="/healthz")
    with bridge:
        await_true(lambda: "absent.pem" in bridge.get("/readyz")[1])
        bridge.change(fronts__istio__tls={"dns_names": [SERVER_NAME]})
        bridge.await_reloads("ok")
        assert bridge.get("/readyz")[0] == 200
        bridge.ask()


def test_listeners_workers_ledger_and_admin_address_can_be_changed(
    tmp_path: Path,
) -> None:
    with Supervised(tmp_path / "served", 2) as bridge:
        address, old = netports.address(), bridge.children()
        former, bridge.admin = bridge.admin, netports.address()
        bridge.change(
            workers=1,
            fronts__istio__listen=address,
            ledger__journal="journal2/",
            admin__listen=bridge.admin,
        )
        await_true(lambda: not is_refused(bridge.admin))
        bridge.await_reloads("ok")
        bridge.ask(address=address)
        await_true(lambda: len(bridge.children()) == 1)
        assert bridge.children()[0] not in old
        assert is_refused(former)
        with pytest.raises(BackendRefusedError, match="UNAVAILABLE"):
            bridge.ask()


def test_workers_of_a_configuration_that_cannot_take_effect_answer_no_call(
    tmp_path: Path,
) -> None:
    with Supervised(tmp_path / "served") as bridge:
        old = bridge.children()
        tree = yaml.safe_load(bridge.configuration.read_text())
        tokens = tree["clusters"][0]["tokens"]
        del tokens["file"]
        nobody = f"https://{netports.address()}/keys"
        other = {"name": "Kubernetes", "namespaces": ["*"]}
        bridge.change(clusters=[other | {"tokens": tokens | {"url": nobody}}])
        # It has its serving certificate then, and so all that it needs to listen.
        journal = bridge.folder / "journal"
        await_true(
            lambda: any(
                '"kind":"issued"' in file.read_text("utf-8")
                for file in journal.glob("w1/*.jsonl")
            )
        )
        for _ in range(10):
            bridge.ask()
        await_true(lambda: sum(bridge.issued_by().values()) == 10)
        assert bridge.issued_by() == {"w0": 10, "w1": 0}
        assert set(old) < set(bridge.children())
        bridge.change(clusters=[other | {"tokens": tokens | {"file": "jwks.json"}}])
        bridge.await_reloads("ok")
        bridge.ask()
        await_true(lambda: sum(bridge.issued_by().values()) == 11)
        assert bridge.issued_by()["w0"] == 10


def test_an_admin_address_in_use_is_refused_and_the_old_one_serves(
    tmp_path: Path,
) -> None:
    with Supervised(tmp_path / "served") as bridge, socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        workers = bridge.children()
        bridge.change(admin__listen=f"127.0.0.1:{other.getsockname()[1]}")
        bridge.await_reloads("refused")
        said = json.loads(bridge.get("/readyz")[1])["warnings"]["configuration"]
        assert "admin.listen: cannot listen on" in said
        assert bridge.children() == workers
        bridge.ask()
