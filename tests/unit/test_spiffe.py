import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.errors import RequestError
from bridge.spiffe import SpiffeID, TrustDomain

IPV4 = re.compile(r"\d+(\.\d+){3}")
LABEL_CHARACTERS = string.ascii_lowercase + string.digits + "_-"
PATH_CHARACTERS = string.ascii_letters + string.digits + "._-"
trust_domains = (
    st.lists(st.text(LABEL_CHARACTERS, min_size=1, max_size=40), min_size=1, max_size=6)
    .map(".".join)
    .filter(lambda name: not IPV4.fullmatch(name))
    .map(TrustDomain)
)
segments = st.text(PATH_CHARACTERS, min_size=1, max_size=40).filter(
    lambda part: part not in {".", ".."}
)
ids = st.builds(
    SpiffeID, trust_domains, st.lists(segments, min_size=1, max_size=8).map(tuple)
)

# As long as an ID may be, and one more.
LONG_DOMAIN = ".".join(["d" * 63] * 3 + ["d" * 61])
LONGEST = "spiffe://corp.example/" + "a" * (2048 - len("spiffe://corp.example/"))


@pytest.mark.parametrize(
    ("text", "trust_domain", "path"),
    [
        ("spiffe://corp.example/ns/shop/sa/web", "corp.example", "ns/shop/sa/web"),
        ("spiffe://1.2.3/a", "1.2.3", "a"),
        ("spiffe://1.2.3.4.x/a", "1.2.3.4.x", "a"),
        ("spiffe://a_b-c/x", "a_b-c", "x"),
        ("spiffe://corp.example/A.b-C_9", "corp.example", "A.b-C_9"),
        ("spiffe://corp.example/...", "corp.example", "..."),
        ("spiffe://" + "d" * 63 + "/x", "d" * 63, "x"),
        (f"spiffe://{LONG_DOMAIN}/x", LONG_DOMAIN, "x"),
        (LONGEST, "corp.example", LONGEST.removeprefix("spiffe://corp.example/")),
    ],
)
def test_an_id_is_read(text: str, trust_domain: str, path: str) -> None:
    found = SpiffeID.parse(text)
    assert found.trust_domain == TrustDomain(trust_domain)
    assert "/".join(found.segments) == path
    assert str(found) == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "starts with spiffe://"),
        ("corp.example/a", "starts with spiffe://"),
        ("https://corp.example/a", "starts with spiffe://"),
        ("SPIFFE://corp.example/a", "starts with spiffe://"),
        (" spiffe://corp.example/a", "starts with spiffe://"),
        ("spiffe:/corp.example/a", "starts with spiffe://"),
        ("spiffe://corp.example", "has a path"),
        ("spiffe:///a", "a trust domain has"),
        ("spiffe://Corp.example/a", "a trust domain has"),
        ("spiffe://corp.example:443/a", "a trust domain has"),
        ("spiffe://user@corp.example/a", "a trust domain has"),
        ("spiffe://corp%2eexample/a", "a trust domain has"),
        ("spiffe://" + "d" * 64 + "/x", "at most 63 characters without a dot"),
        ("spiffe://a." + "d" * 64 + ".b/x", "at most 63 characters without a dot"),
        (f"spiffe://{LONG_DOMAIN}d/x", "a trust domain has 1 to 253 of"),
        ("spiffe://1.2.3.4/a", "is no IP address"),
        ("spiffe://999.2.3.4/a", "is no IP address"),
        ("spiffe://corp.example\n/a", "a trust domain has"),
        ("spiffe://cörp.example/a", "a trust domain has"),
        ("spiffe://corp.example./a", "no dot at an end"),
        ("spiffe://.corp.example/a", "no dot at an end"),
        ("spiffe://corp..example/a", "no dot at an end or beside another"),
        ("spiffe://./a", "no dot at an end"),
        ("spiffe://corp.example/", "path has parts"),
        ("spiffe://corp.example//a", "path has parts"),
        ("spiffe://corp.example/a/", "path has parts"),
        ("spiffe://corp.example/./a", "path has parts"),
        ("spiffe://corp.example/a/../b", "path has parts"),
        ("spiffe://corp.example/a?b", "path has parts"),
        ("spiffe://corp.example/a#b", "path has parts"),
        ("spiffe://corp.example/a%2fb", "path has parts"),
        ("spiffe://corp.example/a b", "path has parts"),
        ("spiffe://corp.example/a\n", "path has parts"),
        ("spiffe://corp.example/a\x00", "path has parts"),
        ("spiffe://corp.example/ä", "path has parts"),
        ("spiffe://corp.example/\u0661", "path has parts"),
        ("spiffe://corp.example/a\\b", "path has parts"),
        (LONGEST + "a", "at most 2048 bytes"),
    ],
)
def test_anything_else_is_refused(text: str, reason: str) -> None:
    with pytest.raises(RequestError, match=reason):
        SpiffeID.parse(text)


def test_a_part_with_a_slash_is_no_part() -> None:
    with pytest.raises(RequestError, match="path has parts"):
        SpiffeID(TrustDomain("corp.example"), ("a/b",))


def test_an_id_without_a_path_cannot_be_built() -> None:
    with pytest.raises(RequestError, match="path has parts"):
        SpiffeID(TrustDomain("corp.example"), ())


def test_a_built_id_is_not_longer_than_a_read_one() -> None:
    with pytest.raises(RequestError, match="at most 2048 bytes"):
        SpiffeID(TrustDomain("corp.example"), ("a" * 2048,))


def test_a_refusal_does_not_repeat_what_was_refused() -> None:
    with pytest.raises(RequestError, match="path has parts") as refusal:
        SpiffeID.parse("spiffe://corp.example/sec ret")
    assert "ret" not in str(refusal.value)
    assert "sec ret" in refusal.value.detail
    assert refusal.value.rule == "spiffe.id"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("ns/shop/sa/web", ("shop", "web")),
        ("ns/shop/sa", None),
        ("ns/shop/sa/web/x", None),
        ("NS/shop/sa/web", None),
        ("sa/web/ns/shop", None),
    ],
)
def test_a_service_account_is_a_path_of_one_form(
    path: str, expected: tuple[str, str] | None
) -> None:
    found = SpiffeID.parse(f"spiffe://corp.example/{path}")
    assert found.service_account == expected


def test_the_name_of_a_service_account_is_istios() -> None:
    made = SpiffeID.of_service_account(TrustDomain("corp.example"), "shop", "web")
    assert str(made) == "spiffe://corp.example/ns/shop/sa/web"


@pytest.mark.parametrize(
    ("namespace", "account"), [("", "web"), ("shop", "a/b"), ("..", "web")]
)
def test_a_service_account_cannot_smuggle_a_path(namespace: str, account: str) -> None:
    domain = TrustDomain("corp.example")
    with pytest.raises(RequestError, match="path has parts"):
        SpiffeID.of_service_account(domain, namespace, account)


@given(ids)
def test_what_is_written_is_read_again(made: SpiffeID) -> None:
    assert SpiffeID.parse(str(made)) == made


@given(st.text() | st.text().map("spiffe://corp.example/".__add__))
def test_any_text_is_an_id_or_a_request_error(text: str) -> None:
    try:
        found = SpiffeID.parse(text)
    except RequestError:
        return
    assert str(found) == text
