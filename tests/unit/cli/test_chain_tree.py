from datetime import timedelta

import pytest
from cryptography import x509

from bridge.cli.chain_tree import print_chain
from tests.support.parts.pki import NOW, new_chain, new_root

URI = x509.UniformResourceIdentifier("spiffe://corp.example/ns/shop/sa/web")


def test_a_chain_is_a_tree_from_the_anchor_down(
    capsys: pytest.CaptureFixture[str],
) -> None:
    permitted = x509.NameConstraints(
        [x509.DNSName("svc"), x509.UniformResourceIdentifier("corp.example")],
        [x509.RFC822Name("invalid")],
    )
    root = new_root("the [root]")
    issuing = root.issue_ca("region", constraints=permitted).issue_ca("issuing")
    leaf = issuing.issue_leaf(URI, not_after=NOW + timedelta(hours=1))
    print_chain([leaf, *issuing.chain, root.certificate])
    lines = capsys.readouterr().out.splitlines()
    roles = [line.strip("│└─├ ") for line in lines]
    assert roles[0] == "trust anchor CN=the [root]"
    assert "no name constraints" in roles[2]
    assert roles[3] == "intermediate CN=region"
    assert "permits DNS:svc, URI:corp.example" in roles[5]
    assert roles[6] == "excludes e-mail:invalid"
    assert roles[7] == "issuing CA CN=issuing"
    assert roles[-2] == f"leaf {URI.value}"
    assert f"serial {leaf.serial_number:x}" in roles[-1]
    assert "EC secp256r1" in roles[-1]


def test_a_chain_without_a_leaf_has_one_issuing_ca(
    capsys: pytest.CaptureFixture[str],
) -> None:
    chain = new_chain()
    print_chain([*chain.chain, chain.root])
    out = capsys.readouterr().out
    assert out.count("issuing CA CN=") == 1
    assert out.count("intermediate CN=") == 1
