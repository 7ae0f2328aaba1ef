import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import pytest
from cryptography import x509

from bridge.client.istio import IstioReply, IstioRequest, _advice, ask, renew
from bridge.client.linkerd import LinkerdRequest, certify
from bridge.errors import BackendRefusedError
from tests.support.parts import netports
from tests.support.parts.pki import bundle, key_pem, new_key, new_root

ROOTS = bundle(new_root().certificate)


@pytest.mark.parametrize(
    ("details", "says"),
    [
        (
            "ipv4:127.0.0.1:1: Socket closed",
            "this port may want a client certificate (--certificate): ",
        ),
        (
            "Hostname Verification Check failed",
            "the certificate is not for h; give --server-name: ",
        ),
        (
            "SSL_ERROR_SSL: CERTIFICATE_VERIFY_FAILED: self signed",
            "the bridge's certificate does not chain to --roots r.pem: ",
        ),
        ("Failed to create security handshaker.", "--roots r.pem cannot be used: "),
        ("[field:hostname lookup error: Domain name not found]", ""),
        ("a token is needed", ""),
    ],
)
def test_a_failed_handshake_says_what_to_do(details: str, says: str) -> None:
    wanted = IstioRequest(address="h:1", roots=ROOTS, roots_name="r.pem")
    assert _advice(details, wanted) == says


@pytest.mark.parametrize(
    ("details", "says"),
    [
        ("Socket closed", "--certificate may be expired"),
        ("Failed to create security handshaker.", "--key-file is not the key of"),
    ],
)
def test_the_options_of_the_certificate_are_blamed_if_they_were_given(
    details: str, says: str
) -> None:
    wanted = IstioRequest(
        address="h:1", roots=ROOTS, certificate=b"", certificate_key=b""
    )
    assert says in _advice(details, wanted)


@contextmanager
def listening(kind: str) -> Iterator[str]:
    """Have a server of another kind listen, and yield its address."""
    if kind == "nothing":
        yield f"127.0.0.1:{netports.reserve()}"
    elif kind == "HTTP":
        http = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
        thread = threading.Thread(target=http.serve_forever, args=(0.02,))
        thread.start()
        yield f"127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()
        http.server_close()
    else:
        server = grpc.server(ThreadPoolExecutor(1))
        if kind == "TLS":
            key = new_key()
            leaf = new_root().issue_leaf(x509.DNSName("other.example"), key=key)
            pair = (key_pem(key), bundle(leaf))
            port = server.add_secure_port(
                "127.0.0.1:0", grpc.ssl_server_credentials([pair])
            )
        else:
            port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}"
        server.stop(None).wait()


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("gRPC", "this port does not speak TLS: it may be Linkerd's"),
        ("HTTP", "this port does not speak TLS"),
        ("TLS", "the bridge's certificate does not chain to --roots r.pem"),
        ("nothing", "nothing listens there"),
    ],
)
def test_a_wrong_port_is_told_from_a_wrong_root(kind: str, says: str) -> None:
    with listening(kind) as address:
        wanted = IstioRequest(address=address, roots=ROOTS, roots_name="r.pem")
        with pytest.raises(BackendRefusedError, match=f"UNAVAILABLE: {says}"):
            ask(wanted)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("gRPC", "UNIMPLEMENTED: this is no CA of Linkerd"),
        ("HTTP", "UNAVAILABLE: this port does not speak HTTP/2"),
        ("TLS", "UNAVAILABLE: this port may want TLS, as Istio's does"),
        ("nothing", "UNAVAILABLE: nothing listens there"),
    ],
)
def test_linkerds_client_tells_a_wrong_port(kind: str, says: str) -> None:
    with listening(kind) as address:
        wanted = LinkerdRequest(
            address=address, anchors=(), identity="a.b.identity.c", token=b"t"
        )
        with pytest.raises(BackendRefusedError, match=says):
            certify(wanted)


@pytest.mark.parametrize(
    ("rule", "asked"),
    [
        pytest.param("renewal.settling", 2, id="not in the archive yet"),
        pytest.param("renewal.lookup", 2, id="the archive does not answer"),
        pytest.param("renewal.unknown", 1, id="in no ledger"),
        pytest.param("renewal.age", 1, id="no token for too long"),
    ],
)
def test_a_renewal_is_asked_again_while_the_ledger_is_behind(
    rule: str, asked: int
) -> None:
    answers: list[IstioReply | BackendRefusedError] = [
        BackendRefusedError(f"UNAVAILABLE: {rule}: try again"),
        IstioReply((), b""),
    ]
    calls = 0

    def once(_: IstioRequest) -> IstioReply:
        nonlocal calls
        calls += 1
        answer = answers[calls - 1]
        if isinstance(answer, BackendRefusedError):
            raise answer
        return answer

    wanted = IstioRequest(address="127.0.0.1:1", roots=b"")
    if asked == 1:
        with pytest.raises(BackendRefusedError, match=rule):
            renew(wanted, once)
    else:
        assert renew(wanted, once) == answers[1]
    assert calls == asked


def test_a_renewal_is_not_asked_for_ever() -> None:
    def never(_: IstioRequest) -> IstioReply:
        raise BackendRefusedError("UNAVAILABLE: renewal.settling: try again")

    wanted = IstioRequest(address="127.0.0.1:1", roots=b"")
    with pytest.raises(BackendRefusedError, match=r"renewal\.settling"):
        renew(wanted, never, seconds=0)
