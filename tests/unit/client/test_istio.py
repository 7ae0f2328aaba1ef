import pytest
from cryptography import x509

from bridge.client.istio import IstioRequest, _advice
from tests.support.parts.pki import bundle, new_root

ROOTS = bundle(new_root().certificate)
URI = x509.UniformResourceIdentifier("spiffe://corp.example/ns/shop/sa/web")


@pytest.mark.parametrize(
    ("details", "says"),
    [
        ("Socket closed", ": this port may want a client certificate (--certificate)"),
        (
            "Hostname Verification Check failed",
            ": the certificate is not for h; give --server-name",
        ),
        (
            "SSL_ERROR_SSL: CERTIFICATE_VERIFY_FAILED: self signed",
            ": the bridge's certificate does not chain to --roots r.pem",
        ),
        (
            "Failed to create security handshaker.",
            ": --key-file is not the key of --certificate, or one is damaged",
        ),
        ("[field:hostname lookup error: Domain name not found]", ""),
        ("a token is needed", ""),
    ],
)
def test_a_failed_handshake_says_what_to_do(details: str, says: str) -> None:
    wanted = IstioRequest(address="h:1", roots=ROOTS, roots_name="r.pem")
    assert _advice(details, wanted) == says
