import socket
import ssl
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509

from bridge._proto.istio_ca_pb2 import IstioCertificateRequest
from bridge.errors import BackendUnavailableError, BridgeError, ConfigError
from bridge.metrics.instruments import Metrics
from bridge.server.serving_certificate import (
    DynamicCredentials,
    FileCertificateSource,
    IssuedCertificateSource,
    ServingCertificate,
)
from bridge.x509.key_pair import KeyPair, read_key_pair
from tests.support.harness.clock import SetClock
from tests.support.harness.in_process_server import (
    SERVER_NAME,
    WAIT_SECONDS,
    ListenerCA,
    Served,
)
from tests.support.parts.pki import bundle, new_root

REQUEST = IstioCertificateRequest(csr="pem")
DAY = timedelta(hours=24)


def now() -> datetime:
    return datetime.now(UTC)


class FailingSource:
    """Issues, until a test says that it can't."""

    def __init__(self, ca: ListenerCA, clock: Callable[[], datetime]) -> None:
        self.ca = ca
        self.clock = clock
        self.error: BridgeError | None = None

    def issue(self, dns_names: Sequence[str], ttl: timedelta) -> KeyPair:
        if self.error is not None:
            raise self.error
        names = [x509.DNSName(name) for name in dns_names]
        return self.ca.issue(names, ttl, self.clock())


def serial(address: str, ca: ListenerCA, **versions: ssl.TLSVersion) -> int:
    return peer(address, ca, **versions)[0].serial_number


def peer(
    address: str, ca: ListenerCA, **versions: ssl.TLSVersion
) -> tuple[x509.Certificate, str | None, str | None]:
    context = ssl.create_default_context(cadata=ca.pem.decode())
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.set_alpn_protocols(["h2"])
    for name, version in versions.items():
        setattr(context, name, version)
    host, port = address.rsplit(":", 1)
    with (
        socket.create_connection((host, int(port)), WAIT_SECONDS) as plain,
        context.wrap_socket(plain, server_hostname=SERVER_NAME) as secured,
    ):
        der = secured.getpeercert(binary_form=True)
        assert der is not None
        return (
            x509.load_der_x509_certificate(der),
            secured.version(),
            secured.selected_alpn_protocol(),
        )


@pytest.mark.parametrize(
    ("version", "name"),
    [(ssl.TLSVersion.TLSv1_2, "TLSv1.2"), (ssl.TLSVersion.TLSv1_3, "TLSv1.3")],
)
def test_both_versions_of_tls_and_http2(
    tmp_path: Path, version: ssl.TLSVersion, name: str
) -> None:
    with Served(tmp_path) as served:
        address = served.server.istio_address
        _, spoken, protocol = peer(
            address, served.ca, minimum_version=version, maximum_version=version
        )
    assert (spoken, protocol) == (name, "h2")


def test_renewal_cuts_no_connection_and_shows_on_the_next(tmp_path: Path) -> None:
    clock = SetClock(now())
    with Served(tmp_path, clock=clock) as served:
        address = served.server.istio_address
        stub = served.stub()
        stub(REQUEST)
        first = serial(address, served.ca)
        clock.forward(hours=20)
        assert served.serving.refresh()
        stub(REQUEST)
        second = serial(address, served.ca)
        stub(REQUEST)
        assert first != second
        assert served.ca.issued == 2


def test_a_failed_renewal_keeps_the_old_certificate_and_is_shown(
    tmp_path: Path,
) -> None:
    clock, ca = SetClock(now()), ListenerCA()
    source = FailingSource(ca, clock)
    with Served(tmp_path, clock=clock, issue_serving=source.issue) as served:
        served.ca = ca
        address = served.server.istio_address
        before = serial(address, ca)
        source.error = BackendUnavailableError("the token is gone")
        clock.forward(hours=20)
        assert not served.serving.refresh()
        assert serial(address, ca) == before
        assert served.server.problems() == {}
        (warning,) = served.server.warnings().values()
        assert warning.endswith("the token is gone")
        clock.forward(hours=5)
        problem = served.server.problems()["serving certificate"]
        assert problem == "it has expired; the token is gone"
        source.error = None
        assert served.serving.refresh()
        assert served.server.problems() == served.server.warnings() == {}


def test_anchors_for_clients_are_read_at_each_new_connection(tmp_path: Path) -> None:
    first, second = ListenerCA("first"), ListenerCA("second")
    anchors = [first.pem]
    with Served(tmp_path, anchors_pem=lambda: b"".join(anchors)) as served:
        old = first.issue_client("spiffe://corp.example/ns/a/sa/a")
        new = second.issue_client("spiffe://corp.example/ns/a/sa/b")
        served.stub(old)(REQUEST)
        with pytest.raises(grpc.RpcError, match="UNAVAILABLE"):
            served.stub(new)(REQUEST)
        anchors.append(second.pem)
        served.stub(new)(REQUEST)
        served.stub(old)(REQUEST)


@pytest.mark.parametrize(
    ("share", "is_due"), [(0.0, False), (0.49, False), (0.67, True), (2.0, True)]
)
def test_renewal_is_due_between_half_and_two_thirds_of_a_life(
    share: float, *, is_due: bool
) -> None:
    ca = ListenerCA()
    source = IssuedCertificateSource(ca.issue_serving, ["a"], DAY)
    for _ in range(50):  # the point is drawn anew each time
        pair = source.fetch()
        now = pair.not_before + (pair.not_after - pair.not_before) * share
        assert source.is_due(pair, now) is is_due


def issued() -> ServingCertificate:
    source = IssuedCertificateSource(ListenerCA().issue_serving, [SERVER_NAME], DAY)
    return ServingCertificate(source, SetClock(now()), Metrics())


def test_the_end_of_the_serving_certificate_is_a_metric() -> None:
    metrics, clock = Metrics(), SetClock(now())
    serving = ServingCertificate(
        IssuedCertificateSource(ListenerCA().issue_serving, ["a"], DAY), clock, metrics
    )
    assert serving.refresh()
    assert serving.pair is not None
    leaf = x509.load_pem_x509_certificate(serving.pair.certificate_chain_pem)
    labels = {
        "issuing_ca": "",
        "tier": "serving",
        "subject": "",
        "serial": f"{leaf.serial_number:x}",
    }
    shown = metrics.registry.get_sample_value(
        "meshca_certificate_expiry_timestamp_seconds", labels
    )
    assert shown == serving.pair.not_after.timestamp()


def test_credentials_before_there_is_a_certificate_are_a_bug() -> None:
    serving = issued()
    with pytest.raises(RuntimeError, match="there is no certificate yet"):
        serving.credentials()


def expired() -> KeyPair:
    ca = ListenerCA()
    return ca.issue([x509.DNSName(SERVER_NAME)], DAY, now() - 10 * DAY)


def not_valid_yet() -> KeyPair:
    ca = ListenerCA()
    return ca.issue([x509.DNSName(SERVER_NAME)], DAY, now() + DAY)


class Files:
    """A certificate and its key, as files."""

    def __init__(self, folder: Path, ca: ListenerCA) -> None:
        self.certificate = folder / "tls.crt"
        self.key = folder / "tls.key"
        self._ca = ca
        self.write()

    def write(self) -> None:
        pair = self._ca.issue_serving([SERVER_NAME], DAY)
        self.put(pair)

    def put(self, pair: KeyPair) -> None:
        self.certificate.write_bytes(pair.certificate_chain_pem)
        self.key.write_bytes(pair.private_key_pem)
        self.key.chmod(0o600)


def of_files(files: Files, clock: SetClock | None = None) -> ServingCertificate:
    source = FileCertificateSource(files.certificate, files.key)
    return ServingCertificate(source, clock or SetClock(now()), Metrics())


def test_a_given_pair_is_served_and_read_again_when_it_changes(tmp_path: Path) -> None:
    ca = ListenerCA()
    files = Files(tmp_path, ca)
    with Served(tmp_path, tls="{certificate: tls.crt, key: tls.key}") as served:
        served.ca = ca
        address = served.server.istio_address
        first = serial(address, ca)
        served.serving.refresh()
        assert serial(address, ca) == first
        files.write()
        served.serving.refresh()
        assert serial(address, ca) != first


def _key_only(files: Files) -> None:
    files.key.write_bytes(
        ListenerCA().issue_serving([SERVER_NAME], DAY).private_key_pem
    )


def test_the_certificate_of_the_key_is_shown_first_and_no_text_around_it(
    tmp_path: Path,
) -> None:
    # The TLS library takes neither a byte order mark nor another certificate in front.
    files = Files(tmp_path, ListenerCA())
    files.write()
    leaf = x509.load_pem_x509_certificate(files.certificate.read_bytes())
    stranger = new_root().certificate
    text = b"\xef\xbb\xbfBag Attributes\n" + bundle(stranger, leaf)
    files.certificate.write_bytes(text)
    pair = read_key_pair(files.certificate, files.key)
    assert pair.certificate_chain_pem == bundle(leaf, stranger)
    assert pair.not_after == leaf.not_valid_after_utc


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        pytest.param(_key_only, "tls.key: is not the key of", id="another key"),
        pytest.param(
            lambda files: files.key.write_text("x"),
            "tls.key: expected a private key in PEM",
            id="no key",
        ),
        pytest.param(
            lambda files: files.certificate.write_text("x"),
            "tls.crt: expected one or more CERTIFICATE blocks, found none",
            id="no certificate",
        ),
        pytest.param(
            lambda files: files.key.chmod(0o644),
            "0600 or 0440 (found 0644)",
            id="a key that all can read",
        ),
        pytest.param(lambda files: files.put(expired()), "tls.crt: ended", id="ended"),
        pytest.param(
            lambda files: files.put(not_valid_yet()),
            "tls.crt: is not valid before",
            id="not valid yet",
        ),
        pytest.param(
            lambda files: files.certificate.unlink(),
            "tls.crt: cannot be read: No such file",
            id="no file",
        ),
    ],
)
def test_a_bad_pair_leaves_the_old_one_in_service(
    tmp_path: Path, spoil: Callable[[Files], object], complaint: str
) -> None:
    ca = ListenerCA()
    files = Files(tmp_path, ca)
    serving = of_files(files)
    assert serving.refresh()
    before = serving.pair
    spoil(files)
    assert not serving.refresh()
    assert serving.pair is before
    assert serving.problems() == {}
    assert complaint in serving.warnings()["serving certificate"]
    files.write()
    assert serving.refresh()
    assert serving.warnings() == {}
    assert serving.pair is not before


def test_a_renewal_may_bring_a_pair_that_is_no_worse_than_the_old(
    tmp_path: Path,
) -> None:
    clock, files = SetClock(now()), Files(tmp_path, ListenerCA())
    tls = "{certificate: tls.crt, key: tls.key}"
    with Served(tmp_path, tls=tls, clock=clock) as served:
        clock.forward(days=2)
        files.put(expired())
        assert served.serving.refresh()
        assert "it has expired" in served.server.problems()["serving certificate"]


def test_a_bad_pair_that_stays_bad_goes_on_being_shown(tmp_path: Path) -> None:
    files = Files(tmp_path, ListenerCA())
    serving = of_files(files)
    serving.refresh()
    _key_only(files)
    serving.refresh()
    serving.refresh()
    assert "is not the key" in serving.warnings()["serving certificate"]


def test_a_pair_is_taken_once_it_is_valid(tmp_path: Path) -> None:
    clock, files = SetClock(now()), Files(tmp_path, ListenerCA())
    serving = of_files(files, clock)
    assert serving.refresh()
    before = serving.pair
    files.put(not_valid_yet())
    assert not serving.refresh()
    assert serving.refresh(), "it is not asked for again meanwhile"
    assert "not valid before" in serving.warnings()["serving certificate"]
    assert serving.pair is before
    clock.forward(days=1)
    assert serving.refresh()
    assert serving.pair is not before
    assert serving.warnings() == serving.problems() == {}


def test_a_first_pair_that_is_not_valid_yet_is_a_problem(tmp_path: Path) -> None:
    clock, files = SetClock(now()), Files(tmp_path, ListenerCA())
    files.put(not_valid_yet())
    serving = of_files(files, clock)
    assert serving.refresh(), "there is nothing better"
    problem = serving.problems()["serving certificate"]
    assert problem.startswith("it is not valid before ")
    clock.forward(days=1)
    assert serving.problems() == {}


def test_grpc_builds_its_context_anew_only_after_a_change() -> None:
    ca, anchors = ListenerCA(), [b"-----BEGIN"]
    clock = SetClock(now())
    source = IssuedCertificateSource(ca.issue_serving, [SERVER_NAME], DAY)
    serving = ServingCertificate(source, clock, Metrics())
    serving.refresh()
    port = DynamicCredentials(lambda: serving.pair, lambda: anchors[-1])
    port.configuration()
    assert port.changed_configuration() is None
    anchors.append(ca.pem)
    assert port.changed_configuration() is not None
    assert port.changed_configuration() is None
    clock.forward(days=1)
    serving.refresh()
    assert port.changed_configuration() is not None


def test_no_anchors_for_clients_are_an_error() -> None:
    serving = issued()
    serving.refresh()
    with pytest.raises(ConfigError, match="no trust anchors to verify clients"):
        serving.credentials(lambda: b"\n")
