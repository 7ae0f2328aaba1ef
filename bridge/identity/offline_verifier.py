"""Verify service-account tokens by the keys of their cluster: `tokens.verify: jwks`."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

from bridge.config import BoundConfig, JWKSConfig
from bridge.errors import AuthenticationError, BridgeError, ConfigError
from bridge.identity import service_account_token
from bridge.identity.caller import ServiceAccount
from bridge.identity.jwks import VerificationKey
from bridge.identity.key_sources import KeyFile, KeySource, URLSource
from bridge.identity.keyring import KeyOwners, Keyring
from bridge.resilience.budget import Budget
from bridge.system.clock import Clock


class OfflineVerifier:
    """Verifies the tokens of one cluster by its keys. See TokenVerifier.

    Args:
        cluster: Its name.
        config: The issuer, and how long keys are used.
        source: Where the keys are.
        owners: Which cluster has which key.
        siblings: The verifiers of all clusters by name, to tell whose a key is.
        clock: The time of key refreshes.
    """

    verified_by: Final = "jwks"

    def __init__(
        self,
        cluster: str,
        config: JWKSConfig | BoundConfig,
        source: KeySource,
        *,
        owners: KeyOwners,
        siblings: Mapping[str, "OfflineVerifier"],
        clock: Clock,
    ) -> None:
        self._cluster = cluster
        self._config = config
        self._siblings = siblings
        self._clock = clock
        self._is_local = source.is_local
        self.keyring = Keyring(
            source,
            owners,
            cluster,
            max_age=config.max_key_age,
            floor=config.refresh_floor,
            clock=clock,
        )
        """The keys."""

    def verify(
        self, token: str, *, audiences: frozenset[str], now: datetime, budget: Budget
    ) -> ServiceAccount:
        """See TokenVerifier.verify."""
        try:
            return service_account_token.verify(
                token,
                issuers=self._config.accepted_issuers,
                audiences=audiences,
                keys_of=self._keys,
                now=now,
            )
        except AuthenticationError as error:
            if error.rule == "token.signature":
                self.keyring.doubt()
            raise

    def adopt(self, answer: Sequence[VerificationKey] | BridgeError) -> list[str]:
        """Take over the first keys, or why there are none.

        Returns:
            What is wrong with them for good.
        """
        if isinstance(answer, ConfigError):
            return [str(answer)]
        if isinstance(answer, BridgeError):
            self.keyring.failed(answer)
            return []
        foreign = self.keyring.adopt(answer, self._clock())
        if not self._is_local:
            return []  # whoever answers a URL must not be able to refuse a start
        return [
            f"expected keys of its own; the cluster {owner} has the same one"
            for owner in sorted(set(foreign.values()))
        ]

    def problems(self, now: datetime) -> list[str]:
        """See TokenVerifier.problems."""
        return self.keyring.problems(now)

    def can_verify(self, now: datetime) -> bool:
        """See TokenVerifier.can_verify."""
        return self.keyring.has_keys(now)

    def start(self) -> None:
        """Start the background refresh of keys."""
        self.keyring.start()

    def close(self) -> None:
        """Stop the background refresh."""
        self.keyring.close()

    def _keys(self, kid: str | None, now: datetime) -> Sequence[VerificationKey]:
        try:
            return self.keyring.keys(kid, now)
        except AuthenticationError as error:
            # The usual cause is an agent with the wrong cluster ID.
            for name, other in self._siblings.items():
                if other is not self and other.keyring.has(kid):
                    error.detail += (
                        f"; clusterid means {self._cluster}, the key is {name}'s"
                    )
            raise


def source_of(config: JWKSConfig) -> KeySource:
    """Return where the keys of a section are.

    Raises:
        ConfigError: `ca_file` cannot be used.
    """
    if config.file is not None:
        return KeyFile(config.file)
    return URLSource(
        config.url or "",
        config.accepted_issuers,
        ca_file=config.ca_file,
        token_file=config.token_file,
    )
