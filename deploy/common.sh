#!/usr/bin/env bash
# What softhsm/prepare.sh and deploy/vault/prepare.sh have in common. Each of them sources this file.
# Environment: ISTIO and ADMIN (addresses of the bridge)
set -euo pipefail

fail() {
  echo "$name: $*" >&2
  exit 1
}

# Work in the folder $1, made if absent, with the commands of the folder $2.
begin() {
  umask 077
  shown=$1
  bin=$(cd "${2:-.venv/bin}" && pwd)
  mkdir -p "$1"
  folder=$(cd "$1" && pwd)
  cd "$folder"
}

# A cluster. Its key stands in for that of an API server; the token is for an hour, so it is made anew each time.
make_token() { "$bin/meshca" token --sa shop/web --audience istio-ca > token; }

# The chain. A throwaway root and intermediate stand in for the security team's.
sign_csr() {
  [ -e ca/chain.pem ] || "$bin/meshca" hierarchy throwaway ca --trust-domain corp.example --issuing-csr issuing.csr > ca.txt
}

# bridge.yaml for the backend $1, with its options on the standard input.
configure() {
  cat > bridge.yaml << END
trust_domain: corp.example
fronts:
  istio:
    listen: "${ISTIO:-127.0.0.1:15012}"
    tls: {dns_names: [meshca.istio-system.svc]}
clusters:
  - name: Kubernetes
    tokens: {verify: jwks, file: jwks.json, issuer: "https://kubernetes.default.svc"}
issuing_cas:
  eu-1:
    plugin: $1
    chain: ca/chain.pem
    options:
$(sed 's/^/      /')
trust_anchors: ca/roots.pem
issuance: {issuing_cas: [eu-1]}
ledger: {journal: journal/, archive: "sqlite:///archive.db", heads: {sink: heads.jsonl}}
admin: {listen: "${ADMIN:-127.0.0.1:9990}"}
END
}

# What `meshca check` says of it, and what is next. $1: what was made.
finish() {
  "$bin/meshca" check -c bridge.yaml > check.txt || {
    cat check.txt >&2
    fail "$shown/bridge.yaml does not pass meshca check"
  }
  echo "$shown: $1; CSR, chain, bridge.yaml and a caller's token are beside it"
  echo "next: $bin/meshca serve -c $shown/bridge.yaml"
}
