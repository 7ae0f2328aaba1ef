"""Each profile writes a file about which a plan has nothing to say."""

from pathlib import Path
from typing import Any

import pytest

from bridge.errors import BridgeError
from bridge.hierarchy.plan import plan_of
from bridge.hierarchy.schema import parse
from bridge.hierarchy.schema.profiles import PROFILES, StartingPoint, render
from tests.support.parts.hierarchy_file import NOW

LONG = {
    "organisation": "A Company With Quite A Name (Holdings)",
    "trust_domains": ("one.example", "two.example"),
    "regions": ("a-region-of-20-chars", "us"),
    "clusters": ("c-luster-of-20-chars", "b"),
}


WIDE = {"trust_domains": ("-".join(["name"] * 9) + ".example",)}
"""No node's name in it is short enough for a common name."""


@pytest.mark.parametrize("more", [{}, LONG, WIDE, {"root_backend": "file"}])
@pytest.mark.parametrize("name", PROFILES)
def test_the_plan_of_a_profile_passes(name: str, more: dict[str, Any]) -> None:
    text = render(StartingPoint(profile=PROFILES[name], **more))
    plan = plan_of(parse(text.encode(), Path("hierarchy.yaml")), now=NOW)
    assert plan.passes, plan.findings
    rules = {one.rule for one in plan.findings if not one.accepted}
    assert rules <= {"officers.none", "constraints.ip-sidecar"}
    assert more or max(map(len, text.splitlines())) <= 80


def test_each_cluster_of_each_region_has_an_issuing_ca_and_its_control_plane() -> None:
    text = render(StartingPoint(profile=PROFILES["kubernetes"], regions=("eu", "us")))
    file = parse(text.encode(), Path("hierarchy.yaml")).file
    purposes = {name: entry.purpose for name, entry in file.cas.items()}
    for region in ("eu", "us"):
        assert purposes[f"{region}-prod"] == "mesh"
        for purpose in ("kubernetes", "etcd", "front-proxy"):
            assert purposes[f"{region}-prod-{purpose}"] == purpose
            assert file.anchor_of(f"{region}-prod-{purpose}").endswith(purpose)
            usages = file.cas[f"{region}-prod-{purpose}"].ext_key_usage
            assert usages == (("client_auth",) if purpose == "front-proxy" else ())
    assert [*file.certificates] == ["eu-prod", "us-prod"]


@pytest.mark.parametrize("backend", ["pkcs11", "file"])
def test_the_keys_that_sign_cas_are_all_where_the_root_s_is(backend: Any) -> None:
    profile = PROFILES["kubernetes"]
    text = render(StartingPoint(profile=profile, root_backend=backend))
    file = parse(text.encode(), Path("hierarchy.yaml")).file
    for name, entry in file.cas.items():
        expected = "file" if entry.purpose else backend
        assert entry.key.backend == expected, name


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"organisation": 'Corp"'}, "organisation: expected 1 to 40 plain characters"),
        ({"organisation": ""}, "organisation: expected"),
        ({"trust_domains": ("corp_example",)}, "trust domain: expected a DNS name"),
        ({"trust_domains": ("Corp",)}, "trust domain"),
        ({"trust_domains": ()}, "trust domain"),
        ({"regions": ("EU",)}, "region: expected 1 to 20 of the characters"),
        ({"regions": ()}, "region: expected"),
        ({"clusters": ("a: b",)}, "cluster: expected"),
    ],
)
def test_what_cannot_stand_in_a_file_is_refused(
    given: dict[str, Any], told: str
) -> None:
    with pytest.raises(BridgeError, match=told):
        StartingPoint(profile=PROFILES["sidecar"], **given)
