import pytest

from bridge.dns_names import is_address, is_host, is_label, is_subdomain


@pytest.mark.parametrize(
    ("text", "label", "subdomain", "host"),
    [
        ("shop", True, True, True),
        ("a-b", True, True, True),
        ("a.b", False, True, True),
        ("a" * 63, True, True, True),
        ("a" * 64, False, True, False),  # Kubernetes bounds no label of a subdomain
        ("a." * 126 + "b", False, True, True),  # 253 characters
        ("a." * 126 + "bc", False, False, False),  # 254
        ("", False, False, False),
        ("-a", False, False, False),
        ("a-", False, False, False),
        ("a_b", False, False, False),
        ("Shop", False, False, False),
        ("shop\n", False, False, False),
        ("a.", False, False, False),
        (".a", False, False, False),
        ("a..b", False, False, False),
        ("\u00e4", False, False, False),
        ("10.0.0.1", False, True, False),  # may be an IP address
        ("1", True, True, False),
    ],
)
def test_a_text_is_a_label_a_subdomain_or_a_host(
    text: str, *, label: bool, subdomain: bool, host: bool
) -> None:
    assert (is_label(text), is_subdomain(text), is_host(text)) == (
        label,
        subdomain,
        host,
    )


@pytest.mark.parametrize(
    ("value", "is_one"),
    [
        ("0.0.0.0:15012", True),
        ("[::1]:443", True),
        ("unix:0", True),
        ("localhost:65535", True),
        ("localhost:65536", False),
        ("localhost:", False),
        (":443", False),
        ("::1:443", False),
        ("localhost:٣", False),
        (15012, False),
    ],
)
def test_an_address_has_a_host_and_a_port(value: object, *, is_one: bool) -> None:
    assert is_address(value) is is_one
