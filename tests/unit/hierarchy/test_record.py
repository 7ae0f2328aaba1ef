"""The printable record is one HTML file: nothing in it runs, and nothing is loaded."""

from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

from bridge.hierarchy.record import to_html
from bridge.hierarchy.transcript import FILE_NAME, HSM, Record, Transcript, read
from bridge.hierarchy.words import words_of

AT = datetime(2026, 6, 1, 12, tzinfo=UTC)
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> \"'&\u202e\x07"
DIGEST = "ab" * 32


class Page(HTMLParser):
    """What a browser would see."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def record_of(folder: Path, text: str = HOSTILE) -> Record:
    transcript = Transcript(folder / FILE_NAME)
    transcript.append(
        text,
        text,
        AT,
        files={text: DIGEST},
        details={text: text, "hierarchy": DIGEST},
        hsm=HSM(serial=text, firmware=text, model=text),
    )
    return read(transcript.path)


def page_of(folder: Path) -> Page:
    html = to_html(
        record_of(folder),
        title=HOSTILE,
        officers={HOSTILE: HOSTILE},
        quorum=2,
        problems=[HOSTILE],
    )
    return Page(html)


def test_nothing_that_stands_in_the_transcript_becomes_markup(tmp_path: Path) -> None:
    page = page_of(tmp_path)
    assert not page.tags & {"script", "img", "link", "iframe", "object", "a", "form"}
    assert page.attributes <= {"lang", "charset", "http-equiv", "content", "class"}
    # What is there is shown as it is; only what cannot be seen has its number instead.
    shown = HOSTILE.replace("\u202e", "\\u202e").replace("\x07", "\\u0007")
    # Title and heading; command, operator, detail twice, path; HSM; officer; problem.
    assert page.text.count(shown) == 2 + 5 + 3 + 2 + 1
    assert "\u202e" not in page.text
    assert "\x07" not in page.text


def test_the_page_allows_itself_to_load_nothing(tmp_path: Path) -> None:
    html = to_html(record_of(tmp_path), title="corp", officers={}, quorum=0)
    assert "default-src 'none'; style-src 'unsafe-inline'" in html
    assert "http://" not in html
    assert "https://" not in html
    assert "url(" not in html


def test_digests_stand_there_in_hex_and_as_words(tmp_path: Path) -> None:
    record = record_of(tmp_path, "sign eu")
    text = " ".join(Page(to_html(record, title="", officers={}, quorum=0)).text.split())
    for digest in (DIGEST, record.head):
        assert digest in text
        words = "".join(words_of(digest).split())
        assert words in text.replace(" ", "")


def test_what_is_missing_stands_at_the_top(tmp_path: Path) -> None:
    record = record_of(tmp_path, "sign eu")
    told = ["expected the signatures of 2 officers"]
    text = Page(
        to_html(record, title="corp", officers={}, quorum=2, problems=told)
    ).text
    assert text.index("Not complete") < text.index(told[0]) < text.index("sign eu")
    assert "nobody (quorum: 2)" in text
