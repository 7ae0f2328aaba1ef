"""Clear HTTP/2 with prior knowledge, as proxies speak it."""

import socket
import struct

import pytest

from bridge.identity.service_account_token import LONGEST_TOKEN
from bridge.server.linkerd import METHOD
from tests.support.clients import attacks, http2
from tests.support.clients.istio_raw import padded_token
from tests.support.clients.linkerd_raw import Certify, request, token
from tests.support.harness.real_process import Bridge
from tests.support.harness.workers import await_true

pytestmark = pytest.mark.xdist_group("linkerd-transport")

MAX_CONCURRENT_STREAMS, MAX_HEADER_LIST_SIZE = 3, 6
IN_FLIGHT, AWAITED = 4096, 1024
"""Calls that have their message, and calls whose messages are awaited, at most."""
FAILED = "FAILED_PRECONDITION"
MANY = 3000
"""More than the messages that are awaited at a time."""
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def settings(bridge: Bridge) -> dict[int, int]:
    """Connect with prior knowledge, and read what the server allows."""
    host, port = bridge.linkerd_address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(PREFACE + http2.frame(http2.SETTINGS))
        held = b""
        while len(held) < 9 or len(held) < 9 + int.from_bytes(held[:3]):
            chunk = connection.recv(4096)
            assert chunk, "the server hung up"
            held += chunk
    assert held[3] == http2.SETTINGS
    body = held[9 : 9 + int.from_bytes(held[:3])]
    return dict(struct.iter_unpack(">HI", body))


def test_a_connection_may_have_more_streams_than_calls_have_places(
    bridge: Bridge,
) -> None:
    # The sidecar sends the calls of all proxies in one connection.
    told = settings(bridge)
    assert told[MAX_CONCURRENT_STREAMS] > IN_FLIGHT + AWAITED
    # Credentials are in the message.
    assert told[MAX_HEADER_LIST_SIZE] == 8 * 1024


def begin(bridge: Bridge, calls: int) -> socket.socket:
    """Begin calls on one connection, and send no message."""
    host, port = bridge.linkerd_address.rsplit(":", 1)
    connection = socket.create_connection((host, int(port)), timeout=30)
    streams = range(1, 2 * calls, 2)
    begun = b"".join(http2.begun(stream, path=METHOD) for stream in streams)
    connection.sendall(PREFACE + http2.frame(http2.SETTINGS) + begun)
    return connection


def test_calls_whose_messages_never_come_are_given_up(
    bridge: Bridge, certify: Certify
) -> None:
    with begin(bridge, MANY):
        certify.require_healthy()
        await_true(lambda: bridge.metric("meshca_in_flight") == 0)


@pytest.mark.parametrize(("kibibytes", "code"), [(3, "OK"), (9, "RESOURCE_EXHAUSTED")])
def test_headers_over_8_kib_are_the_transports_to_refuse(
    certify: Certify, kibibytes: int, code: str
) -> None:
    padding = (("x", "v" * kibibytes * 1024),)
    assert {certify.send(request(), padding).code for _ in range(30)} == {code}
    certify.require_healthy()


def test_the_longest_token_passes(certify: Certify) -> None:
    # It is in the message. A longer one is refused.
    for size, code in ((LONGEST_TOKEN, "OK"), (LONGEST_TOKEN + 2, FAILED)):
        assert certify.ask(credential=padded_token(size, token)).code == code


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        ("linkerd-resets", MANY),
        ("linkerd-unknown", MANY),
        ("linkerd-bad-tokens", 300),
        ("linkerd-references", 64),
    ],
)
def test_junk_on_the_sidecars_connection_stops_nobody(
    bridge: Bridge, certify: Certify, kind: str, count: int
) -> None:
    send = attacks.ATTACKS[kind].send
    junk = b"".join(send(2 * number + 1, number) for number in range(count))
    with begin(bridge, 0) as peer:
        peer.sendall(http2.frame(http2.SETTINGS, http2.ACK) + junk)
        certify.require_healthy()
        await_true(lambda: bridge.metric("meshca_in_flight") == 0)
    # The connection is everybody's.
    assert bridge.metric("meshca_connections_closed_total") == 0
