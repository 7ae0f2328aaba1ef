"""A digest is read aloud as the words of PGP's list, and typed in again."""

import re

import pytest

from bridge.errors import ConfigError
from bridge.hierarchy.words import lines_of, parse_digest, words_of

KNOWN = "e58294f2e9a227486e8b061b31cc528fd7fa3f19"
"""The example of the list's article in Wikipedia."""
WORDS = (
    "topmost istanbul pluto vagabond treadmill pacific brackish dictator goldfish "
    "medusa afflict bravado chatter revolver dupont midsummer stopwatch whimsical "
    "cowbell bottomless"
)
DIGEST = bytes(range(0, 256, 8)).hex()


def test_the_words_are_those_of_other_implementations() -> None:
    assert words_of(KNOWN) == WORDS


def test_each_byte_has_a_word_of_its_own_at_each_kind_of_place() -> None:
    said = [words_of(f"{value:02x}{value:02x}").split() for value in range(256)]
    assert len({word for pair in said for word in pair}) == 512


@pytest.mark.parametrize(
    "text",
    [
        DIGEST,
        DIGEST.upper(),
        f" {DIGEST[:32]} {DIGEST[32:]}\n",
        words_of(DIGEST).title(),
    ],
    ids=["hex", "capitals", "blanks", "words"],
)
def test_a_digest_is_typed_in_as_hex_or_as_words(text: str) -> None:
    assert parse_digest(text) == DIGEST


def test_the_words_come_four_in_a_line() -> None:
    lines = [*lines_of(DIGEST)]
    assert {len(line.split()) for line in lines} == {4}
    assert parse_digest("\n".join(lines)) == DIGEST


def _swapped(words: list[str]) -> list[str]:
    return [words[1], words[0], *words[2:]]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (_swapped(words_of(DIGEST).split()), "word 1, .* a place beside it"),
        ([*words_of(DIGEST).split()[1:], "absurd"], "word 1, .* a place beside it"),
        (["aardvarks", *words_of(DIGEST).split()[1:]], "word 1, .* not in the list"),
        (words_of(DIGEST).split()[:-1], "found 31 words"),
        ([DIGEST[:-1]], "found 1 words"),
        ([DIGEST[:-1] + "g"], "found 1 words"),
    ],
    ids=["swapped", "left out", "unknown", "short", "short hex", "no hex"],
)
def test_words_that_were_misheard_are_refused(words: list[str], found: str) -> None:
    with pytest.raises(ConfigError, match=f"64 hex digits or as 32 words.*{found}"):
        parse_digest(" ".join(words))


def test_the_message_shows_the_word() -> None:
    with pytest.raises(ConfigError, match=re.escape("'aardvarks'")):
        parse_digest(" ".join(["aardvarks"] * 32))
