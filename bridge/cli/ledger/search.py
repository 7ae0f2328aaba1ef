"""`meshca ledger search` and `export`: what was issued, to whom, what was refused."""

import json
import re
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from bridge import config
from bridge.cli.console import ConfigOption, OutputOption, complain, print_json
from bridge.cli.ledger.output import ExportOutput, public, show, write_csv
from bridge.dns_names import is_label, is_subdomain
from bridge.errors import RequestError
from bridge.ledger.events import EARLIER_KINDS, Ending, Event, Intent, Outcome, Purpose
from bridge.spiffe import SpiffeID, TrustDomain

if TYPE_CHECKING:
    # It imports SQLAlchemy, which no other command needs.
    from bridge.ledger.archive.archive import Archive

_KINDS = (
    *(row.kind for row in get_args(Event) if not issubclass(row, Ending)),
    *(outcome.value for outcome in Outcome),
    *EARLIER_KINDS,
)
"""The kinds of the ledger's entries."""

_SPAN = re.compile(r"([0-9]{1,9})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_DIGITS = re.compile(r"[0-9a-f]+")
_DIGEST_DIGITS = 64
_ID_DIGITS = 32
_LINKERD = re.compile(r"([^./]+)\.([^./]+)\.serviceaccount\.identity\.[^./]+\.([^/]+)")
"""An identity of Linkerd: account, namespace and trust domain."""

Since = Annotated[
    str,
    typer.Option(
        metavar="TIME",
        help="Since this time, in UTC: 2026-11-23T08:00, or 24h for the last 24 hours.",
    ),
]


def search(  # noqa: PLR0913 - options of a command
    *,
    config_file: ConfigOption,
    serial: Annotated[str, typer.Option(help="Serial number, in hex.")] = "",
    caller: Annotated[
        str, typer.Option(help="SPIFFE ID of the caller, or its identity in Linkerd.")
    ] = "",
    namespace: Annotated[str, typer.Option(help="Namespace of the caller.")] = "",
    pod: Annotated[str, typer.Option(help="Pod of the caller: NAMESPACE/NAME.")] = "",
    cluster: Annotated[
        str, typer.Option(help="Cluster of the caller, as the configuration names it.")
    ] = "",
    issuing_ca: Annotated[
        str, typer.Option(help="Issuing CA, as the configuration names it.")
    ] = "",
    request: Annotated[
        str, typer.Option(help="ID of a call, which its attempts share.")
    ] = "",
    purpose: Annotated[str, typer.Option(help=", ".join(Purpose))] = "",
    certificate: Annotated[
        str, typer.Option(help="Certificate fingerprint (SHA-256).")
    ] = "",
    key: Annotated[str, typer.Option(help="SHA-256 of the public key's DER.")] = "",
    kind: Annotated[str, typer.Option(help=", ".join(_KINDS))] = "",
    unsettled: Annotated[
        bool,
        typer.Option(
            "--unsettled",
            help="Attempts that ended `unknown` and are not settled by `reconcile`.",
        ),
    ] = False,
    since: Since = "",
    until: Annotated[str, typer.Option(metavar="TIME", help="Before this time.")] = "",
    limit: Annotated[
        int, typer.Option(min=1, help="The number of entries; the newest are shown.")
    ] = 100,
    output: OutputOption = "text",
) -> None:
    """Find entries of the archive, oldest first.

    An entry that matches is shown with the other entries of the same attempt. The
    server may be running; its newest entries arrive within a second. An entry `issued`
    is shown with the end of validity of what was issued. In a pipe, the columns are
    time, kind, caller, issuing CA, serial number, not after, rule and, for an attempt
    that ended `unknown`, what it was settled as, with tabs between them. Exits with 1
    when nothing matches.
    """
    if unsettled and kind not in {"", Outcome.UNKNOWN}:
        raise typer.BadParameter("--unsettled: expected no other --kind than unknown")
    wanted: dict[str, Any] = {
        "serial": _parsed_serial(serial),
        "caller": _parsed_caller(caller),
        "namespace": _parsed_namespace(namespace),
        "pod": _parsed_pod(pod),
        "cluster": cluster,
        "issuing_ca": issuing_ca,
        "request": _parsed_request(request),
        "purpose": _parsed_word(purpose, "--purpose", [*Purpose]),
        "certificate": _parsed_digest(certificate, "--certificate"),
        "key": _parsed_digest(key, "--key"),
        "kind": Outcome.UNKNOWN.value
        if unsettled
        else _parsed_word(kind, "--kind", _KINDS),
        "unsettled": unsettled,
        "since": _parsed_moment(since, "--since"),
        "until": _parsed_moment(until, "--until"),
        "limit": limit,
    }
    from bridge.ledger.archive.queries import Query  # noqa: PLC0415 - see the top

    archive = open_archive(config_file)
    try:
        found = _completed(archive, archive.search(Query(**wanted)))
    finally:
        archive.close()
    if output == "json":
        print_json({"entries": [public(row) for row in found]})
    elif found:
        show(found)
    else:
        complain("nothing found")
    if not found:
        raise typer.Exit(1)


def _completed(
    archive: "Archive", rows: Iterable[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    # Adds to an entry what other entries of its attempt have: the end of validity of
    # what was issued, and in `settled` what became of an attempt that ended `unknown`.
    found = [dict(row) for row in rows]
    unknown = [row for row in found if row["kind"] == Outcome.UNKNOWN]
    results = {
        row["attempt"]: json.loads(row["body"])["result"]
        for row in archive.of_attempts([row["attempt"] for row in unknown], "settled")
    }
    for row in unknown:
        row["settled"] = results.get(row["attempt"], "")
    issued = [
        row
        for row in found
        if row["kind"] == Outcome.ISSUED and row["not_after"] is None
    ]
    intents = archive.of_attempts([row["attempt"] for row in issued], Intent.kind)
    ends = {row["attempt"]: row["not_after"] for row in intents}
    for row in issued:
        row["not_after"] = ends.get(row["attempt"])
    return found


def export(
    *,
    config_file: ConfigOption,
    since: Since = "",
    output: Annotated[
        ExportOutput,
        typer.Option("--output", "-o", help="For programs, or for a spreadsheet."),
    ] = ExportOutput.JSONL,
) -> None:
    """Write all entries of the archive to stdout, oldest first.

    With `jsonl`, each line is the journal's own, byte by byte: its SHA-256 is what the
    next row of the same writer repeats.
    """
    begin = _parsed_moment(since, "--since")
    from bridge.ledger.archive.queries import Query  # noqa: PLC0415 - see the top

    archive = open_archive(config_file)
    try:
        rows = archive.search(Query(since=begin))
        if output is ExportOutput.CSV:
            write_csv(rows)
        else:
            for row in rows:
                typer.echo(row["body"])
    finally:
        archive.close()


def open_archive(config_file: Path) -> "Archive":
    """Open the archive that a configuration names; it must be there."""
    from bridge.ledger.archive.archive import Archive  # noqa: PLC0415 - see the top

    return Archive.open(config.read(config_file).ledger.archive, make=False)


# Options. A value that is mistyped is refused: the answer would be `nothing found`,
# and read as `it was never issued`.


def _parsed_serial(value: str) -> str:
    """Return a serial number in hex digits, as tools write it or empty."""
    digits = _plain(value).removeprefix("0x")
    if value and not _DIGITS.fullmatch(digits):
        raise _bad("--serial", "hex digits, such as 0a:1b or 0x0a1b", value)
    return digits


def _parsed_digest(value: str, option: str) -> str:
    """Return a SHA-256 in hex digits, as tools write it or empty."""
    digits = _plain(value)
    if value and not (len(digits) == _DIGEST_DIGITS and _DIGITS.fullmatch(digits)):
        raise _bad(option, "a SHA-256 in 64 hex digits", value)
    return digits


def _parsed_word(value: str, option: str, words: Collection[str]) -> str:
    """Return one of `words`, or empty."""
    if value and value not in words:
        raise _bad(option, f"one of {', '.join(words)}", value)
    return value


def _parsed_caller(value: str) -> str:
    """Return a caller as the ledger has it, a SPIFFE ID, or empty."""
    try:
        if match := _LINKERD.fullmatch(value):
            account, namespace, domain = match.groups()
            domain = TrustDomain(domain)
            return str(SpiffeID.of_service_account(domain, namespace, account))
        return str(SpiffeID.parse(value)) if value else ""
    except RequestError as error:
        expected = (
            "a SPIFFE ID, or ACCOUNT.NAMESPACE.serviceaccount.identity."
            "CONTROL-PLANE-NAMESPACE.TRUST-DOMAIN"
        )
        raise _bad("--caller", expected, value) from error


def _parsed_namespace(value: str) -> str:
    """Return the name of a namespace, or empty."""
    if value and not is_label(value):
        raise _bad("--namespace", "the name of a namespace", value)
    return value


def _parsed_pod(value: str) -> str:
    """Return a pod's namespace and name, or empty."""
    namespace, _, name = value.partition("/")
    if value and not (is_label(namespace) and is_subdomain(name)):
        raise _bad("--pod", "NAMESPACE/NAME of a pod", value)
    return value


def _parsed_request(value: str) -> str:
    """Return the ID of a call in 32 hex digits, or empty."""
    digits = _plain(value)
    if value and not (len(digits) == _ID_DIGITS and _DIGITS.fullmatch(digits)):
        raise _bad("--request", "an ID of 32 hex digits", value)
    return digits


def _parsed_moment(value: str, option: str) -> int | None:
    """Return a time or a span before now in microseconds since 1970-01-01 UTC."""
    if not value:
        return None
    try:
        if match := _SPAN.fullmatch(value):
            found = datetime.now(UTC) - timedelta(**{_UNITS[match[2]]: int(match[1])})
        else:
            found = datetime.fromisoformat(value)
    except (ValueError, OverflowError):
        expected = "a time such as 2026-11-23T08:00, or a span such as 24h"
        raise _bad(option, expected, value) from None
    if found.tzinfo is None:
        found = found.replace(tzinfo=UTC)
    return round(found.timestamp() * 1e6)


def _plain(value: str) -> str:
    return value.replace(":", "").strip().lower()


def _bad(option: str, expected: str, found: str) -> typer.BadParameter:
    return typer.BadParameter(f"{option}: expected {expected} (found {found!r})")
