"""The SDK for plugin authors: what the plugins of this project share.

A plugin for a backend that holds a key (a file, a PKCS#11 token, Vault's Transit)
implements `Signer`, and `SigningCA` makes an issuing CA of it. `parse_options` checks
the options, `read_description` reads the certificates, `read_secret` reads secrets, and
`FileWatch` reports changes of files. `ChildProcess` runs what may hang or crash, and
`HTTPClient` has one deadline for a whole answer.
"""

from bridge.sdk.chain_file import (
    Holds,
    WatchedFiles,
    is_issued_by,
    is_self_signed,
    read_chain,
    read_description,
    read_watched_description,
    subject_text,
)
from bridge.sdk.configured import ConfiguredCA, configured_cas
from bridge.sdk.options import (
    FileOption,
    PluginOptions,
    option_error,
    parse_options,
    placed,
    secret_line,
)
from bridge.sdk.signing_ca import SigningCA, WatchedSigningCA
from bridge.system.background import BackgroundLoop
from bridge.system.child_process import ChildProcess, follow_parent, read_order
from bridge.system.file_watch import FileWatch
from bridge.system.files import (
    digest_of,
    digest_of_contents,
    mode_advice,
    read_public,
    read_secret,
    stamp_of,
)
from bridge.system.http_client import HTTPAnswer, HTTPClient, HTTPPeer
from bridge.system.linux import harden
from bridge.system.logs import set_up as set_up_log
from bridge.x509.algorithm import (
    CA_KEYS,
    CURVES,
    RSA_BITS,
    CAPrivateKey,
    CAPublicKey,
    KeyAlgorithm,
    SignatureAlgorithm,
    algorithm_of,
    issuer_key,
    new_key,
    require_signature,
    signature_of,
)
from bridge.x509.path import require_path
from bridge.x509.pem import key_pem, parse_blocks, parse_certificates
from bridge.x509.tbs import csr_of

__all__ = [
    "CA_KEYS",
    "CURVES",
    "RSA_BITS",
    "BackgroundLoop",
    "CAPrivateKey",
    "CAPublicKey",
    "ChildProcess",
    "ConfiguredCA",
    "FileOption",
    "FileWatch",
    "HTTPAnswer",
    "HTTPClient",
    "HTTPPeer",
    "Holds",
    "KeyAlgorithm",
    "PluginOptions",
    "SignatureAlgorithm",
    "SigningCA",
    "WatchedFiles",
    "WatchedSigningCA",
    "algorithm_of",
    "configured_cas",
    "csr_of",
    "digest_of",
    "digest_of_contents",
    "follow_parent",
    "harden",
    "is_issued_by",
    "is_self_signed",
    "issuer_key",
    "key_pem",
    "mode_advice",
    "new_key",
    "option_error",
    "parse_blocks",
    "parse_certificates",
    "parse_options",
    "placed",
    "read_chain",
    "read_description",
    "read_order",
    "read_public",
    "read_secret",
    "read_watched_description",
    "require_path",
    "require_signature",
    "secret_line",
    "set_up_log",
    "signature_of",
    "stamp_of",
    "subject_text",
]
