"""What a failed call means: one error of the contract, and whether one may exist.

The texts are those of a real OpenBao 2.7.2, and one is of Vault 1.21.4 alone.
"""

import pytest

from bridge.spi import (
    BackendBrokenError,
    BackendError,
    BackendRefusedError,
    BackendThrottledError,
    BackendTimeoutError,
    BackendUnavailableError,
)
from bridge_vault.answers import error_of
from bridge_vault.connection import NoAnswerError, VaultError

_ID = "268acebf-f372-4508-5396-04586f3cbf4f"
_NO_CA = "1 error occurred: * could not fetch the CA certificate (was one set?): "
_USAGE = (
    "1 error occurred: * error fetching CA certificate: error while attempting to use "
    f"issuer {_ID}: requested usage issuing-certificates for issuer [id:{_ID}] but "
    "only had usage "
)
_NOT_PERMITTED = (
    "1 error occurred: * x509: a root or intermediate certificate is not authorized to "
    'sign for this name: DNS name "x.example" is not permitted by any constraint'
)
_VERSION = "1 error occurred: * requested version for signing is "
BROKEN, AWAY, REFUSED = (
    BackendBrokenError,
    BackendUnavailableError,
    BackendRefusedError,
)


@pytest.mark.parametrize(
    ("status", "text", "kind", "may_exist"),
    [
        pytest.param(400, "csr contains no data", REFUSED, False, id="CSR"),
        pytest.param(
            400,
            "subject alternate name x not allowed by this role",
            REFUSED,
            False,
            id="a name that the role refuses",
        ),
        pytest.param(400, "unknown role: mesh", BROKEN, False, id="role"),
        pytest.param(400, "signing key not found", BROKEN, False, id="key"),
        pytest.param(
            400,
            "key type aes256-gcm96 does not support signing",
            BROKEN,
            False,
            id="a key that does not sign",
        ),
        pytest.param(401, "", BROKEN, False, id="401"),
        pytest.param(403, "permission denied", BROKEN, False, id="policy"),
        pytest.param(404, "namespace not found", BROKEN, False, id="namespace"),
        pytest.param(404, 'no handler for route "x".', BROKEN, False, id="mount"),
        pytest.param(405, "unsupported operation", BROKEN, False, id="operation"),
        pytest.param(413, "", BROKEN, False, id="a request that is too large"),
        pytest.param(412, "required index state not present", AWAY, False, id="412"),
        pytest.param(472, "", AWAY, False, id="a secondary for disasters"),
        pytest.param(473, "", AWAY, False, id="a performance standby"),
        pytest.param(474, "", AWAY, False, id="a standby that is cut off"),
        pytest.param(501, "", AWAY, False, id="not initialised"),
        pytest.param(503, "Vault is sealed", AWAY, False, id="sealed"),
        pytest.param(530, "", AWAY, False, id="removed from the cluster"),
        pytest.param(
            500,
            f"{_NO_CA}unable to find PKI issuer for reference: {_ID}",
            BROKEN,
            False,
            id="issuer",
        ),
        pytest.param(
            500,
            f"{_NO_CA}unable to fetch corresponding key for issuer {_ID}; unable "
            "to use this issuer for signing",
            BROKEN,
            False,
            id="issuer without a key",
        ),
        pytest.param(500, f"{_USAGE}read-only", BROKEN, False, id="usage"),
        pytest.param(
            500,
            f"{_VERSION}higher than the latest key version",
            BROKEN,
            False,
            id="version",
        ),
        pytest.param(
            500,
            f"{_VERSION}less than the minimum encryption key version",
            BROKEN,
            False,
            id="min_encryption_version",
        ),
        pytest.param(500, "no such key version", BROKEN, False, id="archived version"),
        pytest.param(
            500,
            _NOT_PERMITTED,
            REFUSED,
            False,
            id="a name that the chain does not permit",
        ),
        pytest.param(500, f"{_NO_CA}context canceled", AWAY, True, id="storage"),
        pytest.param(500, "internal error", AWAY, True, id="audit after issuing"),
        pytest.param(502, "", AWAY, True, id="502"),
        pytest.param(504, "", AWAY, True, id="504"),
        pytest.param(418, "", BROKEN, False, id="a status that Vault does not have"),
    ],
)
def test_vaults_answers(
    status: int, text: str, kind: type[BackendError], *, may_exist: bool
) -> None:
    error = VaultError(text, status=status, errors=[text], request_id="the-id")
    found = error_of(error, signs=True)
    assert type(found) is kind
    assert found.certificate_may_exist is may_exist
    assert found.detail == f"{text} (request the-id)"
    assert error_of(error, signs=False).certificate_may_exist is False


@pytest.mark.parametrize(
    ("status", "kind", "may_exist"),
    [
        pytest.param(200, BROKEN, True, id="HTML with 200"),
        pytest.param(307, BROKEN, False, id="a redirect"),
        pytest.param(400, BROKEN, False, id="HTTP on a port with TLS"),
        pytest.param(403, BROKEN, False, id="a firewall"),
        pytest.param(404, BROKEN, False, id="another server"),
        pytest.param(408, AWAY, True, id="408"),
        pytest.param(500, AWAY, True, id="500"),
        pytest.param(502, AWAY, True, id="502"),
        pytest.param(503, AWAY, True, id="the node may have served it"),
        pytest.param(504, AWAY, True, id="504"),
    ],
)
def test_a_proxys_answers(
    status: int, kind: type[BackendError], *, may_exist: bool
) -> None:
    error = VaultError("text", status=0, http_status=status)
    found = error_of(error, signs=True)
    assert type(found) is kind
    assert found.certificate_may_exist is may_exist
    assert error_of(error, signs=False).certificate_may_exist is False


@pytest.mark.parametrize("status", [429, 0])
@pytest.mark.parametrize("pause", [0.0, 7.0])
def test_429_is_throttled_with_or_without_a_pause(status: int, pause: float) -> None:
    error = VaultError("x", status=status, http_status=429, retry_after=pause)
    found = error_of(error, signs=True)
    assert isinstance(found, BackendThrottledError)
    assert found.retry_after_seconds == pause
    assert found.certificate_may_exist is False


@pytest.mark.parametrize(
    ("is_sent", "is_late", "kind"),
    [
        pytest.param(False, False, AWAY, id="not reached"),
        pytest.param(False, True, AWAY, id="not reached in time"),
        pytest.param(True, False, AWAY, id="cut"),
        pytest.param(True, True, BackendTimeoutError, id="late"),
    ],
)
def test_without_an_answer_only_what_was_not_sent_is_not_signed(
    *, is_sent: bool, is_late: bool, kind: type[BackendError]
) -> None:
    error = NoAnswerError("text", is_sent=is_sent, is_late=is_late)
    found = error_of(error, signs=True)
    assert type(found) is kind
    assert found.certificate_may_exist is is_sent
    assert error_of(error, signs=False).certificate_may_exist is False
