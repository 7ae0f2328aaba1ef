from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from bridge.config import ConfigText
from bridge.errors import ConfigError
from bridge.process.reload import ConfigFile, Reloads


def looks(file: ConfigFile, number: int) -> list[bool]:
    return [file.changed() for _ in range(number)]


def test_a_change_is_told_once_and_when_it_has_settled(tmp_path: Path) -> None:
    path = tmp_path / "bridge.yaml"
    path.write_text("a")
    file = ConfigFile(path, "a")
    assert looks(file, 2) == [False, False]
    path.write_text("b")
    assert looks(file, 3) == [False, True, False]
    path.touch()
    assert looks(file, 2) == [False, False]


def test_a_file_that_is_being_written_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "bridge.yaml"
    file = ConfigFile(path, "a")
    for text in ("b", "bc", "bcd"):
        path.write_text(text)
        assert not file.changed()
    assert file.changed()


def test_a_file_that_has_gone_is_a_change(tmp_path: Path) -> None:
    path = tmp_path / "bridge.yaml"
    file = ConfigFile(path, "a")
    assert looks(file, 3) == [False, True, False]
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        ConfigText.read(path)


def test_a_swapped_link_is_a_change(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
    link = tmp_path / "link"
    link.symlink_to("one")
    file = ConfigFile(link, "one")
    other = tmp_path / "other"
    other.symlink_to("two")
    other.replace(link)
    assert looks(file, 2) == [False, True]


def test_what_was_read_for_another_reason_is_no_change(tmp_path: Path) -> None:
    path = tmp_path / "bridge.yaml"
    path.write_text("b")
    file = ConfigFile(path, "a")
    file.told("b")
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
