"""The bridge's own credentials for an API server: what spoils them, over the wire."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.clients.istio_raw import MAIN, Wire, bearer, token
from tests.support.harness.real_process import Bridge
from tests.support.harness.workers import await_true
from tests.support.parts.token_reviews import OWN_TOKEN, ReviewServer

pytestmark = pytest.mark.xdist_group("api-credentials")

SECONDS = 60.0
VERSION = "client.authentication.k8s.io/v1"
_PLUGIN = """#!/bin/sh
# Says what the file tells it to, for a test.
. {state}
"""


def credential(shown: str) -> str:
    """Return what an exec plugin prints."""
    kind = {"apiVersion": VERSION, "kind": "ExecCredential"}
    return json.dumps(kind | {"status": {"token": shown}})


@dataclass
class Ground:
    filed: ReviewServer
    """Of the cluster with a token file."""
    made: ReviewServer
    """Of the cluster whose kubeconfig has an exec plugin."""
    state: Path
    """What the plugin does."""
    bridge: Bridge

    def say(self, shown: str) -> None:
        """Have the plugin make this token."""
        self.do(f"echo '{credential(shown)}'")

    def do(self, script: str) -> None:
        """Have the plugin do this."""
        fresh = self.state.with_name("fresh")
        fresh.write_text(script)
        fresh.rename(self.state)


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    folder = tmp_path_factory.mktemp("api-credentials")
    with ExitStack() as parts:
        servers = []
        for name in ("filed", "made"):
            (folder / name).mkdir()
            servers.append(parts.enter_context(ReviewServer(folder / name)))
        filed, made = servers
        jwks = {"verify": "jwks", "file": "jwks.json", "issuer": MAIN.issuer}
        timeout = {"verify": "token_review", "timeout": "1.5s"}
        by_plugin = timeout | {"kubeconfig": str(folder / "config")}
        clusters = [
            {"name": "filed", "tokens": filed.section | timeout},
            {"name": "made", "namespaces": ["*"], "tokens": by_plugin},
            {"name": "offline", "namespaces": ["*"], "tokens": jwks},
        ]
        write_kubeconfig(folder, made)
        bridge = Bridge(
            folder / "served",
            issuers=(MAIN,),
            overrides={
                "clusters": clusters,
                "ledger": {"refusals_per_second": 100_000},
                "limits": {"threads": 4},
            },
        )
        ground = Ground(filed, made, folder / "state", bridge)
        ground.say(OWN_TOKEN)
        with bridge:
            yield ground
        assert "Traceback" not in bridge.log()


def write_kubeconfig(folder: Path, server: ReviewServer) -> None:
    plugin = folder / "plugin"
    plugin.write_text(_PLUGIN.format(state=folder / "state"))
    plugin.chmod(0o700)
    command = {
        "apiVersion": VERSION,
        "command": str(plugin),
        "interactiveMode": "Never",
    }
    cluster = {"server": server.url, "certificate-authority": str(server.ca_file)}
    path = folder / "config"
    path.touch(mode=0o600)
    path.write_text(
        json.dumps(
            {
                "current-context": "a",
                "contexts": [{"name": "a", "context": {"cluster": "c", "user": "u"}}],
                "clusters": [{"name": "c", "cluster": cluster}],
                "users": [{"name": "u", "user": {"exec": command}}],
            }
        )
    )


@pytest.fixture
def wire(ground: Ground) -> Iterator[Wire]:
    with Wire(ground.bridge) as opened:
        yield opened


def told(wire: Wire, cluster: str) -> tuple[str, str]:
    """Return the status of a call, and the rule on record."""
    answer = wire.ask(bearer(token(), cluster))
    row = wire.new_outcome()
    assert row["status"] in {answer.code, ""}
    assert row["kind"] == ("issued" if answer.code == "OK" else "failed")
    return answer.code, row["rule"]


def replace(path: Path, text: str) -> None:
    """Replace a file as kubelet does: at once."""
    fresh = path.with_name("fresh")
    fresh.write_text(text)
    fresh.rename(path)


def test_a_token_that_has_expired_is_replaced_in_its_file(
    ground: Ground, wire: Wire
) -> None:
    path = ground.filed.token_file
    assert told(wire, "filed") == ("OK", "")
    ground.filed.accepted = "the-next"
    assert told(wire, "filed") == ("UNAVAILABLE", "review.credential")
    assert told(wire, "offline") == ("OK", "")
    replace(path, "the-next")
    # At the next refusal, and not only after a minute.
    assert told(wire, "filed") == ("OK", "")
    ground.filed.accepted = OWN_TOKEN
    replace(path, OWN_TOKEN)
    assert told(wire, "filed") == ("OK", "")


@pytest.mark.parametrize("content", ["", "two words", None])
def test_a_token_file_that_is_empty_for_a_moment_changes_nothing(
    ground: Ground, wire: Wire, content: str | None
) -> None:
    path = ground.filed.token_file
    assert told(wire, "filed") == ("OK", "")
    try:
        if content is None:
            path.unlink()
        else:
            path.write_text(content)
        assert told(wire, "filed") == ("OK", "")
        # Also where the API server asks for another one just then.
        ground.filed.accepted = "the-next"
        assert told(wire, "filed") == ("UNAVAILABLE", "review.credential")
        assert ground.bridge.get("/readyz")[0] == 200
        ground.filed.accepted = OWN_TOKEN
        assert told(wire, "filed") == ("OK", "")
    finally:
        replace(path, OWN_TOKEN)


PLUGINS: dict[str, tuple[str, str]] = {
    "hangs": ("exec sleep 600", "review.timeout"),
    "prints rubbish": ("echo '<html>'", "review.credential"),
    "prints without an end": ("yes", "review.credential"),
    "exits with 1": ("echo no >&2; exit 1", "review.credential"),
    "makes an empty token": (f"echo '{credential('')}'", "review.credential"),
}


@pytest.mark.parametrize("name", PLUGINS)
def test_an_exec_plugin_that_fails_harms_its_own_cluster_alone(
    ground: Ground, wire: Wire, name: str
) -> None:
    assert told(wire, "made") == ("OK", "")
    script, rule = PLUGINS[name]
    ground.do(script)
    ground.made.accepted = "the-next"
    rules: list[str] = []

    def is_told() -> bool:
        code, found = told(wire, "made")
        assert code == "UNAVAILABLE"
        rules.append(found)
        return found == rule

    await_true(is_told, SECONDS)
    # Until a run has ended, the old token is what there is, and is refused. A program
    # may be late on a busy machine.
    assert {*rules} <= {rule, "review.credential", "review.timeout"}
    assert told(wire, "filed") == ("OK", "")
    assert told(wire, "offline") == ("OK", "")
    assert ground.bridge.get("/readyz")[0] == 200
    ground.say("the-next")
    await_true(lambda: told(wire, "made")[0] == "OK", SECONDS)
    ground.made.accepted = OWN_TOKEN
    ground.say(OWN_TOKEN)
    await_true(lambda: told(wire, "made")[0] == "OK", SECONDS)
