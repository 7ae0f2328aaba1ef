import subprocess
import sys
from pathlib import Path

import pytest

from bridge import registry
from bridge.errors import PluginError
from bridge.registry import (
    COMMANDS,
    EXTRAS,
    GROUP,
    Plugin,
    installed,
    load,
    load_command,
    plugin_commands,
)
from bridge_file import FileCA

GOOD = "class CA:\n    api_version = 2\n"


class Site:
    """A folder of installed distributions, in front of the real ones."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def install(
        self,
        distribution: str,
        entry: str,
        module: str,
        source: str = GOOD,
        *,
        group: str = GROUP,
    ) -> None:
        """Install `module`, with `entry` (`name = module:attribute`) in a group."""
        (self.folder / f"{module}.py").write_text(source)
        info = self.folder / f"{distribution}-2.1.dist-info"
        info.mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 2.1\n"
        (info / "METADATA").write_text(metadata)
        (info / "entry_points.txt").write_text(f"[{group}]\n{entry}\n")
        (info / "RECORD").write_text(f"{module}.py,,\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.syspath_prepend(str(tmp_path))
    return Site(tmp_path)


def test_the_file_backend_is_loaded_by_its_name() -> None:
    assert load("file") is FileCA


def test_a_plugin_of_a_third_party_is_listed_and_loaded(site: Site) -> None:
    site.install("acme-ca", "acme = acme_ca_1:CA", "acme_ca_1")
    assert Plugin("acme", "acme_ca_1:CA", "acme-ca", "2.1") in installed()
    assert load("acme").api_version == 2


def test_the_list_is_sorted_and_imports_nothing(site: Site) -> None:
    site.install("z-ca", "aaa = z_ca_1:CA", "z_ca_1", "raise SystemExit\n")
    site.install("a-ca", "zzz = a_ca_1:CA", "a_ca_1", "raise SystemExit\n")
    names = [plugin.name for plugin in installed()]
    assert names == sorted(names)
    assert {"aaa", "zzz", "file"} <= {*names}
    assert not {"z_ca_1", "a_ca_1"} & {*sys.modules}


def test_loading_one_plugin_imports_no_other(site: Site) -> None:
    site.install("bad-ca", "bad = bad_ca_1:CA", "bad_ca_1", "raise SystemExit\n")
    load("file")
    assert "bad_ca_1" not in sys.modules


def test_two_plugins_of_one_name_are_refused_with_both_owners(site: Site) -> None:
    site.install("one-ca", "twin = one_ca_1:CA", "one_ca_1", "raise SystemExit\n")
    site.install("two-ca", "twin = two_ca_1:CA", "two_ca_1", "raise SystemExit\n")
    with pytest.raises(
        PluginError,
        match=r"2 plugins are called 'twin': one-ca, two.*uninstall the others",
    ):
        load("twin")


def test_nobody_can_stand_in_for_our_own(site: Site) -> None:
    site.install("evil-ca", "file = evil_ca_1:CA", "evil_ca_1", "raise SystemExit\n")
    with pytest.raises(PluginError, match="plugins are called 'file': evil-ca, meshca"):
        load("file")


def test_an_import_package_of_two_distributions_is_refused(site: Site) -> None:
    site.install("one-ca", "own = shared_ca_1:CA", "shared_ca_1", "raise SystemExit\n")
    site.install("two-ca", "other = shared_ca_1:X", "shared_ca_1", "raise SystemExit\n")
    with pytest.raises(
        PluginError,
        match=r"'shared_ca_1' is shipped by one-ca, two-ca: expected one owner",
    ):
        load("own")


@pytest.mark.parametrize(
    ("file", "content", "is_owner"),
    [
        pytest.param("RECORD", "a.py,,\nmany_ca/b.py,,\n", True, id="a folder"),
        pytest.param("top_level.txt", "a\nmany_ca\n", True, id="a list of packages"),
        pytest.param("RECORD", "a/many_ca.py,,\n", False, id="a module of another"),
        pytest.param("RECORD", "many_ca_2.py,,\n", False, id="a longer name"),
        pytest.param("RECORD", "many_ca.pth,,\n", False, id="an editable install"),
        pytest.param("top_level.txt", "many_ca_2\n", False, id="another package"),
    ],
)
def test_a_distribution_owns_the_packages_that_it_lists(
    site: Site, file: str, content: str, *, is_owner: bool
) -> None:
    site.install("one-ca", "many = many_ca:CA", "many_ca")
    site.install("two-ca", "other = a:CA", "a")
    (site.folder / "two-ca-2.1.dist-info" / file).write_text(content)
    if is_owner:
        with pytest.raises(PluginError, match="'many_ca' is shipped by one-ca, two"):
            load("many")
    else:
        assert load("many").api_version == 2


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("import no_such_library\n", "cannot be imported: No module named 'no_such_li"),
        (
            "class Other: pass\n",
            "is not where its entry point says: broken_ca:CA; install its package anew",
        ),
        ("class CA: pass\n", "speaks version None of the plugin contract, this bri"),
        (
            "class CA:\n    api_version = 1\n",
            "this bridge speaks version 2: install a version of broken that was built",
        ),
        (
            "class CA:\n    api_version = 3\n",
            "speaks version 3 .* version 2: install a newer bridge, or an older vers",
        ),
        ("class CA:\n    api_version = '2'\n", "speaks version 2 of the plugin cont"),
    ],
)
def test_a_plugin_that_cannot_be_used_says_why(
    site: Site, source: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "broken_ca", raising=False)
    site.install("broken", "broken = broken_ca:CA", "broken_ca", source)
    with pytest.raises(PluginError, match=says):
        load("broken")


def test_a_missing_library_names_the_extra_that_brings_it(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "EXTRAS", {"hsm": "pkcs11"})
    site.install("hsm", "hsm = hsm_ca_1:CA", "hsm_ca_1", "import no_such_library\n")
    with pytest.raises(PluginError, match=r"install meshca-bridge\[pkcs11\]") as found:
        load("hsm")
    assert "no_such_library" in found.value.detail


def test_the_pkcs11_backend_without_its_library_names_its_extra() -> None:
    code = (
        "import sys; sys.modules['pkcs11'] = None; "
        "from bridge.registry import load; load('pkcs11')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=False, timeout=60
    )
    assert b"cannot be imported: install meshca-bridge[pkcs11]" in done.stderr


def test_a_plugin_that_is_not_there_tells_which_are() -> None:
    with pytest.raises(
        PluginError, match=r"no backend 'x' is installed here; installed: .*file"
    ):
        load("x")


@pytest.mark.parametrize(
    ("name", "extra"), [*EXTRAS.items(), *registry.COMMAND_EXTRAS.items()]
)
def test_every_extra_is_one_of_the_project(name: str, extra: str) -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    extras = text.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    assert f"\n{extra} = " in extras, name


def test_the_list_of_a_fresh_process_imports_no_plugin() -> None:
    code = (
        "import sys; from bridge.registry import installed; installed(); "
        "sys.exit(any(name.startswith('bridge_') for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_command_of_a_plugin_is_listed_and_imported_when_it_is_run(
    site: Site,
) -> None:
    site.install(
        "tool", "tool = tool_1:app", "tool_1", "app = 'here'\n", group=COMMANDS
    )
    assert "tool" in plugin_commands()
    assert "tool_1" not in sys.modules
    assert load_command("tool") == "here"


def test_a_command_without_its_library_names_the_extra(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "COMMAND_EXTRAS", {"tool": "vault"})
    source = "import no_such_library\n"
    site.install("tool", "tool = tool_2:app", "tool_2", source, group=COMMANDS)
    with pytest.raises(
        PluginError,
        match=r"command 'tool' cannot be imported: install meshca-bridge\[vault\]",
    ):
        load_command("tool")
