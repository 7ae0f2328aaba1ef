"""Istio's CA API. Translates; decides nothing but what is too much work.

Calls are taken as a stream of one message (the wire is the same): the handler then runs
before the message is received, so a call that is shed costs no more than its headers,
and a message that never comes can be given up.
"""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import grpc

from bridge.errors import (
    AuthenticationError,
    BridgeError,
    OverloadedError,
    RequestError,
)
from bridge.identity.caller import (
    CertificateCredential,
    Credential,
    TokenCredential,
)
from bridge.issuance import Call, Issued
from bridge.metrics import SHED_REASONS, Metrics
from bridge.resilience import Budget
from bridge.server.messages import ResponseWriter, read_request
from bridge.server.pool import CallPool, SteadyPool
from bridge.server.reaper import Reaper
from bridge.server.reception import Reception
from bridge.server.status import BUG, status_of

SERVICE = "istio.v1.auth.IstioCertificateService"
METHOD = f"/{SERVICE}/CreateCertificate"

_FRONT = "istio"
_log = logging.getLogger(__name__)
_transport_log = logging.getLogger("grpc._cython.cygrpc")


class _HeadersStayOut(logging.Filter):
    # grpc writes every header that is not UTF-8 into the log, with a traceback: tokens
    # too, and from anybody, a mebibyte a call.
    def filter(self, record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("Invalid encoding on ")


_HEADERS_STAY_OUT = _HeadersStayOut()


class Issuer(Protocol):
    """The part of `bridge.issuance.Issuance` that a front needs."""

    def issue(self, call: Call) -> Issued:
        """See `Issuance.issue`."""

    def refuse(self, error: BridgeError, *, front: str) -> None:
        """See `Issuance.refuse`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lanes:
    """Who runs a call, and who tells a peer that nobody will."""

    calls: CallPool
    refusals: SteadyPool
    reaper: Reaper


class IstioFront(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    """Serves `istio.v1.auth.IstioCertificateService`.

    Args:
        issuer: Decides and issues.
        metrics: Counts calls by how they ended.
        lanes: The threads.
        audiences: That a token has to be for.
        deadline_seconds: The longest that a call may take; clients set none.
    """

    def __init__(
        self,
        issuer: Issuer,
        metrics: Metrics,
        lanes: Lanes,
        *,
        audiences: frozenset[str],
        deadline_seconds: float,
    ) -> None:
        self._issuer = issuer
        self._metrics = metrics
        self._lanes = lanes
        self._terms = audiences, deadline_seconds
        self._responses = ResponseWriter()
        self._seconds = metrics.request_seconds(_FRONT)
        _transport_log.addFilter(_HEADERS_STAY_OUT)

    def change(self, audiences: frozenset[str], deadline_seconds: float) -> None:
        """Take other terms, from the next call on; both at once."""
        self._terms = audiences, deadline_seconds

    def service(self, handler_call_details: Any) -> Any:
        """Take a call in; runs when it arrives, before any thread is free for it."""
        if handler_call_details.method != METHOD:
            return None
        arrived = time.monotonic()
        lanes = self._lanes
        excess = lanes.calls.excess()
        behavior = partial(self._handle, arrived, excess)
        # grpc runs a handler on the pool that it names.
        behavior.experimental_thread_pool = (  # type: ignore[attr-defined]
            lanes.refusals if excess else lanes.calls
        )
        return grpc.stream_unary_rpc_method_handler(behavior)

    def _handle(
        self, arrived: float, excess: str, messages: Iterator[bytes], context: Any
    ) -> bytes:
        # The outermost layer: whatever happens, the peer is told no more than fits.
        try:
            reply = self._answer(arrived, excess, messages, context)
        except grpc.RpcError:  # the peer left while its message was on the way
            self._ended("CANCELLED", arrived)
            self._metrics.shed["gone"].inc()
            raise
        except BridgeError as error:
            code, text = status_of(error)
            if isinstance(error, OverloadedError):
                self._metrics.shed[_reason(error)].inc()
                if not context.is_active():  # it gets no answer, whatever we say
                    code = grpc.StatusCode.CANCELLED
        except Exception:  # noqa: BLE001 - the outermost layer
            _log.exception("a call failed in a way that nobody foresaw")
            code, text = BUG
        else:
            self._ended("OK", arrived)
            return reply
        self._ended(code.name, arrived)
        # Ends the call with trailers only. Raises, by its contract.
        context.abort(code, text)
        raise AssertionError  # pragma: no cover - abort does not return

    def _answer(
        self, arrived: float, excess: str, messages: Iterator[bytes], context: Any
    ) -> bytes:
        if not excess and self._lanes.calls.is_overdue(arrived):
            excess = "queue"
        if excess:
            raise _overloaded(excess)
        audiences, deadline_seconds = self._terms
        deadline = min(
            arrived + deadline_seconds,
            # Without a deadline of the client's this is 9.2e18. Never `or`: 0.0 is one
            # that has passed.
            time.monotonic() + context.time_remaining(),
        )
        budget = Budget(deadline, context.is_active)
        budget.require()
        reaper = self._lanes.reaper
        if reaper.is_hostile(context.peer):
            raise _overloaded("stalled")
        reception = Reception(messages, context)
        with reaper.watching(reception):
            message = reception.take()
        issued = self._issuer.issue(
            self._translate(message, context, audiences, budget)
        )
        return self._responses.write(
            issued.leaf_pem, issued.chain_pem, issued.anchors_pem
        )

    def _translate(
        self,
        message: bytes | None,
        context: Any,
        audiences: frozenset[str],
        budget: Budget,
    ) -> Call:
        try:
            if message is None:
                raise RequestError("the call has no message", rule="request.protobuf")
            request = read_request(message)
            credential = _credential(context)
        except BridgeError as error:
            self._issuer.refuse(error, front=_FRONT)
            raise
        return Call(
            front=_FRONT,
            csr=request.csr,
            credential=credential,
            audiences=audiences,
            ttl_seconds=request.ttl_seconds,
            cert_signer=request.cert_signer,
            impersonated=request.impersonated,
            budget=budget,
        )

    def _ended(self, code: str, arrived: float) -> None:
        self._metrics.requests(_FRONT, code).inc()
        self._seconds.observe(time.monotonic() - arrived)


def _credential(context: Any) -> Credential:
    # Where a client certificate was asked for, the listener let nobody in without one:
    # there it is the credential, and headers count for nothing.
    authentication = context.auth_context()
    certificates = authentication.get("x509_pem_cert")
    if certificates:
        if len(certificates) != 1:
            raise AuthenticationError("a connection has one client certificate")
        return CertificateCredential(certificates[0])
    authorization: list[str] = []
    cluster_ids: list[str] = []
    for key, value in context.invocation_metadata():
        if key == "authorization":
            authorization.append(value)
        elif key == "clusterid":
            cluster_ids.append(value)
    return TokenCredential(tuple(authorization), tuple(cluster_ids))


def _overloaded(excess: str) -> OverloadedError:
    text = {
        "in_flight": "the CA has all the calls that it can take",
        "queue": "the CA could not begin with the call in time",
        "stalled": "several calls of this connection have left their messages out",
    }
    return OverloadedError(text[excess], rule=f"overload.{excess.replace('_', '-')}")


def _reason(error: OverloadedError) -> str:
    reason = error.rule.removeprefix("overload.").replace("-", "_")
    return reason if reason in SHED_REASONS else "backend"
