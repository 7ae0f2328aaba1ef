import os
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from bridge.config import ConfigText, parse
from bridge.errors import ConfigError
from bridge.process.reload import ConfigFile, Reloads, changes
from bridge.system.files import PASSING_ERRORS
from tests.support.harness.configuration import text


def held(path: Path, content: str, anchors: bytes = b"roots") -> ConfigText:
    """Return a configuration in service, whose trust anchors are in a file."""
    roots = path.with_name("roots.pem")
    if not roots.exists():
        roots.write_bytes(b"roots")
    config = parse(text(), path)
    return ConfigText(path, content, config, anchors)


def looks(file: ConfigFile, number: int) -> list[bool]:
    return [file.changed() for _ in range(number)]


def test_a_change_is_told_once_and_when_it_has_settled(tmp_path: Path) -> None:
    path = tmp_path / "bridge.yaml"
    path.write_text("a")
    file = ConfigFile(held(path, "a"))
    assert looks(file, 2) == [False, False]
    path.write_text("b")
    assert looks(file, 3) == [False, True, False]
    path.touch()
    assert looks(file, 2) == [False, False]


def test_a_file_that_is_being_written_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "bridge.yaml"
    file = ConfigFile(held(path, "a"))
    for content in ("b", "bc", "bcd"):
        path.write_text(content)
        assert not file.changed()
    assert file.changed()


def test_a_file_that_has_gone_is_a_change(tmp_path: Path) -> None:
    path = tmp_path / "bridge.yaml"
    file = ConfigFile(held(path, "a"))
    assert looks(file, 3) == [False, True, False]
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        ConfigText.read(path)


@pytest.mark.parametrize("number", sorted(PASSING_ERRORS), ids=os.strerror)
def test_a_lack_of_descriptors_is_no_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(path: Path) -> bytes:
        raise OSError(number, os.strerror(number), str(path))

    path = tmp_path / "bridge.yaml"
    path.write_text("a")
    file = ConfigFile(held(path, "a"))
    with monkeypatch.context() as lack:
        lack.setattr(Path, "read_bytes", refuse)
        assert looks(file, 3) == [False] * 3
    assert looks(file, 3) == [False] * 3
    path.write_text("b")
    assert looks(file, 2) == [False, True]


def test_a_swapped_link_is_a_change(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
    link = tmp_path / "link"
    link.symlink_to("one")
    file = ConfigFile(held(link, "one"))
    other = tmp_path / "other"
    other.symlink_to("two")
    other.replace(link)
    assert looks(file, 2) == [False, True]


def test_changed_trust_anchors_are_a_change(tmp_path: Path) -> None:
    path = tmp_path / "bridge.yaml"
    path.write_text("a")
    file = ConfigFile(held(path, "a"))
    assert looks(file, 2) == [False, False]
    for content in (b"other", b"roots"):
        (tmp_path / "roots.pem").write_bytes(content)
        assert looks(file, 3) == [False, True, False]
    (tmp_path / "roots.pem").unlink()
    assert looks(file, 3) == [False, True, False]


def test_trust_anchors_of_another_file_are_watched_once_it_is_named(
    tmp_path: Path,
) -> None:
    path = tmp_path / "bridge.yaml"
    path.write_text("a")
    file = ConfigFile(held(path, "a"))
    other = tmp_path / "other.pem"
    other.write_bytes(b"x")
    named = parse(text(trust_anchors="other.pem"), path)
    file.told(ConfigText(path, "a", named, b"x"))
    assert looks(file, 2) == [False, False]
    other.write_bytes(b"y")
    assert looks(file, 2) == [False, True]


def test_line_ends_of_windows_are_no_change(tmp_path: Path) -> None:
    path = tmp_path / "bridge.yaml"
    path.write_bytes(text().replace("\n", "\r\n").encode())
    assert looks(ConfigFile(ConfigText.read(path)), 3) == [False, False, False]


def test_what_was_read_for_another_reason_is_no_change(tmp_path: Path) -> None:
    path = tmp_path / "bridge.yaml"
    path.write_text("b")
    file = ConfigFile(held(path, "a"))
    file.told(held(path, "b"))
    assert looks(file, 2) == [False, False]


@pytest.mark.parametrize(
    ("error", "told"),
    [(ConfigError("no"), ": no"), (ConfigError("no", detail="why"), ": no why")],
)
def test_the_log_tells_a_refusal_without_blanks_at_its_end(
    error: ConfigError, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    Reloads(CollectorRegistry()).refused(error)
    assert caplog.messages == [
        f"the new configuration is refused, the old one serves{told}"
    ]


def test_a_refusal_is_told_until_something_serves() -> None:
    registry = CollectorRegistry()
    reloads = Reloads(registry)

    def shown() -> tuple[float | None, ...]:
        names = ("last_reload_successful", "generation")
        return tuple(registry.get_sample_value(f"meshca_config_{one}") for one in names)

    assert shown() == (1, 1)
    reloads.refused(ConfigError("no"))
    assert shown() == (0, 1)
    assert reloads.warnings() == {
        "configuration": "a change is refused, the old one serves: no"
    }
    reloads.done()
    assert shown() == (1, 2)
    assert reloads.warnings() == {}


BEFORE = """
limits: {drain: 5s, threads: 8}
fronts: {istio: {audiences: [istio-ca]}}
clusters: [{name: east, aliases: []}, {name: west}]
issuing_cas: {a: {plugin: pkcs11, options: {pin_file: one.pin}}}
ledger: {archive: "postgresql://u:secret@h/a", journal: j}
"""


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        pytest.param("", "", [], id="nothing"),
        pytest.param("\nlimits", "\n# why\nlimits", [], id="a comment"),
        pytest.param(
            "drain: 5s", "drain: 9s", ["limits.drain: '5s' becomes '9s'"], id="a value"
        ),
        pytest.param(
            ", threads: 8", "", ["limits.threads is removed: 8"], id="removed"
        ),
        pytest.param(
            "threads: 8",
            "threads: 8, in_flight: 9",
            ["limits.in_flight is added: 9"],
            id="added",
        ),
        pytest.param(
            "threads: 8",
            'threads: "8"',
            ["limits.threads: 8 becomes '8'"],
            id="another type",
        ),
        pytest.param(
            "[istio-ca]",
            "[istio-ca, x]",
            ["fronts.istio.audiences: ['istio-ca'] becomes ['istio-ca', 'x']"],
            id="a list of values",
        ),
        pytest.param(
            "aliases: []",
            "aliases: [e]",
            ["clusters[0].aliases: [] becomes ['e']"],
            id="an empty list",
        ),
        pytest.param(
            "{name: west}",
            "{name: south}",
            ["clusters[1].name: 'west' becomes 'south'"],
            id="an item",
        ),
        pytest.param(
            ", {name: west}",
            "",
            ["clusters[1].name is removed: 'west'"],
            id="gone",
        ),
        pytest.param(
            "secret",
            "another",
            ["ledger.archive is changed"],
            id="a URL",
        ),
        pytest.param(
            "one.pin",
            "two.pin",
            ["issuing_cas.a.options.pin_file is changed"],
            id="an option of a plugin",
        ),
        pytest.param(
            "{pin_file: one.pin}",
            "{pin_file: one.pin, pin: 1234}",
            ["issuing_cas.a.options.pin is added"],
            id="an option is added",
        ),
        pytest.param(
            "issuing_cas: {a: {plugin: pkcs11, options: {pin_file: one.pin}}}",
            "issuing_cas: {b: {plugin: file}}",
            [
                "issuing_cas.a.plugin is removed: 'pkcs11'",
                "issuing_cas.a.options.pin_file is removed",
                "issuing_cas.b.plugin is added: 'file'",
            ],
            id="several keys",
        ),
    ],
)
def test_each_key_that_differs_is_told_once(
    old: str, new: str, told: list[str]
) -> None:
    assert changes(BEFORE, BEFORE.replace(old, new, 1)) == told
