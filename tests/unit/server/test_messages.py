import pytest
from google.protobuf.struct_pb2 import Struct
from hypothesis import given
from hypothesis import strategies as st

from bridge._proto.istio_ca_pb2 import IstioCertificateRequest, IstioCertificateResponse
from bridge.errors import RequestError
from bridge.server.messages import (
    CertificateRequest,
    read_request,
    write_response,
)


def message(metadata: dict[str, object] | None = None, csr: str = "pem") -> bytes:
    request = IstioCertificateRequest(csr=csr, validity_duration=3600)
    if metadata is not None:
        request.metadata.CopyFrom(Struct())
        request.metadata.update(metadata)  # type: ignore[arg-type]
    return request.SerializeToString()


@pytest.mark.parametrize(
    ("metadata", "cert_signer", "impersonated"),
    [
        pytest.param(None, "", None, id="no metadata at all"),
        pytest.param({}, "", None, id="an empty mapping"),
        pytest.param({"CertSigner": ""}, "", None, id="what istio-agent sends"),
        pytest.param({"CertSigner": "x"}, "x", None, id="a signer"),
        pytest.param(
            {"ImpersonatedIdentity": "spiffe://a/ns/b/sa/c"},
            "",
            "spiffe://a/ns/b/sa/c",
            id="what ztunnel sends",
        ),
        pytest.param({"ImpersonatedIdentity": ""}, "", "", id="empty is not absent"),
        pytest.param({"WorkloadName": 7.0}, "", None, id="other keys are not read"),
    ],
)
def test_a_request_is_translated(
    metadata: dict[str, object] | None, cert_signer: str, impersonated: str | None
) -> None:
    expected = CertificateRequest("pem", 3600, cert_signer, impersonated)
    assert read_request(message(metadata)) == expected


@pytest.mark.parametrize("key", ["CertSigner", "ImpersonatedIdentity"])
@pytest.mark.parametrize("value", [7.0, None, True, ["x"], {"x": "y"}], ids=str)
def test_a_value_that_is_no_string_is_refused(key: str, value: object) -> None:
    with pytest.raises(RequestError, match=f"^metadata.{key} is a string$") as caught:
        read_request(message({key: value}))
    assert caught.value.rule == "request.metadata"


@given(st.binary(max_size=400))
def test_no_bytes_do_anything_but_read_or_be_refused(data: bytes) -> None:
    try:
        assert isinstance(read_request(data), CertificateRequest)
    except RequestError as error:
        assert error.rule.startswith("request.")  # noqa: PT017 - both ways are right


def test_a_response_reads_as_leaf_intermediates_anchors() -> None:
    read = IstioCertificateResponse.FromString(write_response("l\n", ("i\n",), "a\n"))
    assert [*read.cert_chain] == ["l\n", "i\n", "a\n"]


@pytest.mark.parametrize(
    ("leaf", "chain", "anchors"),
    [
        pytest.param("leaf", (), "root\n", id="a leaf without its newline"),
        pytest.param("leaf\n", ("a",), "root\n", id="an intermediate without it"),
        pytest.param("leaf\n", (), "root", id="anchors without it"),
        pytest.param("leaf\n", (), "", id="no anchors"),
        pytest.param("", (), "root\n", id="no leaf"),
    ],
)
def test_what_clients_would_misread_is_not_written(
    leaf: str, chain: tuple[str, ...], anchors: str
) -> None:
    with pytest.raises(ValueError, match="ends in a newline"):
        write_response(leaf, chain, anchors)
