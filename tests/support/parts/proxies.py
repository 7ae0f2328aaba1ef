"""What linkerd2-proxy does with an answer, done by the TLS library that it is made of.

Two verifiers, both of rustls. `RustVerifier` is a program of our own with the proxy's
versions and its list of algorithms, for where cargo is found. `RtlsVerifier` is `rtls`,
a Python package of the same rustls with rustls' default list, and works everywhere.
"""

import ssl
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

import rtls
from cryptography import x509

from tests.support.clients.handshake import End, RefusedError, shake_hands, turns
from tests.support.clients.linkerd_go import Answer
from tests.support.parts import builds

_CRATE = Path(__file__).resolve().parents[2] / "interop/linkerd_verifier"
_SECONDS = 60.0
_WORD = b"word"


@dataclass(frozen=True, slots=True)
class Proxy:
    """What a proxy holds, as PEM."""

    roots: bytes
    """From its environment; not from the answer."""
    chain: bytes
    """The answer: leaf, then intermediates."""
    key: bytes
    """Of its CSR."""

    @classmethod
    def of(cls, answer: Answer, roots: bytes) -> "Proxy":
        """Take over an answer of the client."""
        return cls(roots, answer.chain_pem, answer.key.encode())


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a handshake."""

    client: str = ""
    """Why the client refused the server; empty if it did not."""
    server: str = ""
    """Why the server refused the client."""
    peer: str = ""
    """Who the client is for the server: the first name of its leaf."""
    version: str = ""
    """`TLSv1.3`."""

    @property
    def refusal(self) -> str:
        """Who refused, and why; empty if nobody did."""
        if self.client:
            return f"client: {self.client}"
        return f"server: {self.server}" if self.server else ""


class Verifier(Protocol):
    """Does the work of a proxy."""

    def refusal(self, proxy: Proxy, name: str) -> str:
        """Say why a proxy of this name would not take its answer; empty if it would."""

    def handshake(self, server: Proxy, client: Proxy, name: str) -> Outcome:
        """Let `client` talk to `server`, in whose certificate it wants `name`."""


class RustVerifier:
    """See `tests/interop/linkerd_verifier`."""

    def refusal(self, proxy: Proxy, name: str) -> str:
        with _files(proxy) as files:
            return _run("answer", *files, name).get("refused", "")

    def handshake(self, server: Proxy, client: Proxy, name: str) -> Outcome:
        with _files(server) as serving, _files(client) as asking:
            found = _run("handshake", *serving, *asking, name)
        version = found.pop("version", "").replace("TLSv1_3", "TLSv1.3")
        return Outcome(**found, version=version)


class RtlsVerifier:
    """rustls is the client: its server side asks nobody for a certificate.

    So OpenSSL is the server that wants one, and two proxies are proven when each has
    been the server of the other.
    """

    def refusal(self, proxy: Proxy, name: str) -> str:
        # A server that shows the answer, and a client that looks for the name in it.
        try:
            outcome = _talk(_rtls_server(proxy), _rtls_client(proxy, None), name)
        except rtls.SSLError as error:
            return f"key: {error.args[0]}"
        return outcome.client and f"path or name: {outcome.client}"

    def handshake(self, server: Proxy, client: Proxy, name: str) -> Outcome:
        first = _talk(_openssl_server(server), _rtls_client(client, client), name)
        if first.refusal:
            return first
        # The other way round rustls looks at the client's leaf; any name will do.
        own = x509.load_pem_x509_certificate(client.chain)
        names = own.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        (dns, *_) = names.value.get_values_for_type(x509.DNSName)
        back = _talk(_openssl_server(client), _rtls_client(server, server), dns)
        return Outcome(server=back.client) if back.client else first


@cache
def verifiers() -> dict[str, Verifier]:
    """Return the verifiers that can be had here, by name."""
    found: dict[str, Verifier] = {"rtls": RtlsVerifier()}
    if builds.cargo() is not None:
        found["rust"] = RustVerifier()
    return found


def _run(verb: str, *arguments: str | Path) -> dict[str, str]:
    done = subprocess.run(
        [builds.build_crate(_CRATE), verb, *arguments],
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the verifier failed: {done.stderr[-4000:]}")
    pairs = (line.partition(" ") for line in done.stdout.splitlines())
    return {key: value for key, _, value in pairs}


@contextmanager
def _files(proxy: Proxy) -> Iterator[tuple[Path, Path, Path]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = (folder / "roots.pem", folder / "chain.pem", folder / "key.pem")
        for file, content in zip(
            files, (proxy.roots, proxy.chain, proxy.key), strict=True
        ):
            file.write_bytes(content)
        yield files


def _rtls_client(proxy: Proxy, shown: Proxy | None) -> Callable[[str], End]:
    context = rtls.SSLContext(rtls.PROTOCOL_TLS_CLIENT)
    context.minimum_version = rtls.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=proxy.roots.decode())
    if shown is not None:
        context.load_cert_chain(shown.chain, shown.key)

    return lambda name: End.of(rtls, context, server_hostname=name)


def _rtls_server(proxy: Proxy) -> End:
    context = rtls.SSLContext(rtls.PROTOCOL_TLS_SERVER)
    context.minimum_version = rtls.TLSVersion.TLSv1_3
    context.load_cert_chain(proxy.chain, proxy.key)
    return End.of(rtls, context, server_side=True)


def _openssl_server(proxy: Proxy) -> End:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=proxy.roots.decode())
    with _files(proxy) as (_, chain, key):
        context.load_cert_chain(chain, key)
    return End.of(ssl, context, server_side=True)


def _talk(server: End, make_client: Callable[[str], End], name: str) -> Outcome:
    client = make_client(name)
    try:
        shake_hands(client, server)
    except RefusedError as error:
        return _refused(error.reason, by_client=error.end is client)
    for end, other in turns(client, server):
        end.tls.write(_WORD)
        other.incoming.write(end.outgoing.read())
        if other.tls.read(len(_WORD)) != _WORD:
            raise RuntimeError("another word was heard")
    shown = server.tls.getpeercert() or {}
    ((_, peer), *_) = shown.get("subjectAltName", (("", ""),))
    return Outcome(peer=peer, version=client.tls.version())


def _refused(error: Exception, *, by_client: bool) -> Outcome:
    text = " ".join(map(str, error.args))  # rtls puts a tuple of one there
    return Outcome(client=text) if by_client else Outcome(server=text)
