"""Asks all data planes for their verdicts on many chains."""

from datetime import datetime
from pathlib import Path

from tests.interop.planes.boringssl import ask_boringssl
from tests.interop.planes.verifiers import Verdicts, ask_go, ask_openssl, ask_rustls
from tests.support.parts import builds


def ask_all(names: list[str], folder: Path, now: datetime) -> dict[str, Verdicts]:
    """Return the verdicts of each plane, by its letter in `cases`.

    Args:
        names: Of the chains; `verifiers.write` says which files each has.
        folder: Of the files.
        now: The time of the machine, aware.
    """
    said = {
        "o": ask_openssl(names, folder),
        "g": ask_go(names, folder, now),
        "b": ask_boringssl(names, folder),
    }
    if builds.cargo() is not None:
        said["a"] = ask_rustls("ambient", names, folder)
        said["l"] = ask_rustls("linkerd", names, folder)
    return said
