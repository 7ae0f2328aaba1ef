"""The documents have short sentences, the terms of the field, and links that work."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.documents import metrics, refusals

ROOT = Path(__file__).parents[2]
TOP = ("README.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md")
ROOMS = ("docs/**/*.md", "softhsm/*.md", "deploy/*.md")
DOCUMENTS = sorted(
    [ROOT / name for name in TOP]
    + [path for pattern in ROOMS for path in ROOT.glob(pattern)]
)
SOURCES = [
    path
    for folder in ("bridge", "plugins")
    for path in (ROOT / folder).rglob("*.py")
    if not {"_proto", "cli", "client"} & {*path.parts}
]
RULE = re.compile(r'\brule="([^"]+)"')
MOST_WORDS = 40
README_LINES = 120
BLOCK = re.compile(r"^ *(```|~~~).*?^ *\1[^\n]*$", re.DOTALL | re.MULTILINE)
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
STARTS = re.compile(r"^ *(?:[*-] |[0-9]+\. |#|>)")
SENTENCE = re.compile(r"(?<=[.!?])[)\"*_]*\s+(?=[^a-z])")
LINK = re.compile(r"\[[^]]*\]\(([^)#\s]*)(#[^)\s]*)?\)")
OLD_WORDS = {
    r"\banew\b": "reload, or again",
    r"\bthie(?:f|ves)\b": "whoever has the key; if the issuing key were compromised",
    r"\bwish(?:es|ed)?\b": "requested lifetime; request",
    r"\battest(?:s|ing|ation)?\b": "accept a journal",
    r"(?<!data )(?<!control )\bplanes?\b": "data plane",
    r"\bwhom\b": "name who is meant",
    r"\bcan't live with\b": "does not work with",
    r"\btakes? over\b": "say what happens",
}
"""What the documents said before in words of their own, and what to write."""


def texts(document: Path) -> Iterator[str]:
    """Yield each paragraph, item of a list, heading and cell of a table."""
    text = COMMENT.sub("\n\n", BLOCK.sub("\n\n", document.read_text("utf-8")))
    paragraph: list[str] = []
    for line in [*text.splitlines(), ""]:
        ends = not line.strip() or line.lstrip().startswith("|")
        if paragraph and (ends or STARTS.match(line)):
            yield " ".join(paragraph)
            paragraph = []
        if line.lstrip().startswith("|"):
            for cell in re.split(r"(?<!\\)\|", line.strip().strip("|")):
                yield from cell.split("<br>")
        elif line.strip():
            paragraph.append(STARTS.sub("", line, count=1).strip())


def sentences(document: Path) -> Iterator[str]:
    for text in texts(document):
        # What stands in code is one word, however long.
        plain = re.sub(r"`[^`]*`", "`code`", text)
        plain = re.sub(r"\]\([^)]*\)", "]", plain)
        yield from SENTENCE.split(plain)


def words(sentence: str) -> int:
    return len([word for word in sentence.split() if re.search(r"\w", word)])


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_no_sentence_is_longer_than_forty_words(document: Path) -> None:
    long = [
        f"{words(sentence)} words: {sentence}"
        for sentence in sentences(document)
        if words(sentence) > MOST_WORDS
    ]
    assert not long, "\n".join(long)


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_the_terms_are_those_of_the_field(document: Path) -> None:
    found = [
        f"{match[0]!r} (write: {instead}): {sentence}"
        for sentence in sentences(document)
        for old, instead in OLD_WORDS.items()
        if (match := re.search(old, sentence, re.IGNORECASE))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_a_link_leads_to_a_file_and_a_heading(document: Path) -> None:
    text = BLOCK.sub("", document.read_text("utf-8"))
    for target, heading in LINK.findall(text):
        if target.startswith(("http:", "https:")):
            continue
        path = (document.parent / target) if target else document
        assert path.exists(), target
        if heading:
            assert heading[1:] in anchors(path), f"{target}{heading}"


def anchors(document: Path) -> set[str]:
    """Return what a heading is called in a link."""
    found = re.findall(r"^#+ (.*)$", document.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", name.lower()).replace(" ", "-") for name in found}


def test_every_room_of_the_product_is_listed_for_contributors() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    rooms = {
        f"{path.name}/" if path.is_dir() else path.name
        for path in (ROOT / "bridge").iterdir()
        if not path.name.startswith("_") and path.suffix in {"", ".py"}
    }
    assert len(rooms) > 20
    assert {room for room in rooms if f"`{room}`" not in text} == set()


def test_the_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text("utf-8").splitlines()
    assert len(lines) <= README_LINES


def test_a_long_sentence_is_found(tmp_path: Path) -> None:
    document = tmp_path / "x.md"
    document.write_text(f"# Title\n\n* one\n  two\n\n| a | {'b ' * 41}|\n\n{'c ' * 41}")
    assert [words(one) for one in sentences(document)] == [1, 2, 1, 41, 41]


def test_code_is_not_read_as_sentences(tmp_path: Path) -> None:
    document = tmp_path / "x.md"
    document.write_text(f"Say `{'x ' * 50}` now.\n\n```sh\n{'x ' * 50}\n```\n")
    assert [words(one) for one in sentences(document)] == [3]


def test_every_rule_that_the_code_names_is_in_the_reference() -> None:
    text = (ROOT / "docs/reference/refusals.md").read_text("utf-8")
    listed = set(re.findall(r"^\| `([^`]+)`", text, re.MULTILINE))
    named = {each for path in SOURCES for each in RULE.findall(path.read_text("utf-8"))}
    assert len(named) > 50
    assert named <= listed


def test_a_message_of_the_troubleshooting_page_is_one_of_the_code() -> None:
    text = (ROOT / "docs/troubleshooting.md").read_text("utf-8")
    messages = re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)
    said = literals()
    parts = {
        part.strip(" .:;,()")
        for message in messages
        for part in message.split("\N{HORIZONTAL ELLIPSIS}")
    }
    assert len(messages) > 40
    assert {part for part in parts if part not in said} == set()
    assert len({*messages}) == len(messages)


def literals() -> str:
    """Return every text of the product's code, one a line."""
    return "\n".join(
        node.value
        for folder in ("bridge", "plugins")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def test_rules_that_are_put_together_are_in_the_reference() -> None:
    found = {rule for rule, _, _ in refusals.refusals()}
    assert {
        "ledger.room",  # a constant of another module
        "linkerd.token",  # the name of a loop
        "misissued.names",  # an argument, before the text
        "overload.in-flight",  # chosen from a table
        "token.signature",  # an argument
        "ttl.maximum",  # an argument of a method
    } <= found


def test_every_metric_that_the_code_names_is_in_the_reference() -> None:
    listed = {re.sub("_(total|info)$", "", name) for name in metrics.found()}
    named = {
        each
        for path in SOURCES
        for each in re.findall(r'\(\s*"(meshca_[a-z_]+)"', path.read_text("utf-8"))
    }
    assert len(named) > 10
    assert named <= listed | {f"{name}_info" for name in listed}


@pytest.mark.parametrize("document", sorted((ROOT / "docs/reference").glob("*.md")))
def test_the_reference_describes_everything_that_it_lists(document: Path) -> None:
    text = document.read_text("utf-8")
    assert re.findall(r"^\| (`[^|]+`) \|(?:.*\|)?  \|$", text, re.MULTILINE) == []
