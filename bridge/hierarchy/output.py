"""The folder of a ceremony's files: written once, read by whatever comes after.

Each CA has a folder of its own, which appears whole or not at all:
`NAME/{certificate.pem,certificate.der,chain.pem,certificate.txt}`. `manifest.json` is
made of these folders, anew each time. A cross-certificate has a folder
`NAME.by.ISSUER`, and a CRL the folder `NAME.crl.NUMBER` with
`{crl.pem,crl.der,crl.txt}`.
"""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from bridge.errors import ConfigError
from bridge.hierarchy.keys import spki_sha256
from bridge.system.files import flock, locked, replace, sync_folder
from bridge.x509.certificate import UNREADABLE, name_of, value_in
from bridge.x509.pem import parse_certificates, pem_of

MANIFEST = "manifest.json"
MANIFEST_FORMAT = 1
CERTIFICATE = "certificate.pem"
CHAIN = "chain.pem"
"""The CA and the CAs above it, without the root."""
BY = ".by."
"""Stands in the name of a cross-certificate's folder, before its issuer's name."""
LOCK = ".lock"
"""Held by the run that signs into the folder."""
_CRL = ".crl."
_CRL_DER = "crl.der"
_DER = "certificate.der"
_TEXT = "certificate.txt"
_FOLDER_MODE = 0o755
_FILE_MODE = 0o644
_UNFINISHED = ".unfinished-"
_TAKEN = frozenset({errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR})


@dataclass(frozen=True, slots=True)
class Output:
    """The folder that a ceremony writes to.

    Args:
        folder: Made when something is written.
    """

    folder: Path

    def has(self, name: str) -> bool:
        """Return whether something stands where a CA's folder would."""
        path = self.folder / name
        return os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir()))

    def make(self) -> None:
        """Make the folder, if it is not there.

        Raises:
            ConfigError: It cannot be made.
        """
        try:
            self.folder.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
        except OSError as error:
            raise _bad(f"{self.folder}: cannot be made: {error.strerror}") from error

    @contextmanager
    def exclusively(self, seconds: float = 30.0) -> Iterator[None]:
        """Let no other run sign into the folder meanwhile.

        Args:
            seconds: How long to wait for the end of another run.

        Raises:
            ConfigError: Another run does not end, or the folder cannot be written.
        """
        self.make()
        path = self.folder / LOCK
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            fd = os.open(path, flags, _FILE_MODE)
        except OSError as error:
            raise _bad(f"{path}: cannot be written: {error.strerror}") from error
        try:
            try:
                flock(fd, seconds)
            except TimeoutError:
                raise _bad(
                    f"{self.folder}: another run of meshca signs into this folder now: "
                    "wait for its end, and run the command again"
                ) from None
            yield
        finally:
            os.close(fd)

    def names(self) -> tuple[str, ...]:
        """Return the names of the CAs, and of cross-certificates, that are here."""
        if not self.folder.is_dir():
            return ()
        return tuple(
            sorted(
                path.name
                for path in self.folder.iterdir()
                if (path / CERTIFICATE).is_file() and not path.name.startswith(".")
            )
        )

    def certificate(self, name: str) -> x509.Certificate:
        """Return the certificate of a CA.

        Raises:
            ConfigError: It is not there, or cannot be read.
        """
        path = self.folder / name / CERTIFICATE
        try:
            data = path.read_bytes()
        except OSError as error:
            raise _bad(
                f"{path}: cannot be read: {error.strerror}; sign {name} first, or give "
                "the folder with its certificate as --out"
            ) from error
        found = parse_certificates(data, str(path))
        if len(found) != 1:
            raise _bad(f"{path}: expected one certificate (found {len(found)})")
        return found[0]

    def crls(self, name: str) -> dict[int, Path]:
        """Return the CRLs of a CA in DER, by their numbers, the newest last."""
        found = {
            int(path.parent.name.rpartition(".")[2]): path
            for path in self.folder.glob(f"{name}{_CRL}*/{_CRL_DER}")
            if path.parent.name.rpartition(".")[2].isdecimal()
        }
        return dict(sorted(found.items()))

    def crl(self, name: str, now: datetime) -> bytes | None:
        """Return the newest CRL of a CA in PEM; None without one, or if it is overdue.

        Raises:
            ConfigError: It cannot be read.
        """
        *_, newest = (None, *self.crls(name).values())
        if newest is None:
            return None
        try:
            crl = x509.load_der_x509_crl(newest.read_bytes())
            due = crl.next_update_utc
        except (OSError, *UNREADABLE) as error:
            raise _bad(f"{newest}: expected the CRL of a CA: {error}") from None
        return crl.public_bytes(Encoding.PEM) if due and due > now else None

    def revoking(self, issuer: str, serial: int) -> Path | None:
        """Return a CRL of a CA that revokes a serial number; None if none does.

        Raises:
            ConfigError: A CRL cannot be read.
        """
        for path in self.crls(issuer).values():
            try:
                crl = x509.load_der_x509_crl(path.read_bytes())
                if crl.get_revoked_certificate_by_serial_number(serial) is not None:
                    return path
            except (OSError, *UNREADABLE) as error:
                raise _bad(f"{path}: expected the CRL of a CA: {error}") from None
        return None

    def write_files(self, name: str, files: Mapping[str, bytes]) -> Mapping[str, str]:
        """Write a folder of files, all of them or none; overwrite nothing.

        Args:
            name: Of the folder.
            files: Contents by their names.

        Returns:
            The SHA-256 of each file, by its path below the output folder.

        Raises:
            ConfigError: The folder exists, or nothing can be written.
        """
        target = self.folder / name
        try:
            self.make()
            with locked(self.folder):
                self._write_folder(target, files)
        except OSError as error:
            if error.errno in _TAKEN:
                raise exists(target) from None
            raise _bad(
                f"{error.filename or target}: cannot be written: {error.strerror}"
            ) from error
        return _digests(name, files)

    def digests(self, name: str) -> dict[str, str]:
        """Return the SHA-256 of each file of a CA, by its path below the folder."""
        return {
            f"{name}/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted((self.folder / name).iterdir())
            if path.is_file()
        }

    def holds(self, name: str, files: Mapping[str, bytes]) -> bool:
        """Return whether a folder is as `write_files` would write it now."""
        try:
            found = self.digests(name)
        except OSError:
            return False
        return found == _digests(name, files)

    def recorded(self) -> frozenset[str]:
        """Return the names of the CAs that stand in the manifest: they are finished.

        Raises:
            ConfigError: The manifest is there and cannot be read.
        """
        path = self.folder / MANIFEST
        if not path.exists():
            return frozenset()
        try:
            return frozenset(json.loads(path.read_bytes())["cas"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _bad(
                f"{path}: not a manifest of a ceremony ({error}): restore it, or "
                "remove it to have it made anew"
            ) from error

    def write_manifest(self) -> None:
        """Write `manifest.json` anew, from the certificates that are here.

        Raises:
            ConfigError: A certificate cannot be read, or the file cannot be written.
        """
        content = json.dumps(self.manifest(), indent=2, ensure_ascii=False) + "\n"
        try:
            replace(self.folder / MANIFEST, content.encode(), _FILE_MODE)
        except OSError as error:
            raise _bad(
                f"{self.folder / MANIFEST}: cannot be written: {error.strerror}"
            ) from error

    def manifest(self) -> Mapping[str, Any]:
        """Return what stands here: each file's SHA-256, and what each CA may do."""
        crls = {
            path.parent.name: _crl_described(path)
            for path in sorted(self.folder.glob(f"*{_CRL}*/{_CRL_DER}"))
        }
        return {
            "format": MANIFEST_FORMAT,
            "cas": {name: _described(self.certificate(name)) for name in self.names()},
            "crls": crls,
            "files": {
                path: digest
                for name in (*self.names(), *crls)
                for path, digest in self.digests(name).items()
            },
        }

    def _write_folder(self, target: Path, files: Mapping[str, bytes]) -> None:
        # What a run left that was cut off: nothing else has such a name.
        for path in self.folder.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(path, ignore_errors=True)
        beside = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=self.folder))
        try:
            for file, content in files.items():
                _write(beside / file, content)
            beside.chmod(_FOLDER_MODE)
            sync_folder(beside)
            # It fails where a file or a folder with files stands.
            beside.rename(target)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        sync_folder(self.folder)


def crl_folder(name: str, number: int) -> str:
    """Return the name of the folder of a CRL.

    Args:
        name: Of the CA.
        number: Of the CRL.
    """
    return f"{name}{_CRL}{number}"


def exists(path: Path) -> ConfigError:
    """Return the error that something stands where a new file was to be written."""
    return ConfigError(
        f"{path}: exists, and nothing is overwritten: keep it, or move it away after "
        "all officers agree, and sign again; or give another folder as --out",
        rule="hierarchy.output-exists",
    )


def text_of(certificate: x509.Certificate) -> str:
    """Return a certificate as text for people."""
    der = certificate.public_bytes(Encoding.DER)
    lines = [
        f"Subject:     {certificate.subject.rfc4514_string()}",
        f"Issuer:      {certificate.issuer.rfc4514_string()}",
        f"Serial:      {certificate.serial_number:x}",
        f"Not before:  {certificate.not_valid_before_utc.isoformat()}",
        f"Not after:   {certificate.not_valid_after_utc.isoformat()}",
        f"SHA-256:     {hashlib.sha256(der).hexdigest()}",
        f"Key SHA-256: {spki_sha256(certificate.public_key())}",
        f"Signature:   {name_of(certificate.signature_algorithm_oid)}",
        "Extensions:",
    ]
    for extension in certificate.extensions:
        critical = " (critical)" if extension.critical else ""
        lines.append(f"  {name_of(extension.oid)}{critical}")
        if not isinstance(extension.value, x509.NameConstraints):
            lines.append(f"    {extension.value!r}")
            continue
        for form, names in _subtrees(extension.value).items():
            lines += [f"    {form}: {name}" for name in names]
    return "\n".join(lines) + "\n"


def files_of(path: Sequence[x509.Certificate]) -> Mapping[str, bytes]:
    """Return the files of a CA's folder.

    Args:
        path: Its certificate, and those above it, the root last.
    """
    certificate, below_root = path[0], path[:-1] or path
    return {
        CERTIFICATE: pem_of(certificate),
        _DER: certificate.public_bytes(Encoding.DER),
        CHAIN: pem_of(*below_root),
        _TEXT: text_of(certificate).encode(),
    }


def _digests(name: str, files: Mapping[str, bytes]) -> dict[str, str]:
    return {
        f"{name}/{file}": hashlib.sha256(content).hexdigest()
        for file, content in files.items()
    }


def _described(certificate: x509.Certificate) -> Mapping[str, Any]:
    basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    constraints = value_in(certificate.extensions, x509.NameConstraints)
    return {
        "subject": certificate.subject.rfc4514_string(),
        "issuer": certificate.issuer.rfc4514_string(),
        "serial": f"{certificate.serial_number:x}",
        "not_before": certificate.not_valid_before_utc.isoformat(),
        "not_after": certificate.not_valid_after_utc.isoformat(),
        "spki_sha256": spki_sha256(certificate.public_key()),
        "path_len": basic.path_length,
        "name_constraints": _subtrees(constraints) if constraints else {},
    }


def _crl_described(path: Path) -> Mapping[str, Any]:
    try:
        crl = x509.load_der_x509_crl(path.read_bytes())
        number = crl.extensions.get_extension_for_class(x509.CRLNumber).value
        due = crl.next_update_utc
        return {
            "issuer": crl.issuer.rfc4514_string(),
            "number": number.crl_number,
            "this_update": crl.last_update_utc.isoformat(),
            "next_update": due and due.isoformat(),
            "revoked": [f"{entry.serial_number:x}" for entry in crl],
        }
    except (OSError, x509.ExtensionNotFound, *UNREADABLE) as error:
        raise _bad(f"{path}: expected the CRL of a CA with a number: {error}") from None


def _subtrees(constraints: x509.NameConstraints) -> dict[str, list[str]]:
    return {
        form: [*map(_subtree, names)]
        for form, names in (
            ("permitted", constraints.permitted_subtrees),
            ("excluded", constraints.excluded_subtrees),
        )
        if names
    }


def _subtree(name: x509.GeneralName) -> str:
    kinds = {
        x509.DNSName: "DNS",
        x509.UniformResourceIdentifier: "URI",
        x509.IPAddress: "IP",
        x509.RFC822Name: "email",
    }
    return f"{kinds.get(type(name), type(name).__name__)}:{name.value}"


def _write(path: Path, content: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    with os.fdopen(os.open(path, flags, _FILE_MODE), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _bad(message: str) -> ConfigError:
    return ConfigError(message, rule="hierarchy.output")
