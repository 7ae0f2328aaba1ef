"""The table: constraints on the tiers of a chain, one leaf, and three verdicts.

A tier's constraints are words such as `+uri:corp.example` (permitted) and
`-dns:dev.corp.example` (excluded); a leaf's names are such words without a sign. `dn:`
holds RDNs between slashes, with `%20` for a space; `ipraw:`, `dnsraw:` and `minraw:`
are constraints that `cryptography` would not make (hex, any text, a `minimum` of 1);
`~` makes the extension not critical. `cn:`, `o:` and `mail:` go into the leaf's
subject.
"""

from dataclasses import dataclass

REASONS = {
    "loose-host": (
        "Go up to 1.27 takes a URI or e-mail host without a leading dot for its "
        "subdomains too (CVE-2026-78665); RFC 5280 and OpenSSL take it for this host "
        "alone. Ours permits only what both permit and excludes what either excludes."
    ),
    "empty-host": (
        "An empty URI or e-mail constraint is everything for Go and nothing for "
        "OpenSSL. Ours permits nothing under it and excludes everything."
    ),
    "malformed-constraint": (
        "The constraint cannot mean what its author wanted (a scheme, a wildcard, a "
        "trailing dot, an address, a mask with holes, host bits, a minimum). OpenSSL "
        "mostly compares the text, so that it excludes nothing or permits too much; Go "
        "refuses to read some of them. Ours refuses the chain when it is loaded."
    ),
    "wildcard": (
        "A wildcard stands for names on both sides of a constraint. OpenSSL compares "
        "its text; Go does and also refuses it where a name right below it is "
        "excluded; rustls refuses it under any permitted DNS constraint. Ours refuses "
        "it under any DNS constraint."
    ),
    "malformed-name": (
        "The name is spelt in a way that verifiers read differently (userinfo, port, "
        "query, percent-encoding, dots at an end, an address as a host, quotes, "
        "nothing at all). Ours refuses it under any constraint on its form."
    ),
    "not-to-rustls": (
        "rustls reads no DNS name with a hyphen at an end of a label, with a label of "
        "more than 63 characters, or that ends in a number, and refuses a certificate "
        "with one under any DNS constraint. So does ours."
    ),
    "mapped-address": (
        "An IPv4 address mapped into IPv6 is an IPv6 address to OpenSSL, and in no "
        "network of either version to Go. Ours refuses it under any IP constraint."
    ),
    "directory": (
        "Go does not evaluate directory name constraints: it refuses every leaf if the "
        "extension is critical, and none if it is not. Ours and OpenSSL evaluate them, "
        "also against the leaf's subject; `data_plane_problems` tells of such a chain."
    ),
    "unknown-form": (
        "Go refuses every leaf under a critical constraint on a form that it does not "
        "know. Ours and OpenSSL refuse only leaves with a name of this form; "
        "`data_plane_problems` tells of such a chain."
    ),
    "subject": (
        "OpenSSL, and ours, hold e-mail addresses and, without a DNS name beside it, a "
        "host name in the subject against the constraints; Go looks at no subject."
    ),
}
"""Why three verdicts may differ; every difference has one of these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One chain and what becomes of its leaf."""

    id: str
    root: str = ""
    regional: str = ""
    issuing: str = ""
    leaf: str
    ours: str
    """`ok`, or the rule's last part: `permitted`, `excluded`, `unsupported`; or
    `config`, for a chain that is not even loaded."""
    openssl: bool
    go: bool
    why: str = ""
    """The key of the reason where the three differ."""

    @property
    def differs(self) -> bool:
        return len({self.ours == "ok", self.openssl, self.go}) > 1


_A = "uri:spiffe://corp.example/ns/a/sa/b"
_EU = "uri:spiffe://eu.corp.example/ns/a/sa/b"


def _same(id_: str, ours: str, leaf: str, **tiers: str) -> Case:
    """Three verdicts that agree."""
    verdict = ours == "ok"
    return Case(id=id_, leaf=leaf, ours=ours, openssl=verdict, go=verdict, **tiers)


def _diff(id_: str, verdicts: str, why: str, leaf: str, **tiers: str) -> Case:
    """Three verdicts that differ: `ours openssl go`, the last two `ok` or `no`."""
    ours, openssl, go = verdicts.split()
    return Case(
        id=id_,
        leaf=leaf,
        ours=ours,
        openssl=openssl == "ok",
        go=go == "ok",
        why=why,
        **tiers,
    )


_URI = [
    _same("uri-unconstrained", "ok", _A),
    _same("uri-permitted-exact", "ok", _A, issuing="+uri:corp.example"),
    _same("uri-permitted-other", "permitted", _A, issuing="+uri:other.example"),
    _diff("uri-permitted-host-subdomain", "permitted no ok", "loose-host", _EU,
          issuing="+uri:corp.example"),
    _same("uri-permitted-dot-host", "permitted", _A, issuing="+uri:.corp.example"),
    _same("uri-permitted-dot-subdomain", "ok", _EU, issuing="+uri:.corp.example"),
    _same("uri-permitted-dot-two-labels", "ok", "uri:spiffe://a.b.corp.example/x",
          issuing="+uri:.corp.example"),
    _same("uri-permitted-both-host", "ok", _A,
          issuing="+uri:corp.example +uri:.corp.example"),
    _same("uri-permitted-both-subdomain", "ok", _EU,
          issuing="+uri:corp.example +uri:.corp.example"),
    _same("uri-permitted-no-label-boundary", "permitted",
          "uri:spiffe://evilcorp.example/x",
          issuing="+uri:corp.example +uri:.corp.example"),
    _same("uri-permitted-suffix-attack", "permitted",
          "uri:spiffe://corp.example.evil.example/x", issuing="+uri:corp.example"),
    _same("uri-permitted-case-of-constraint", "ok", _A, issuing="+uri:CORP.Example"),
    _same("uri-permitted-case-of-name", "ok", "uri:spiffe://CORP.Example/x",
          issuing="+uri:corp.example"),
    _same("uri-permitted-host-without-path", "ok", "uri:spiffe://corp.example",
          issuing="+uri:corp.example"),
    _same("uri-excluded-host", "excluded", _A, issuing="-uri:corp.example"),
    _diff("uri-excluded-host-subdomain", "excluded ok no", "loose-host", _EU,
          issuing="-uri:corp.example"),
    _same("uri-excluded-dot-host", "ok", _A, issuing="-uri:.corp.example"),
    _same("uri-excluded-dot-subdomain", "excluded", _EU, issuing="-uri:.corp.example"),
    _same("uri-excluded-other", "ok", _A, issuing="-uri:other.example"),
    _same("uri-excluded-wins-over-permitted", "excluded", _EU,
          issuing="+uri:.corp.example -uri:eu.corp.example"),
    _same("uri-excluded-case", "excluded", "uri:spiffe://EU.corp.example/x",
          issuing="-uri:eu.CORP.example"),
    _same("uri-permitted-scheme", "config", _A, issuing="+uri:spiffe://corp.example"),
    _diff("uri-excluded-scheme", "config ok ok", "malformed-constraint", _A,
          issuing="-uri:spiffe://corp.example"),
    _diff("uri-excluded-port", "config ok ok", "malformed-constraint", _A,
          issuing="-uri:corp.example:443"),
    _diff("uri-excluded-trailing-dot", "config ok no", "malformed-constraint", _A,
          issuing="-uri:corp.example."),
    _diff("uri-excluded-address", "config ok no", "malformed-constraint", _A,
          issuing="-uri:192.0.2.1"),
    _same("uri-permitted-wildcard-constraint", "config", _EU,
          issuing="+uri:*.corp.example"),
    _diff("uri-permitted-empty", "permitted no ok", "empty-host", _A, issuing="+uri:"),
    _diff("uri-excluded-empty", "excluded ok no", "empty-host", _A, issuing="-uri:"),
    _diff("uri-name-userinfo", "unsupported no ok", "malformed-name",
          "uri:spiffe://user@corp.example/x", issuing="+uri:corp.example"),
    _diff("uri-name-userinfo-excluded", "unsupported ok no", "malformed-name",
          "uri:spiffe://user@corp.example/x", issuing="-uri:corp.example"),
    _diff("uri-name-port", "unsupported ok ok", "malformed-name",
          "uri:spiffe://corp.example:8443/x", issuing="+uri:corp.example"),
    _diff("uri-name-colon-in-path-excluded", "unsupported ok no", "malformed-name",
          "uri:spiffe://corp.example/a:b", issuing="-uri:corp.example"),
    _diff("uri-name-query-excluded", "unsupported ok no", "malformed-name",
          "uri:spiffe://corp.example?x", issuing="-uri:corp.example"),
    _diff("uri-name-percent-excluded", "unsupported ok no", "malformed-name",
          "uri:spiffe://corp%2eexample/x", issuing="-uri:corp.example"),
    _diff("uri-name-address", "unsupported ok no", "malformed-name",
          "uri:spiffe://192.0.2.1/x", issuing="-uri:corp.example"),
    _same("uri-name-empty-host", "unsupported", "uri:spiffe:///x",
          issuing="+uri:corp.example"),
    _same("uri-name-no-authority", "unsupported", "uri:urn:mesh:x",
          issuing="+uri:corp.example"),
    _diff("uri-name-trailing-dot", "unsupported ok no", "malformed-name",
          "uri:spiffe://corp.example./x", issuing="-uri:corp.example"),
    _diff("uri-name-double-dot", "unsupported ok no", "malformed-name",
          "uri:spiffe://a..corp.example/x", issuing="+uri:.corp.example"),
]  # fmt: skip

_DNS = [
    _same("dns-unconstrained", "ok", "dns:api.corp.example"),
    _same("dns-permitted-exact", "ok", "dns:corp.example", issuing="+dns:corp.example"),
    _same("dns-permitted-subdomain", "ok", "dns:a.b.corp.example",
          issuing="+dns:corp.example"),
    _same("dns-permitted-dot-host", "permitted", "dns:corp.example",
          issuing="+dns:.corp.example"),
    _same("dns-permitted-dot-subdomain", "ok", "dns:api.corp.example",
          issuing="+dns:.corp.example"),
    _same("dns-permitted-no-label-boundary", "permitted", "dns:evilcorp.example",
          issuing="+dns:corp.example"),
    _same("dns-permitted-case", "ok", "dns:API.Corp.Example",
          issuing="+dns:corp.EXAMPLE"),
    _same("dns-permitted-one-of-two-names", "permitted",
          "dns:api.corp.example dns:api.other.example", issuing="+dns:corp.example"),
    _same("dns-permitted-union-in-one", "ok", "dns:api.other.example",
          issuing="+dns:corp.example +dns:other.example"),
    _same("dns-excluded-host", "excluded", "dns:corp.example",
          issuing="-dns:corp.example"),
    _same("dns-excluded-subdomain", "excluded", "dns:api.corp.example",
          issuing="-dns:corp.example"),
    _same("dns-excluded-dot-host", "ok", "dns:corp.example",
          issuing="-dns:.corp.example"),
    _same("dns-excluded-below-permitted", "excluded", "dns:x.dev.corp.example",
          issuing="+dns:corp.example -dns:dev.corp.example"),
    _same("dns-permitted-empty", "ok", "dns:api.corp.example", issuing="+dns:"),
    _same("dns-excluded-empty", "excluded", "dns:api.corp.example", issuing="-dns:"),
    _diff("dns-wildcard-permitted", "unsupported ok ok", "wildcard",
          "dns:*.corp.example", issuing="+dns:corp.example"),
    _diff("dns-wildcard-excluded-below", "unsupported ok no", "wildcard",
          "dns:*.corp.example", issuing="-dns:dev.corp.example"),
    _diff("dns-name-trailing-dot-excluded", "unsupported ok no", "malformed-name",
          "dns:api.corp.example.", issuing="-dns:corp.example"),
    _same("dns-name-trailing-dot-permitted", "unsupported", "dns:api.corp.example.",
          issuing="+dns:corp.example"),
    _diff("dns-name-leading-dot", "unsupported ok no", "malformed-name",
          "dns:.corp.example", issuing="+dns:corp.example"),
    _diff("dns-name-empty", "unsupported ok ok", "malformed-name", "dns:",
          issuing="-dns:corp.example"),
    _diff("dns-name-hyphen-first", "unsupported ok ok", "not-to-rustls",
          "dns:-api.corp.example", issuing="+dns:corp.example"),
    _diff("dns-name-hyphen-last", "unsupported ok ok", "not-to-rustls",
          "dns:api-.corp.example", issuing="-dns:other.example"),
    _diff("dns-name-number-last", "unsupported ok ok", "not-to-rustls",
          "dns:corp.1", issuing="-dns:other.example"),
    _diff("dns-name-long-label", "unsupported ok ok", "not-to-rustls",
          f"dns:{'a' * 64}.corp.example", issuing="+dns:corp.example"),
    _same("dns-name-label-of-63", "ok", f"dns:{'a' * 63}.corp.example",
          issuing="+dns:corp.example"),
    _same("dns-name-underscore-and-digits", "ok", "dns:_7.0.corp.example",
          issuing="+dns:corp.example"),
    _same("dns-linkerd-identity", "ok",
          "dns:web.shop.serviceaccount.identity.linkerd.corp.example",
          regional="+dns:corp.example", issuing="+dns:identity.linkerd.corp.example"),
    _same("dns-linkerd-identity-of-another-mesh", "permitted",
          "dns:web.shop.serviceaccount.identity.linkerd.other.example",
          issuing="+dns:identity.linkerd.corp.example"),
    _diff("dns-constraint-wildcard", "config ok ok", "malformed-constraint",
          "dns:api.corp.example", issuing="-dnsraw:*.corp.example"),
    _diff("dns-constraint-minimum", "config no ok", "malformed-constraint",
          "dns:api.corp.example", issuing="+minraw:corp.example"),
    _diff("dns-constraint-trailing-dot", "config ok no", "malformed-constraint",
          "dns:api.corp.example", issuing="-dns:corp.example."),
    _same("dns-does-not-restrict-uri", "ok", "uri:spiffe://evil.example/x",
          issuing="+dns:corp.example"),
    _same("uri-does-not-restrict-dns", "ok", "dns:evil.example",
          issuing="+uri:corp.example"),
    _same("dns-that-spells-a-permitted-uri", "permitted", "dns:corp.example",
          issuing="+uri:corp.example +dns:other.example"),
]  # fmt: skip

_IP = [
    _same("ip-permitted-inside", "ok", "ip:10.1.2.3", issuing="+ip:10.0.0.0/8"),
    _same("ip-permitted-outside", "permitted", "ip:11.1.2.3", issuing="+ip:10.0.0.0/8"),
    _same("ip-permitted-last-address", "ok", "ip:10.255.255.255",
          issuing="+ip:10.0.0.0/8"),
    _same("ip-excluded-inside", "excluded", "ip:10.1.2.3",
          issuing="+ip:10.0.0.0/8 -ip:10.1.0.0/16"),
    _same("ip-excluded-outside", "ok", "ip:10.2.2.3",
          issuing="+ip:10.0.0.0/8 -ip:10.1.0.0/16"),
    _same("ip6-permitted-inside", "ok", "ip:2001:db8::1", issuing="+ip:2001:db8::/32"),
    _same("ip6-permitted-outside", "permitted", "ip:2001:db9::1",
          issuing="+ip:2001:db8::/32"),
    _same("ip6-excluded-all", "excluded", "ip:2001:db8::1", issuing="-ip:::/0"),
    _same("ip4-under-ip6-permitted", "permitted", "ip:10.1.2.3",
          issuing="+ip:2001:db8::/32"),
    _same("ip4-under-ip6-excluded", "ok", "ip:10.1.2.3", issuing="-ip:::/0"),
    _same("ip6-under-ip4-permitted", "permitted", "ip:2001:db8::1",
          issuing="+ip:0.0.0.0/0"),
    _same("ip-all-excluded", "excluded", "ip:192.0.2.7", issuing="-ip:0.0.0.0/0"),
    _diff("ip-mapped-excluded", "unsupported ok ok", "mapped-address",
          "ip:::ffff:10.1.2.3", issuing="-ip:10.0.0.0/8"),
    _diff("ip-mapped-permitted", "unsupported ok no", "mapped-address",
          "ip:::ffff:10.1.2.3", issuing="+ip:::/0"),
    _diff("ip-mask-with-holes", "config ok no", "malformed-constraint", "ip:10.9.2.3",
          issuing="+ipraw:0a000200ff00ff00"),
    _diff("ip-host-bits", "config ok ok", "malformed-constraint", "ip:10.1.2.3",
          issuing="+ipraw:0a010201ff000000"),
]  # fmt: skip

_MAIL = [
    _same("mail-permitted-mailbox", "ok", "email:ops@corp.example",
          issuing="+email:ops@corp.example"),
    _same("mail-permitted-other-mailbox", "permitted", "email:dev@corp.example",
          issuing="+email:ops@corp.example"),
    _same("mail-local-part-has-case", "permitted", "email:OPS@corp.example",
          issuing="+email:ops@corp.example"),
    _same("mail-host-has-no-case", "ok", "email:ops@CORP.example",
          issuing="+email:ops@corp.Example"),
    _same("mail-permitted-host", "ok", "email:dev@corp.example",
          issuing="+email:corp.example"),
    _diff("mail-permitted-host-subdomain", "permitted no ok", "loose-host",
          "email:dev@eu.corp.example", issuing="+email:corp.example"),
    _same("mail-permitted-domain", "ok", "email:dev@eu.corp.example",
          issuing="+email:.corp.example"),
    _same("mail-permitted-domain-host", "permitted", "email:dev@corp.example",
          issuing="+email:.corp.example"),
    _same("mail-excluded-mailbox", "excluded", "email:ops@corp.example",
          issuing="-email:ops@corp.example"),
    _same("mail-excluded-host", "excluded", "email:dev@corp.example",
          issuing="-email:corp.example"),
    _diff("mail-excluded-host-subdomain", "excluded ok no", "loose-host",
          "email:dev@eu.corp.example", issuing="-email:corp.example"),
    _diff("mail-excluded-empty", "excluded ok no", "empty-host",
          "email:dev@corp.example", issuing="-email:"),
    _diff("mail-constraint-wildcard", "config ok ok", "malformed-constraint",
          "email:dev@corp.example", issuing="-email:*@corp.example"),
    _diff("mail-quoted", "unsupported ok ok", "malformed-name",
          'email:"ops"@corp.example', issuing="+email:corp.example"),
    _same("mail-in-subject-permitted", "ok", "mail:ops@corp.example dns:a.example",
          issuing="+email:corp.example"),
    _diff("mail-in-subject", "permitted no ok", "subject",
          "mail:ops@evil.example dns:a.example", issuing="+email:corp.example"),
]  # fmt: skip

# With only a directory name, Go would refuse the leaf as having no name that it knows.
_D = "dns:a.example "
_DIRECTORY = [
    _diff("dn-critical-permitted", "ok ok no", "directory", _D + "dn:O=Corp/CN=web",
          issuing="+dn:O=Corp"),
    _diff("dn-critical-excluded-other", "ok ok no", "directory",
          _D + "dn:O=Corp/CN=web", issuing="-dn:O=Evil"),
    _same("dn-critical-excluded", "excluded", _D + "dn:O=Evil/CN=web",
          issuing="-dn:O=Evil"),
    _same("dn-permitted-prefix", "ok", _D + "dn:O=Corp/CN=web", issuing="~ +dn:O=Corp"),
    _diff("dn-permitted-other", "permitted no ok", "directory", _D + "dn:O=Evil/CN=web",
          issuing="~ +dn:O=Corp"),
    _diff("dn-excluded-prefix", "excluded no ok", "directory", _D + "dn:O=Evil/CN=web",
          issuing="~ -dn:O=Evil"),
    _diff("dn-excluded-case", "excluded no ok", "directory", _D + "dn:O=EVIL/CN=web",
          issuing="~ -dn:O=evil"),
    _same("dn-case-and-spaces", "ok", _D + "dn:O=corp%20%20INC/CN=web",
          issuing="~ +dn:O=Corp%20Inc"),
    _diff("dn-not-at-the-start", "permitted no ok", "directory", _D + "dn:C=KR/O=Corp",
          issuing="~ +dn:O=Corp"),
    _same("dn-empty-subject", "ok", _A, issuing="~ +dn:O=Corp"),
    _same("dn-subject-permitted", "ok", "o:Corp dns:a.example", issuing="~ +dn:O=Corp"),
    _diff("dn-subject", "permitted no ok", "directory", "o:Evil dns:a.example",
          issuing="~ +dn:O=Corp"),
    _diff("dn-two-tiers", "permitted no ok", "directory", _D + "dn:O=Corp/CN=web",
          regional="~ +dn:O=Other +dn:O=Corp/CN=issuing", issuing="~ +dn:O=Corp"),
    _same("cn-as-host-permitted", "ok", "cn:api.corp.example",
          issuing="+dns:corp.example"),
    _diff("cn-as-host", "permitted no ok", "subject", "cn:api.evil.example",
          issuing="+dns:corp.example"),
    _same("cn-beside-dns", "ok", "cn:api.evil.example dns:a.corp.example",
          issuing="+dns:corp.example"),
    _same("cn-without-dot", "ok", "cn:localhost " + _A, issuing="+dns:corp.example"),
]  # fmt: skip

_OTHER = [
    _same("other-form-constrained", "unsupported", "rid:1.2.3.4", issuing="+rid:1.2.3"),
    _diff("other-form-elsewhere", "ok ok no", "unknown-form", _A, issuing="+rid:1.2.3"),
    _same("other-form-unconstrained", "ok", "o:Corp rid:1.2.3.4",
          issuing="+dns:corp.example"),
    _same("not-critical-counts-too", "permitted", "dns:api.other.example",
          issuing="~ +dns:corp.example"),
]  # fmt: skip

_TIERS = [
    _same("tiers-root-permits-lower-silent", "ok", _A, root="+uri:corp.example"),
    _same("tiers-root-forbids-lower-silent", "permitted", _A,
          root="+uri:other.example"),
    _same("tiers-regional-excludes", "excluded", _A, regional="-uri:corp.example",
          issuing="+uri:corp.example"),
    # A verifier that joins the permitted lists of all tiers accepts the next four.
    _same("tiers-union-trap-uri", "permitted", _A, regional="+uri:other.example",
          issuing="+uri:corp.example"),
    _same("tiers-union-trap-dns", "permitted", "dns:api.corp.example",
          regional="+dns:eu.corp.example", issuing="+dns:corp.example"),
    _same("tiers-union-trap-ip", "permitted", "ip:10.2.0.1", root="+ip:10.1.0.0/16",
          issuing="+ip:10.0.0.0/8"),
    _same("tiers-union-trap-mail", "permitted", "email:ops@corp.example",
          root="+email:other.example", regional="+email:corp.example"),
    _same("tiers-intersection", "ok", "dns:api.eu.corp.example",
          root="+dns:corp.example", regional="+dns:eu.corp.example",
          issuing="+dns:api.eu.corp.example"),
    _same("tiers-intersection-below-lowest", "permitted", "dns:x.eu.corp.example",
          root="+dns:corp.example", regional="+dns:eu.corp.example",
          issuing="+dns:api.eu.corp.example"),
    _same("tiers-different-forms", "ok", _A + " dns:a.corp.example",
          root="+dns:corp.example", regional="+uri:corp.example",
          issuing="-ip:0.0.0.0/0 -ip:::/0"),
    _same("tiers-different-forms-one-fails", "excluded", _A + " ip:10.0.0.1",
          root="+dns:corp.example", regional="+uri:corp.example",
          issuing="-ip:0.0.0.0/0 -ip:::/0"),
    _diff("tiers-strict-above-loose-below", "permitted no ok", "loose-host", _EU,
          root="+uri:corp.example", issuing="+uri:.corp.example"),
]  # fmt: skip

CASES: tuple[Case, ...] = (*_URI, *_DNS, *_IP, *_MAIL, *_DIRECTORY, *_OTHER, *_TIERS)
