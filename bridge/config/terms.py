"""The section `issuance`: what certificates are issued on which terms, and to whom."""

from datetime import timedelta
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from bridge.config.section import Section
from bridge.config.types import (
    Different,
    IssuerNames,
    Names,
    Namespaces,
    ServiceAccounts,
    Some,
    Text,
    WholeSeconds,
    WrongError,
    written,
)

Fronts = Annotated[
    tuple[Literal["istio", "linkerd"], ...], Field(strict=False), Different
]


class RuleConfig(Section):
    """`issuance.rules[]`: other terms for some callers. The first that matches holds.

    It matches a caller who is listed under each of its first four keys; what is left
    out matches everybody.
    """

    fronts: Annotated[Fronts, Some] | None = None
    """The mesh of the caller. Only fronts that are configured."""
    clusters: Annotated[Names, Some] | None = None
    """Names of clusters, not aliases."""
    namespaces: Annotated[Namespaces, Some] | None = None
    """The namespace of the caller, as its credential proves it."""
    service_accounts: Annotated[ServiceAccounts, Some] | None = None
    """Names without the namespace. `namespaces` says which namespaces are meant."""
    refuse: bool = False
    """`true`: these callers get no certificate. `false` alone: these callers get what
    the top level says."""
    default_ttl: WholeSeconds | None = None
    """By default `issuance.default_ttl`, brought inside the limits of the rule.
    Linkerd's proxies request no lifetime, so this is what they get."""
    min_ttl: WholeSeconds | None = None
    """By default `issuance.min_ttl`, and not below it."""
    max_ttl: WholeSeconds | None = None
    """By default `issuance.max_ttl`, and not above it."""
    on_excess_ttl: Literal["refuse", "clamp"] | None = None
    """By default `issuance.on_excess_ttl`. Istio's agents request 24h unless told
    otherwise, so a shorter `max_ttl` needs `clamp`."""
    issuing_cas: Annotated[IssuerNames, Some] | None = None
    """In order of preference. By default `issuance.issuing_cas`. Failover stays inside
    the list."""

    @field_validator("*", mode="before")
    @classmethod
    def _is_not_null(cls, value: object) -> object:
        # A list that lost its last entry would match everybody, or allow everything.
        if value is None:
            raise ValueError("expected a value; leave the key out for its default")
        return value

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        given = self.model_fields_set - {
            "fronts",
            "clusters",
            "namespaces",
            "service_accounts",
        }
        if not given:
            raise ValueError(
                "expected what holds for these callers: refuse, a TTL, on_excess_ttl "
                "or issuing_cas (refuse: false gives them the top level's terms)"
            )
        if self.refuse and given != {"refuse"}:
            raise ValueError("whoever is refused gets no TTL and no issuing CA")
        return self


class IssuanceConfig(Section):
    """`issuance`: limits that no caller and no backend can widen."""

    default_ttl: WholeSeconds = timedelta(hours=24)
    """The lifetime where the caller requests none."""
    min_ttl: WholeSeconds = timedelta(minutes=5)
    """The shortest lifetime that may be requested."""
    max_ttl: WholeSeconds = timedelta(hours=24)
    """The longest lifetime that may be requested."""
    on_excess_ttl: Literal["refuse", "clamp"] = "refuse"
    """What to do with a requested lifetime outside the limits."""
    backdate: WholeSeconds = timedelta(minutes=2)
    """How far notBefore lies in the past, for peers whose clock is slow."""
    issuing_cas: Annotated[IssuerNames, Some]
    """In order of preference. The next one is used while an earlier one is down."""
    cert_signers: dict[Text, IssuerNames] = {}  # noqa: RUF012 - pydantic copies it
    """From a value of Istio's `CertSigner` to a list of issuing CAs. A value that is
    not listed is refused."""
    rules: Annotated[tuple[RuleConfig, ...], Field(strict=False)] = ()
    """Other conditions for some callers, all inside the limits above."""
    csr_names: Literal["ignore", "strict"] = "ignore"
    """`strict` refuses a CSR that asks for any name but the caller's."""

    @model_validator(mode="after")
    def _is_ordered(self) -> Self:
        if not self.min_ttl <= self.default_ttl <= self.max_ttl:
            raise WrongError(
                "expected min_ttl <= default_ttl <= max_ttl",
                f"min_ttl {written(self.min_ttl)}, default_ttl "
                f"{written(self.default_ttl)}, max_ttl {written(self.max_ttl)}",
            )
        if self.backdate >= self.min_ttl:
            raise WrongError(
                "expected backdate below min_ttl: a leaf that is born past its "
                "half-life is asked for again without a pause",
                f"backdate {written(self.backdate)}, min_ttl {written(self.min_ttl)}",
            )
        for name, chosen in self.cert_signers.items():
            if not chosen:
                raise ValueError(f"cert_signers.{name} names no issuing CA")
        return self

    def routes(self) -> dict[str, tuple[str, ...]]:
        """Return each list of issuing CAs, by the path of its key."""
        return {
            "issuance.issuing_cas": self.issuing_cas,
            **{
                f"issuance.cert_signers.{name}": names
                for name, names in self.cert_signers.items()
            },
            **{
                f"issuance.rules[{index}].issuing_cas": rule.issuing_cas
                for index, rule in enumerate(self.rules)
                if rule.issuing_cas is not None
            },
        }
