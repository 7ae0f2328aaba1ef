"""TCP ports: find out whether an address can be listened on, and who has it."""

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from bridge.errors import ConfigError

_PROC = Path("/proc")
_LISTENING = "0A"
"""The state of a listening socket in /proc/net/tcp."""
_WORKER = b"bridge.process.worker"


def require_free(key: str, address: str) -> None:
    """Refuse an address that cannot be listened on. Listens for no moment itself.

    A worker of this process may have the port, as in a reload; and so may one whose
    parent is gone, which is about to end. Workers share their ports.

    Args:
        key: The key of the configuration, for the message.
        address: `host:port`; an IPv6 host stands in brackets. Port 0 is always free.

    Raises:
        ConfigError: It is in use, is none of this machine, or is not permitted.
    """
    host, _, port = address.rpartition(":")
    if port == "0":
        return
    try:
        found = socket.getaddrinfo(
            host.strip("[]"),
            int(port),
            type=socket.SOCK_STREAM,
            flags=socket.AI_PASSIVE,
        )
        for family, kind, protocol, _, where in found:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(where)
    except OSError as error:
        if error.errno == errno.EADDRINUSE and _is_left_to_workers(int(port)):
            return
        raise ConfigError(refusal(key, address, error)) from error


def refusal(key: str, address: str, error: OSError) -> str:
    """Return why an address cannot be listened on, with its owner if that is known."""
    why = error.strerror or str(error)
    if error.errno == errno.EADDRINUSE:
        pids = _owners(int(address.rpartition(":")[2]))
        names = [f"{_read(pid, 'comm').decode().strip()} (pid {pid})" for pid in pids]
        owner = f"by {', '.join(names)}" if names else "by a process of another user"
        why = f"it is in use {owner}; stop that process, or choose another port"
    if error.errno == errno.EACCES:
        why += "; choose a port from 1024 on"
    return f"{key}: cannot listen on {address}: {why}"


def _is_left_to_workers(port: int) -> bool:
    pids = _owners(port)
    return bool(pids) and all(
        _WORKER in _read(pid, "cmdline") and _has_no_other_parent(pid) for pid in pids
    )


def _has_no_other_parent(pid: int) -> bool:
    # The fields behind the name, which is in parentheses, begin with state and parent.
    fields = _read(pid, "stat").rpartition(b")")[2].split()
    parent = int(fields[1]) if len(fields) > 1 else 0
    return parent == os.getpid() or b"serve" not in _read(parent, "cmdline").split(
        b"\0"
    )


def _owners(port: int) -> list[int]:
    wanted = {f"socket:[{inode}]" for inode in _inodes(port)}
    return [pid for pid in _processes() if wanted & _sockets(pid)] if wanted else []


def _inodes(port: int) -> Iterator[str]:
    for name in ("tcp", "tcp6"):
        for line in (_PROC / "net" / name).read_text("ascii").splitlines()[1:]:
            fields = line.split()
            if (
                fields[3] == _LISTENING
                and int(fields[1].rpartition(":")[2], 16) == port
            ):
                yield fields[9]


def _processes() -> list[int]:
    return sorted(int(path.name) for path in _PROC.iterdir() if path.name.isdigit())


def _sockets(pid: int) -> set[str]:
    found = set()
    try:
        for path in (_PROC / str(pid) / "fd").iterdir():
            found.add(str(path.readlink()))
    except OSError:  # it has ended, or belongs to another user
        return found
    return found


def _read(pid: int, name: str) -> bytes:
    try:
        return (_PROC / str(pid) / name).read_bytes()
    except OSError:
        return b""
