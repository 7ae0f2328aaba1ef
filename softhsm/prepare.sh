#!/usr/bin/env bash
# Makes what a bridge needs whose issuing key is in SoftHSM: token, key, CSR, chain, bridge.yaml, and a caller's token.
# What is there already stays as it is, so this may be run again at any time. `make softhsm` runs it; README.md explains it.
#
# Usage: prepare.sh FOLDER [BIN]     BIN: the folder of the commands meshca and python (.venv/bin)
# Environment: KEY (p256, p384, rsa2048, ...), ISTIO and ADMIN (addresses), SOFTHSM2_MODULE (where it is in no usual place)
set -euo pipefail

fail() {
  echo "softhsm: $*" >&2
  exit 1
}

[ $# -ge 1 ] || fail "name the folder to make things in"
command -v softhsm2-util > /dev/null || fail "there is no softhsm2-util: install SoftHSM 2 (apt-get install softhsm2)"
module=${SOFTHSM2_MODULE:-}
for place in /usr/lib/softhsm /usr/lib/*/softhsm /usr/lib64/pkcs11 /usr/lib64/softhsm /usr/lib64 /usr/local/lib/softhsm; do
  [ -n "$module" ] || [ ! -f "$place/libsofthsm2.so" ] || module=$place/libsofthsm2.so
done
[ -f "$module" ] || fail "there is no libsofthsm2.so: set SOFTHSM2_MODULE to its path"

umask 077
mkdir -p "$1"
folder=$(cd "$1" && pwd)
bin=$(cd "${2:-.venv/bin}" && pwd)
cd "$folder"

# The token. Only processes that are given this file see it: the machine's own tokens are another matter.
export SOFTHSM2_CONF=$folder/softhsm2.conf
mkdir -p tokens
[ -e softhsm2.conf ] || cat > softhsm2.conf << END
directories.tokendir = $folder/tokens
objectstore.backend = file
log.level = ERROR
END
for pin in pin so-pin; do
  [ -e $pin ] || "$bin/python" -c 'import secrets; print(f"{secrets.randbelow(10**8):08}")' > $pin
done
softhsm2-util --show-slots | grep -q '^ *Label: *meshca *$' ||
  softhsm2-util --init-token --free --label meshca --pin "$(cat pin)" --so-pin "$(cat so-pin)" > /dev/null

# The key, made in the token, and its CSR.
[ -e issuing.csr ] || "$bin/python" -P -m bridge_pkcs11.csr --module "$module" --token-label meshca --pin-file pin \
  --key-label issuing --key-id 01 --make-key "${KEY:-p256}" --subject "CN=Issuing CA in SoftHSM" --out issuing.csr

# The chain. A throwaway root and intermediate stand in for the security team's.
[ -e ca/chain.pem ] || "$bin/meshca" hierarchy throwaway ca --trust-domain corp.example --issuing-csr issuing.csr > ca.txt

# A cluster. This key stands in for that of its API server; the token is for an hour, so it is made anew each time.
"$bin/python" - << 'END'
import pathlib
from cryptography.hazmat.primitives import serialization as form
from cryptography.hazmat.primitives.asymmetric import ec
from bridge.cli.demo_setup.scenario import DemoCluster
from bridge.system.clock import system_clock

file = pathlib.Path("cluster.key")
if not file.exists():
    new = ec.generate_private_key(ec.SECP256R1())
    file.write_bytes(new.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()))
key = form.load_pem_private_key(file.read_bytes(), None)
cluster = DemoCluster("Kubernetes", "https://kubernetes.default.svc", key)
pathlib.Path("jwks.json").write_text(cluster.jwks())
pathlib.Path("token").write_text(cluster.token("shop", "web", system_clock()))
END

[ -e bridge.yaml ] || cat > bridge.yaml << END
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
    plugin: pkcs11
    chain: ca/chain.pem
    options:
      module: $module
      token_label: meshca
      key_label: issuing
      key_id: "01"
      pin_file: pin
      environment: {SOFTHSM2_CONF: $folder/softhsm2.conf}
trust_anchors: ca/roots.pem
issuance: {issuing_cas: [eu-1]}
ledger: {journal: journal/, archive: "sqlite:///archive.db", heads: {sink: heads.jsonl}}
admin: {listen: "${ADMIN:-127.0.0.1:9990}"}
END
"$bin/meshca" check -c bridge.yaml > check.txt || {
  cat check.txt >&2
  fail "$1/bridge.yaml does not pass meshca check"
}
echo "$1: the key 'issuing' is in the token 'meshca'; CSR, chain, bridge.yaml and a caller's token are beside it"
echo "next: $bin/meshca serve -c $1/bridge.yaml"
