"""The printable record of a ceremony: a transcript as one HTML file without scripts.

Every value is escaped, and characters that are not printable, such as those that turn
the direction of a text, are shown by their number.
"""

from collections.abc import Iterator, Mapping, Sequence
from html import escape

from bridge.hierarchy.transcript import (
    HIERARCHY,
    CeremonyStep,
    OfficerSignature,
    Record,
)
from bridge.hierarchy.words import lines_of

_STYLE = """
body { font: 10pt/1.4 sans-serif; margin: 2em; max-width: 60em }
table { border-collapse: collapse; width: 100%; margin: 0.5em 0 1.5em }
th, td { border: 1px solid #999; padding: 0.3em 0.5em; text-align: left;
         vertical-align: top; overflow-wrap: anywhere }
th { width: 9em; background: #eee }
code { font-family: monospace }
.problem { border: 3px solid #b00; padding: 0.5em 1em }
.line { height: 2.5em }
section { break-inside: avoid }
@page { margin: 15mm }
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def to_html(
    record: Record,
    *,
    title: str,
    officers: Mapping[str, str],
    quorum: int,
    problems: Sequence[str] = (),
) -> str:
    """Return the record as one HTML page, which refers to nothing outside it.

    Args:
        record: The transcript.
        title: The name of the hierarchy.
        officers: The role of each officer, by name.
        quorum: How many of them have to sign.
        problems: Why the transcript does not verify; they stand at the top.
    """
    return "".join(_page(record, title, officers, quorum, problems))


def _page(
    record: Record,
    title: str,
    officers: Mapping[str, str],
    quorum: int,
    problems: Sequence[str],
) -> Iterator[str]:
    heading = f"Record of the ceremony: {title}"
    yield "<!DOCTYPE html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
    yield f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
    yield f"<title>{_text(heading)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
    yield f"<h1>{_text(heading)}</h1>\n"
    yield from _state(record, quorum, problems)
    for line in record.lines:
        yield "<section>\n"
        yield from _entry(line) if isinstance(line, CeremonyStep) else _signature(line)
        yield "</section>\n"
    yield "<h2>Signed on paper</h2>\n<table>\n<tr><td>Officer</td><td>Role</td>"
    yield "<td>Date, signature</td></tr>\n"
    for name, role in officers.items():
        yield f"<tr class='line'><td>{_text(name)}</td><td>{_text(role)}</td><td></td>"
        yield "</tr>\n"
    yield "</table>\n</body>\n</html>\n"


def _state(record: Record, quorum: int, problems: Sequence[str]) -> Iterator[str]:
    if problems:
        yield "<div class='problem'>\n<p><strong>Not complete:</strong></p>\n<ul>\n"
        yield from (f"<li>{_text(one)}</li>\n" for one in problems)
        yield "</ul>\n</div>\n"
    hierarchy = record.entries[-1].details.get(HIERARCHY) if record.entries else None
    signed = ", ".join(one.officer for one in record.signatures) or "nobody"
    rows = [
        ("Entries", _text(str(len(record.entries)))),
        ("Signed by", _text(f"{signed} (quorum: {quorum})")),
        ("Last line", _digest(record.head)),
    ]
    if hierarchy:
        rows.append(("Hierarchy file", _digest(hierarchy)))
    yield from _table(rows)


def _entry(entry: CeremonyStep) -> Iterator[str]:
    yield f"<h2>{entry.number}. {_text(entry.command)}</h2>\n"
    rows = [
        ("Time", f"{entry.time:%Y-%m-%d %H:%M:%S} UTC"),
        ("Operator", _text(entry.operator)),
    ]
    rows += [(_text(name), _text(value)) for name, value in entry.details.items()]
    if entry.hsm is not None:
        device = entry.hsm
        told = f"{device.model} serial {device.serial}, firmware {device.firmware}"
        rows.append(("HSM", _text(told.strip())))
    rows.append(("Versions", _text(_listed(entry.versions))))
    rows += [
        (f"<code>{_text(path)}</code>", _digest(one))
        for path, one in sorted(entry.files.items())
    ]
    yield from _table(rows)


def _signature(line: OfficerSignature) -> Iterator[str]:
    yield f"<h2>{line.number}. Signature of {_text(line.officer)}</h2>\n"
    yield from _table(
        [
            ("Time", f"{line.time:%Y-%m-%d %H:%M:%S} UTC"),
            ("Over all lines to", _digest(line.previous)),
            ("Public key", f"<code>{_text(line.public_key)}</code>"),
            ("Signature", f"<code>{_text(line.signature)}</code>"),
        ]
    )


def _table(rows: Sequence[tuple[str, str]]) -> Iterator[str]:
    yield "<table>\n"
    yield from (f"<tr><th>{name}</th><td>{cell}</td></tr>\n" for name, cell in rows)
    yield "</table>\n"


def _digest(digest: str) -> str:
    words = "<br>".join(_text(line) for line in lines_of(digest))
    return f"<code>{_text(digest)}</code><br>{words}"


def _listed(values: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(values.items()))


def _text(value: str) -> str:
    shown = "".join(one if one.isprintable() else f"\\u{ord(one):04x}" for one in value)
    return escape(shown)
