"""Each row of Linkerd's status table over the wire: code, words, and the record.

The words are linkerd-identity's to the letter, but where they are Go's own.
"""

from collections.abc import Callable

import pytest

from tests.support.clients.istio_raw import DEVELOPMENT
from tests.support.clients.linkerd_raw import (
    SUFFIX,
    Answer,
    Certify,
    new_csr,
    token,
    vector,
)
from tests.support.parts.tokens import TokenIssuer
from tests.vectors.generate_linkerd import IDENTITY, OTHER, TOO_LONG, build

pytestmark = pytest.mark.xdist_group("linkerd-status-table")

INVALID, FAILED = "INVALID_ARGUMENT", "FAILED_PRECONDITION"
NOT_DER = "csr.der: the CSR is not the DER of one PKCS#10 request"
POSSESSION = "csr.possession: the CSR's signature is not that of its key"
CURVE = "csr.curve: the CSR's EC key must be on P-256 or P-384"
NOT_ECDSA = "csr.key-type: CSR must contain an ECDSA public key, on P-256 or P-384"
DIGEST = (
    "csr.signature-algorithm: the CSR must be signed by ECDSA with SHA-256, SHA-384 or "
    "SHA-512"
)
UNREADABLE = "csr.names: the CSR cannot be read: its extensions"
ONE_NAME = "CSR must have exactly one DNSName"
UNKNOWN = "authentication token could not be authenticated"


def other_name(name: str) -> str:
    return f"CSR name does not match requested identity: csr={name}; req={IDENTITY}"


CSRS = {
    # Rows 5 and 17: what Go's parser and the issuing CA say there, ours says here.
    "bad-pem": (INVALID, NOT_DER),
    "bad-base64": (INVALID, NOT_DER),
    "bad-truncated": (INVALID, NOT_DER),
    "bad-trailing-byte": (INVALID, NOT_DER),
    "bad-two": (INVALID, NOT_DER),
    "bad-empty-sequence": (INVALID, NOT_DER),
    "bad-renamed": (INVALID, POSSESSION),
    "bad-broken-signature": (INVALID, POSSESSION),
    "bad-p521": (INVALID, CURVE),
    "bad-secp256k1": (INVALID, CURVE),
    "bad-ed25519": (INVALID, NOT_ECDSA),
    "bad-rsa": (INVALID, NOT_ECDSA),
    "bad-sha1": (INVALID, DIGEST),
    "bad-unicode-name": (
        INVALID,
        "csr.names: the CSR cannot be read: its names, which are not in ASCII",
    ),
    "bad-unreadable-name": (INVALID, UNREADABLE),
    "bad-two-extension-requests": (INVALID, f"{UNREADABLE}, which are there twice"),
    "bad-two-sans": (INVALID, UNREADABLE),
    # Row 7.
    "odd-no-san": (FAILED, ONE_NAME),
    "odd-no-extension-request": (FAILED, ONE_NAME),
    "odd-only-a-uri": (FAILED, ONE_NAME),
    "odd-two-dns-names": (FAILED, ONE_NAME),
    "odd-the-same-name-twice": (FAILED, ONE_NAME),
    # Row 8.
    "odd-other-name-only": (FAILED, other_name(OTHER)),
    "odd-upper-case": (FAILED, other_name(IDENTITY.upper())),
    "odd-trailing-dot": (FAILED, other_name(f"{IDENTITY}.")),
    "odd-punycode": (FAILED, other_name(IDENTITY.replace("web", "xn--wb-bja"))),
    "odd-wildcard": (FAILED, other_name(IDENTITY.replace("web", "*"))),
    "odd-nul": (FAILED, other_name(f"{IDENTITY}\0")),
    "odd-254-characters": (FAILED, other_name(TOO_LONG)),
    "odd-label-of-64": (FAILED, other_name(f"{'a' * 64}.{IDENTITY}")),
    # Row 9.
    "odd-other-common-name": (FAILED, f"invalid CommonName: {OTHER}"),
    "odd-second-common-name": (FAILED, f"invalid CommonName: {OTHER}"),
    "odd-bmp-common-name": (FAILED, "invalid CommonName: ab"),
    # Rows 10 to 12.
    "odd-email": (FAILED, "cannot validate email addresses"),
    "odd-ip": (FAILED, "cannot validate IP addresses"),
    "odd-uri": (FAILED, "cannot validate URIs"),
}


def require_refused(
    certify: Certify, answer: Answer, code: str, text: str, caller: str = ""
) -> None:
    assert (answer.code, answer.text) == (code, text)
    row = certify.new_outcome()
    assert (row["kind"], row["status"]) == ("refused", code)
    assert (row["front"], row["caller"]) == ("linkerd", caller)
    assert row["attempt"] == row["serial"] == ""  # nothing was about to be signed
    # What the peer is not told is on record: which rule it was.
    assert row["rule"].startswith(text.partition(": ")[0]) or row["rule"].startswith(
        ("linkerd.", "token.")
    )


@pytest.mark.parametrize(
    ("part", "row"),
    [
        pytest.param("identity", "missing identity", id="2"),
        pytest.param("token", "missing token", id="3"),
        pytest.param("csr", "missing certificate signing request", id="4"),
    ],
)
def test_a_request_that_lacks_a_part(certify: Certify, part: str, row: str) -> None:
    lacking: dict[str, Callable[[], Answer]] = {
        "identity": lambda: certify.ask(identity=""),
        "token": lambda: certify.ask(credential=""),
        "csr": lambda: certify.ask(csr=b""),
    }
    require_refused(certify, lacking[part](), INVALID, row)


def test_what_is_missing_is_reported_in_order(certify: Certify) -> None:
    nothing = certify.send(b"")
    require_refused(certify, nothing, INVALID, "missing identity")
    only_identity = certify.ask(credential="", csr=b"")
    require_refused(certify, only_identity, INVALID, "missing token")


@pytest.mark.parametrize("name", CSRS)
def test_a_csr_that_is_refused(certify: Certify, name: str) -> None:
    # The token is looked at later: a bad one changes nothing here.
    answer = certify.ask(csr=vector(name), credential="no token at all")
    require_refused(certify, answer, *CSRS[name])


def test_the_name_that_is_too_long_is_so_by_one_character() -> None:
    assert len(TOO_LONG) == 254
    assert max(map(len, TOO_LONG.split("."))) < 64


def test_every_hostile_csr_of_the_corpus_is_in_the_table() -> None:
    corpus = {name.removesuffix(".der") for name in build()}
    assert {name for name in corpus if not name.startswith("good-")} == set(CSRS)


def with_subject(subject: str) -> str:
    return token(claims={"sub": subject})


IMPOSTOR = TokenIssuer(algorithm="RS256")


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        pytest.param(lambda: "no token", "token.format", id="no token"),
        pytest.param(lambda: b"\xff\xfe", "token.format", id="no ASCII"),
        pytest.param(
            lambda: f"{token()}\n\n", "token.format", id="two newlines behind"
        ),
        pytest.param(
            lambda: token(issuer=IMPOSTOR), "token.key", id="another's signature"
        ),
        pytest.param(
            lambda: token(audiences=["istio-ca"]), "token.audience", id="Istio's"
        ),
        pytest.param(
            lambda: token(audiences=["https://kubernetes.default.svc"]),
            "token.audience",
            id="the API server's",
        ),
        pytest.param(lambda: token(audiences=[]), "token.audience", id="no audience"),
        pytest.param(lambda: token(lifetime=-60), "token.expired", id="expired"),
        pytest.param(
            lambda: token("sandbox", issuer=DEVELOPMENT),
            "token.key",
            id="of another cluster",
        ),
    ],
)
def test_row_13_a_token_that_is_not_good(
    certify: Certify, make: Callable[[], str | bytes], rule: str
) -> None:
    answer = certify.ask(credential=make())
    assert (answer.code, answer.text) == (FAILED, UNKNOWN)
    row = certify.new_outcome()
    assert (row["kind"], row["status"]) == ("refused", FAILED)
    assert (row["rule"], row["caller"]) == (rule, "")


FORM = "Username must be in form system:TYPE:NS:SA: "


@pytest.mark.parametrize(
    ("subject", "text"),
    [
        ("web", f"{FORM}web"),
        ("system:node:node-1", f"{FORM}system:node:node-1"),
        ("system:serviceaccount:shop", f"{FORM}system:serviceaccount:shop"),
        ("system:serviceaccount:shop:web:x", f"{FORM}system:serviceaccount:shop:web:x"),
        ("systemd:serviceaccount:a:b", f"{FORM}systemd:serviceaccount:a:b"),
        # A name of another type is no service account's, though it has the form.
        ("system:user:shop:web", f"{FORM}system:user:shop:web"),
        ("system:User:Shop:web", "Not a label: User"),
        ("system:serviceaccount:Shop:web", "Not a label: Shop"),
        ("system:serviceaccount:shop:", "Not a label: "),
        ("system:serviceaccount::web", "Not a label: "),
        (f"system:serviceaccount:{'a' * 64}:b", f"Not a label: {'a' * 64}"),
    ],
)
def test_row_14_a_token_that_speaks_for_nobody(
    certify: Certify, subject: str, text: str
) -> None:
    answer = certify.ask(credential=with_subject(subject))
    assert (answer.code, answer.text) == (INVALID, text)
    row = certify.new_outcome()
    assert (row["kind"], row["status"], row["caller"]) == ("refused", INVALID, "")
    assert row["rule"] in {"linkerd.subject", "linkerd.label"}


@pytest.mark.parametrize("account", ["web.v2", "a" * 64])
def test_row_14_a_service_account_that_has_no_identity(
    certify: Certify, account: str
) -> None:
    answer = certify.ask(credential=token(account=account))
    assert (answer.code, answer.text) == (INVALID, f"Not a label: {account}")
    row = certify.new_outcome()
    assert (row["rule"], row["status"]) == ("linkerd.label", INVALID)
    assert row["caller"] == f"spiffe://corp.example/ns/shop/sa/{account}"


@pytest.mark.parametrize(
    "identity",
    [
        pytest.param(OTHER, id="another workload"),
        pytest.param(IDENTITY.replace("shop", "default"), id="another namespace"),
        pytest.param(IDENTITY.replace("corp.", "other."), id="another trust domain"),
        pytest.param(
            IDENTITY.replace(".linkerd.", ".l5d."), id="another control namespace"
        ),
        pytest.param(IDENTITY.replace("serviceaccount", "user"), id="another type"),
        pytest.param(IDENTITY.upper(), id="upper case"),
        pytest.param(f"{IDENTITY}.", id="trailing dot"),
        pytest.param(IDENTITY.replace("web", "xn--wb-bja"), id="punycode"),
        pytest.param(IDENTITY.replace("web", "*"), id="wildcard"),
        pytest.param(TOO_LONG, id="254 characters"),
        pytest.param(f"{'a' * 64}{SUFFIX}", id="label of 64"),
        pytest.param(f"v2.{IDENTITY}", id="a service account with a dot"),
        pytest.param(".", id="nothing but a dot"),
    ],
)
def test_row_16_an_identity_that_is_not_the_tokens(
    certify: Certify, identity: str
) -> None:
    # The CSR agrees with the request, so that only the token stands against it.
    answer = certify.ask(identity=identity, csr=new_csr(identity), discreet=False)
    assert answer.code == FAILED
    assert answer.text == (
        "requested identity did not match provided token: "
        f"requested={identity}; found={IDENTITY}"
    )
    row = certify.new_outcome()
    assert (row["kind"], row["rule"]) == ("refused", "linkerd.identity-mismatch")
    assert row["caller"] == "spiffe://corp.example/ns/shop/sa/web"


def test_a_namespace_that_the_cluster_may_not_have(certify: Certify) -> None:
    identity = f"web.secret{SUFFIX}"
    answer = certify.ask(
        identity=identity, csr=new_csr(identity), credential=token("secret")
    )
    assert answer.code == FAILED
    assert answer.text == (
        "cluster.namespace: the caller's cluster may not have names of this namespace"
    )
    row = certify.new_outcome()
    assert (row["rule"], row["status"]) == ("cluster.namespace", FAILED)
