import json
import re
import subprocess
import sys
from pathlib import Path

MESHCA = Path(sys.executable).parent / "meshca"


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [MESHCA, *arguments], capture_output=True, text=True, check=False, timeout=60
    )


def test_plugins_are_listed_for_people_and_for_programs() -> None:
    text, parsed = run("plugins"), run("plugins", "-o", "json")
    assert text.returncode == parsed.returncode == 0
    assert re.search(
        r"^ *file +bridge_file:FileCA +meshca-bridge +\S+", text.stdout, re.MULTILINE
    )
    (ours,) = [
        one for one in json.loads(parsed.stdout)["plugins"] if one["name"] == "file"
    ]
    assert ours == {
        "name": "file",
        "module": "bridge_file:FileCA",
        "distribution": "meshca-bridge",
        "version": ours["version"],
    }
