"""`meshca config`: write a configuration to begin with."""

from pathlib import Path
from typing import Annotated

import typer

from bridge.cli.console import group
from bridge.errors import RequestError
from bridge.spiffe import TrustDomain
from bridge.system.files import write_new

TEMPLATE = """\
# The configuration of meshca-bridge. All keys: docs/reference/configuration.md.
# Relative paths begin at the folder of this file. What is commented out shows
# the default, unless it says "such as".

# The trust domain of every SPIFFE ID that is issued, as in meshConfig.trustDomain.
trust_domain: {trust_domain}

# Processes that serve, each on a core of its own.
# workers: 1

fronts:
  # Istio's agents ask here, with TLS and a token.
  istio:
    listen: "127.0.0.1:15012"   # in a cluster "0.0.0.0:15012"
    # A second port for VMs, which renew with the certificate that they have; such as:
    # mtls_listen: "127.0.0.1:15013"
    # Who may renew there, by default nobody; such as:
    # mtls_identities: [{{namespaces: [shop], service_accounts: [vm]}}]
    # mtls_max_age: 720h   # then a token has to prove the caller again
    # audiences: [istio-ca]
    tls:
      # The host of caAddress. The bridge issues its own certificate for it.
      dns_names: [meshca.istio-system.svc]
  # Linkerd's proxies ask here, behind the bridge's own sidecar; such as:
  # linkerd:
  #   listen: "127.0.0.1:8080"   # in a cluster "0.0.0.0:8080"

# Who may ask. The first cluster may have every namespace.
clusters:
  - name: Kubernetes   # the header clusterid; an ARN goes into aliases
    # aliases: []
    tokens:
      verify: jwks
      # As `kubectl get --raw /.well-known/openid-configuration` says it.
      issuer: "https://kubernetes.default.svc"
      # `kubectl get --raw /openid/v1/jwks`. For a first try, `meshca token` writes it.
      file: jwks.json

# Who signs. `meshca plugins` lists the backends: file, pkcs11, vault-pki, ...
# A key in a file is for development.
issuing_cas:
  first:
    plugin: file
    # The issuing CA and its intermediates, without the root.
    chain: ca/chain.pem
    options: {{key: ca/issuing.key}}

# The roots that workloads get, and that each chain must lead to.
trust_anchors: ca/roots.pem

issuance:
  issuing_cas: [first]
  # default_ttl: 24h
  # min_ttl: 5m
  # max_ttl: 24h
  # What to do with a requested lifetime outside of these: refuse, or clamp.
  # on_excess_ttl: refuse
  # Who gets something else, the first match counts; such as:
  # rules: [{{namespaces: [payments], refuse: true}}]

# Every attempt is on disk before it is signed.
ledger:
  journal: journal/
  archive: "sqlite:///archive.db"
  heads:
    # Best on another disk or host.
    sink: heads.jsonl

# Health and metrics.
admin:
  listen: "127.0.0.1:9990"
"""

app = group("Write a configuration to begin with.")


@app.callback()
def _group() -> None:
    pass


@app.command()
def init(
    file: Annotated[
        Path, typer.Argument(metavar="[FILE]", help="A new file.", show_default=True)
    ] = Path("bridge.yaml"),
    *,
    trust_domain: Annotated[
        str, typer.Option(metavar="NAME", help="The trust domain of the mesh.")
    ] = "corp.example",
) -> None:
    """Write a configuration with a comment for each part, to begin with.

    It names the files that `meshca hierarchy throwaway ca/` and `meshca token` make. An
    existing file is not overwritten.
    """
    try:
        domain = TrustDomain(trust_domain)
    except RequestError as error:
        raise typer.BadParameter(
            f"--trust-domain: {error} (found {trust_domain!r})"
        ) from error
    write_new(file.parent, {file.name: TEMPLATE.format(trust_domain=domain).encode()})
    typer.echo(f"written: {file}")
