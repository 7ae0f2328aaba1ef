#!/usr/bin/env bash
# Makes what a bridge needs whose issuing key is in SoftHSM: token, key, CSR, chain, bridge.yaml, and a caller's token.
# What is there already stays as it is, so this may be run again at any time. `make softhsm` runs it; README.md explains it.
#
# Usage: prepare.sh FOLDER [BIN]     BIN: the folder of the commands meshca and python (.venv/bin)
# Environment: KEY (p256, p384, rsa2048, ...), ISTIO and ADMIN (addresses), SOFTHSM2_MODULE (where it is in no usual place)
name=softhsm
. "${BASH_SOURCE%/*}/../deploy/common.sh"

[ $# -ge 1 ] || fail "name the folder to make things in"
command -v softhsm2-util > /dev/null || fail "there is no softhsm2-util: install SoftHSM 2 (apt-get install softhsm2)"
module=${SOFTHSM2_MODULE:-}
for place in /usr/lib/softhsm /usr/lib/*/softhsm /usr/lib64/pkcs11 /usr/lib64/softhsm /usr/lib64 /usr/local/lib/softhsm; do
  [ -n "$module" ] || [ ! -f "$place/libsofthsm2.so" ] || module=$place/libsofthsm2.so
done
[ -f "$module" ] || fail "there is no libsofthsm2.so: set SOFTHSM2_MODULE to its path"
begin "$@"

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

make_token
sign_csr
[ -e bridge.yaml ] || configure pkcs11 << END
module: $module
token_label: meshca
key_label: issuing
key_id: "01"
pin_file: pin
environment: {SOFTHSM2_CONF: $folder/softhsm2.conf}
END
finish "the key 'issuing' is in the token 'meshca'"
