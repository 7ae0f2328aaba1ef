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
    clusters: Annotated[Names, Some] | None = None
    namespaces: Annotated[Namespaces, Some] | None = None
    service_accounts: Annotated[ServiceAccounts, Some] | None = None
    refuse: bool = False
    """They get no certificate. `false` alone: they get what the top level says."""
    default_ttl: WholeSeconds | None = None
    """By default the top level's, brought inside the bounds."""
    min_ttl: WholeSeconds | None = None
    max_ttl: WholeSeconds | None = None
    on_excess_ttl: Literal["refuse", "clamp"] | None = None
    issuing_cas: Annotated[IssuerNames, Some] | None = None
    """In order of preference, and nothing else: failover stays inside the list."""

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
    min_ttl: WholeSeconds = timedelta(minutes=5)
    max_ttl: WholeSeconds = timedelta(hours=24)
    on_excess_ttl: Literal["refuse", "clamp"] = "refuse"
    backdate: WholeSeconds = timedelta(minutes=2)
    """How far notBefore lies in the past, for peers whose clock runs slow."""
    issuing_cas: Annotated[IssuerNames, Some]
    """In order of preference; a later one stands in when an earlier one is down."""
    cert_signers: dict[Text, IssuerNames] = {}  # noqa: RUF012 - pydantic copies it
    """Istio's `CertSigner` value to issuing CAs; a value not listed is refused."""
    rules: Annotated[tuple[RuleConfig, ...], Field(strict=False)] = ()
    """Other terms for some callers, all inside the bounds above."""
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
