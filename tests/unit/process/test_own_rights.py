"""Rights are asked for in the background, once a bridge, and again only if need be."""

import base64
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from bridge.config import ConfigText
from bridge.process.own_rights import OwnRights, _Questions
from tests.support.harness.configuration import text
from tests.support.harness.workers import await_true
from tests.support.parts.scripted_http import json_answer
from tests.support.parts.token_reviews import (
    ACCESS,
    OWN_TOKEN,
    ReviewServer,
    holding,
    saying,
)

Write = Callable[..., ConfigText]
SECRETS = "/api/v1/namespaces/istio-system/secrets"
MISSING = (
    "cluster one: the bridge may not create tokenreviews.authentication.k8s.io, which "
    "tokens.verify: token_review needs: deploy/kubernetes has the role and its binding"
)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ReviewServer]:
    with ReviewServer(tmp_path) as running, running.ending_after(60):
        yield running


@pytest.fixture
def write(tmp_path: Path, server: ReviewServer) -> Write:
    path = tmp_path / "bridge.yaml"

    def write(**changed: Any) -> ConfigText:
        one = {"name": "one", "tokens": server.section}
        path.write_text(text(**({"clusters": [one]} | changed)))
        return ConfigText.read(path)

    return write


@pytest.fixture
def rights() -> Iterator[OwnRights]:
    made = OwnRights(again_seconds=0.05)
    yield made
    made.stop()


def asked(server: ReviewServer) -> int:
    return sum(ACCESS.encode() in one for one in server.requests)


def begin(rights: OwnRights, source: ConfigText) -> None:
    rights.prepare(source)
    rights.commit()


def test_a_missing_right_is_told_until_it_is_there(
    server: ReviewServer,
    write: Write,
    rights: OwnRights,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    server.denied = {"create tokenreviews"}
    begin(rights, write())
    await_true(lambda: asked(server) >= 6)  # twice three
    assert rights.warnings() == {"rights": MISSING}
    assert caplog.text.count(MISSING) == 1
    server.denied = set()
    await_true(lambda: not rights.warnings())
    told = "one: the bridge has every right that it needs there"
    await_true(lambda: told in caplog.text)


def test_rights_that_are_there_are_asked_for_once(
    server: ReviewServer, write: Write
) -> None:
    questions = _Questions(write().config)
    assert questions.ask()
    assert asked(server) == 3
    assert questions.ask()
    assert (asked(server), questions.found) == (3, {})


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (saying(json_answer(b'{"message": "no"}', 403)), "HTTP status 403: no"),
        (saying(b""), "cannot be asked"),
    ],
)
def test_an_api_server_that_does_not_say_is_told_and_asked_again(
    server: ReviewServer, write: Write, fault: Any, told: str
) -> None:
    questions = _Questions(write().config)
    server.fault = fault
    assert not questions.ask()
    (text,) = questions.found["one"]
    assert text.startswith("cluster one: the bridge's rights there are not known: ")
    assert told in text
    server.fault = None
    assert questions.ask()


def test_nothing_waits_for_an_api_server_that_hangs(
    server: ReviewServer, write: Write, rights: OwnRights
) -> None:
    server.fault = holding()
    begin(rights, write())  # returns
    assert server.hanging.wait(20)
    assert rights.warnings() == {}
    rights.stop()  # returns


def test_one_cluster_that_lacks_a_right_is_asked_again_alone(
    server: ReviewServer, write: Write, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    with ReviewServer(tmp_path / "other") as other, other.ending_after(60):
        other.denied = {"list pods"}
        clusters = [
            {"name": name, "tokens": each.section}
            for name, each in (("one", server), ("two", other))
        ]
        questions = _Questions(write(clusters=clusters).config)
        for _ in range(3):
            assert not questions.ask()
        assert [*questions.found] == ["two"]
        assert (asked(server), asked(other)) == (3, 9)


def test_a_reload_asks_again_only_where_the_clusters_are_others(
    server: ReviewServer, write: Write, rights: OwnRights
) -> None:
    begin(rights, write())
    await_true(lambda: asked(server) == 3)
    questions = rights._questions
    begin(rights, write(workers=4))
    rights.commit()  # of what was not prepared
    rights.prepare(write(clusters=[{"name": "no", "tokens": server.section}]))
    rights.discard()
    rights.commit()
    begin(rights, write(workers=2))
    assert rights._questions is questions
    server.denied = {"get pods"}
    begin(rights, write(clusters=[{"name": "two", "tokens": server.section}]))
    await_true(lambda: rights.warnings() != {})
    assert rights.warnings()["rights"].startswith("cluster two: ")
    jwks = {"verify": "jwks", "file": "a", "issuer": "https://a.example"}
    begin(rights, write(clusters=[{"name": "one", "tokens": jwks}]))
    assert rights.warnings() == {}


def test_clusters_by_remote_secrets_are_asked_with_what_these_say(
    server: ReviewServer, write: Write
) -> None:
    home = {key: each for key, each in server.section.items() if key != "verify"}
    joined = {"verify": "token_review", "remote_secret": True}
    source = write(
        clusters=[{"name": "far", "tokens": joined}],
        remote_secrets=home | {"namespace": "istio-system"},
    )
    server.objects[SECRETS] = {"items": []}
    questions = _Questions(source.config)
    assert not questions.ask()
    (told,) = questions.found["far"]
    assert "no remote secret has its cluster ID" in told
    authority = base64.b64encode(server.ca_file.read_bytes()).decode()
    kubeconfig = {
        "current-context": "a",
        "contexts": [{"name": "a", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [
            {
                "name": "c",
                "cluster": {
                    "server": server.url,
                    "certificate-authority-data": authority,
                },
            }
        ],
        "users": [{"name": "u", "user": {"token": OWN_TOKEN}}],
    }
    value = base64.b64encode(yaml.safe_dump(kubeconfig).encode()).decode()
    found = {"items": [{"metadata": {"name": "s"}, "data": {"far": value}}]}
    server.objects[SECRETS] = found
    server.denied = {"get pods"}
    assert not questions.ask()
    (told,) = questions.found["far"]
    assert told.startswith("cluster far: the bridge may not get pods")
    server.denied = set()
    assert questions.ask()
    questions.close()
