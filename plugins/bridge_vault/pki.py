"""The backend `vault-pki`: Vault's PKI engine builds and signs each certificate."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from bridge.sdk import BackgroundLoop, WatchedFiles, digest_of, read_chain
from bridge.spi import (
    BackendBrokenError,
    BackendError,
    BackendUnavailableError,
    Description,
    IssuedChain,
    LeafRequest,
    PluginContext,
    Prepared,
)
from bridge_vault.options import PKIOptions, files_of, options_of, tls_of
from bridge_vault.rights import require_rights
from bridge_vault.role import added_extensions, issuer_problems, role_problems
from bridge_vault.session import SharedSession

_LOOK_SECONDS = 60.0
"""How often role and issuer are held to the pins."""
_LOOK_AGAIN_SECONDS = 2.0
"""The same, while they are not as they must be."""
_LOOK_TIMEOUT_SECONDS = 5.0
_NOT_BEFORE_SECONDS = 25.0
"""notBefore is Vault's: the core takes 30 s of difference."""
_log = logging.getLogger(__name__)


class VaultPKICA:
    """An issuing CA of Vault's PKI engine. It reports changes of its files.

    Args:
        options: See `bridge_vault.options.PKIOptions`.
        context: `chain` names the certificates.

    Raises:
        ConfigError: An option or a file cannot be used; the message says what was
            expected.
    """

    api_version = 2

    def __init__(
        self, options: Mapping[str, object], context: PluginContext, /
    ) -> None:
        parsed = options_of(PKIOptions, options, context)
        paths = (context.base / (context.chain or ""), *files_of(parsed))
        digest = digest_of(paths)
        certificates = read_chain(context)
        self._options = parsed
        self._context = context
        self._description = Description(
            certificate=certificates[0],
            intermediates=certificates[1:],
            chooses_serial=True,
            added_extensions=added_extensions(parsed),
            assurance="service",
            labels={"issuer": f"{parsed.mount}/{parsed.issuer}", "role": parsed.role},
        )
        self._intermediates = tuple(
            one.public_bytes(Encoding.DER) for one in certificates
        )
        self._path = f"/v1/{parsed.mount}/issuer/{parsed.issuer}/sign/{parsed.role}"
        self._session = SharedSession(parsed, context, tls_of(parsed, context))
        self._files = WatchedFiles(paths, digest)
        self._role: _Role | None = None
        self._fault: BackendError | None = None
        self._looking = threading.Lock()
        self._loop = BackgroundLoop(
            f"vault-role-{context.name}",
            self._look,
            lambda: _LOOK_AGAIN_SECONDS if self._fault else _LOOK_SECONDS,
        )
        self._is_running = self._is_closed = False

    def describe(self) -> Description:
        """See `IssuingCA.describe`."""
        return self._description

    def prepare(self, request: LeafRequest) -> Prepared:
        """See `IssuingCA.prepare`: Vault builds the TBSCertificate."""
        return Prepared(request=request)

    def issue(self, prepared: Prepared, *, timeout: float) -> IssuedChain:
        """See `IssuingCA.issue`."""
        if timeout <= 0 or self._is_closed:
            why = "the issuing CA is closed" if self._is_closed else "no time is left"
            raise BackendUnavailableError(why)
        deadline = time.monotonic() + timeout
        if self._fault is not None:
            raise _again(self._fault)
        role = self._role or self._verified(deadline)
        body = self._body(prepared.request, role)
        answer = self._session.call(
            lambda adapter: adapter.post(self._path, json=body),
            deadline - time.monotonic(),
            attempt=prepared.request.attempt,
            signs=True,
        )
        return IssuedChain(_leaf_of(answer), self._intermediates)

    def check(self, *, timeout: float) -> None:
        """See `IssuingCA.check`: rights, role, issuer and URLs are looked at."""
        if timeout <= 0 or self._is_closed:
            why = "the issuing CA is closed" if self._is_closed else "no time is left"
            raise BackendUnavailableError(why)
        self._verified(time.monotonic() + timeout, is_fresh=True)

    def watch(self, changed: Callable[[], None]) -> None:
        """See `Watcher.watch`; `changed` may close this object.

        Raises:
            RuntimeError: The files are watched already, or closed.
        """
        self._files.watch(changed)

    def close(self) -> None:
        """See `IssuingCA.close`."""
        self._is_closed = True
        self._loop.stop()
        self._files.close()
        self._session.close()

    def _verified(self, deadline: float, *, is_fresh: bool = False) -> "_Role":
        left = max(0.0, deadline - time.monotonic())
        if not self._looking.acquire(timeout=left):
            raise BackendUnavailableError(
                "the role is being looked at", rule="vault.role"
            )
        try:
            if self._role is not None and self._fault is None and not is_fresh:
                return self._role  # another call has looked
            try:
                self._role = self._read(deadline)
            except BackendBrokenError as error:
                self._fault = error
                raise
            self._fault = None
            if not self._is_running and not self._is_closed:
                self._is_running = True
                self._loop.start()
            return self._role
        finally:
            self._looking.release()

    def _read(self, deadline: float) -> "_Role":
        options = self._options
        mount, role_path = options.mount, f"{options.mount}/roles/{options.role}"
        issuer_path, urls_path = (
            f"{mount}/issuer/{options.issuer}",
            f"{mount}/config/urls",
        )
        wanted = {self._path.removeprefix("/v1/"): "update"}
        wanted |= dict.fromkeys((role_path, issuer_path, urls_path), "read")
        require_rights(self._session, wanted, deadline)
        role = self._get(role_path, deadline)
        issuer = self._get(issuer_path, deadline)
        urls = self._get(urls_path, deadline)
        certificate = self._description.certificate
        problems = [
            *(f"{role_path}: {text}" for text in role_problems(role, certificate)),
            *(
                f"{issuer_path}: {text}"
                for text in issuer_problems(issuer, urls, certificate, options)
            ),
        ]
        if problems:
            raise BackendBrokenError(
                "Vault's configuration would make other certificates",
                rule="vault.role",
                detail="; ".join(problems),
            )
        return _Role(role)

    def _get(self, path: str, deadline: float) -> Mapping[str, Any]:
        answer = self._session.call(
            lambda adapter: adapter.get(f"/v1/{path}"), deadline - time.monotonic()
        )
        data = answer.get("data")
        return data if isinstance(data, dict) else {}

    def _look(self) -> None:
        had_fault = self._fault is not None
        try:
            self._verified(time.monotonic() + _LOOK_TIMEOUT_SECONDS, is_fresh=True)
        except BackendBrokenError as error:
            if not had_fault:
                name = self._context.name
                _log.error("issuing CA %s: %s: %s", name, error, error.detail)
        except BackendError as error:
            # Vault is away: what it said last holds until it says something else.
            _log.warning("Vault's role is not looked at: %s %s", error, error.detail)

    def _body(self, request: LeafRequest, role: "_Role") -> dict[str, Any]:
        server_now = datetime.now(UTC) + timedelta(seconds=self._session.skew_seconds)
        role.require(request, server_now)
        names = request.names
        csr = x509.load_der_x509_csr(request.csr).public_bytes(Encoding.PEM)
        return {
            "csr": csr.decode("ascii"),
            "common_name": "",
            "exclude_cn_from_sans": True,
            "uri_sans": _values(names, x509.UniformResourceIdentifier),
            "alt_names": ",".join(_values(names, x509.DNSName)),
            "format": "pem",
            "remove_roots_from_chain": True,
            **role.ending(request, server_now),
        }


class _Role:
    # What each request needs of the role, as it was read.
    def __init__(self, role: Mapping[str, Any]) -> None:
        self._max_ttl = timedelta(seconds=int(role["max_ttl"]))
        self._backdate = timedelta(seconds=int(role.get("not_before_duration") or 0))
        self._is_openbao = "not_after_bound" in role

    def require(self, request: LeafRequest, now: datetime) -> None:
        """Refuse before Vault signs what the bridge would have to refuse afterwards."""
        difference = (now - self._backdate - request.not_before).total_seconds()
        if abs(difference) > _NOT_BEFORE_SECONDS:
            ours = (datetime.now(UTC) - request.not_before).total_seconds()
            raise BackendBrokenError(
                "Vault would date the certificate otherwise",
                rule="vault.clock",
                detail=f"the bridge dates back by {ours:.0f} s, the role's "
                f"not_before_duration is {self._backdate.total_seconds():.0f} s, and "
                f"notBefore would differ by {difference:.0f} s: compare "
                "issuance.backdate with the role, and the clocks",
            )
        if request.not_after - now > self._max_ttl + timedelta(seconds=1):
            raise BackendBrokenError(
                "Vault would cut the lifetime short",
                rule="vault.role",
                detail=f"the role's max_ttl is {self._max_ttl.total_seconds():.0f} s, "
                f"and {(request.not_after - now).total_seconds():.0f} s are needed",
            )

    def ending(self, request: LeafRequest, now: datetime) -> dict[str, str]:
        if self._is_openbao:
            # Exact under `not_after_bound=ttl-limited`, whatever its clock says.
            return {"not_after": f"{request.not_after:%Y-%m-%dT%H:%M:%SZ}"}
        # In Vault `not_after` evades max_ttl, so its policy denies it.
        return {"ttl": f"{round((request.not_after - now).total_seconds())}s"}


def _values(names: tuple[x509.GeneralName, ...], kind: type[Any]) -> list[str]:
    return [name.value for name in names if isinstance(name, kind)]


def _leaf_of(answer: Mapping[str, Any]) -> bytes:
    data = answer.get("data")
    text = data.get("certificate") if isinstance(data, dict) else None
    try:
        leaf = x509.load_pem_x509_certificate(str(text).encode("ascii"))
    except ValueError as error:
        raise BackendBrokenError(
            "Vault's answer has no certificate",
            rule="vault.answer",
            certificate_may_exist=True,
        ) from error
    return leaf.public_bytes(Encoding.DER)


def _again(error: BackendError) -> BackendError:
    return type(error)(str(error), rule=error.rule, detail=error.detail)
