#!/usr/bin/env bash
# Certificates for an etcd that vNPU uses: an authority, one certificate for etcd's members, one for its clients.
#
#   docker/etcd/certificates.sh DIR HOST...          e.g. certificates.sh tls etcd 127.0.0.1 10.0.0.5
#
# HOST: every name and address by which etcd is called. An authority that stands in DIR already is kept, the two others
# are made anew: run it again before they end (VNPU_CERT_DAYS, default 365). Keep DIR/ca.key away from the machines.
#
# No certificate has a common name: etcd's HTTP gateway, by which vNPU calls it, takes the user from name and password
# only, and etcd would take the member's own name for that of every client (etcd#10366).
set -euo pipefail
umask 077

if [ $# -lt 2 ]; then
    sed -n '2,10s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
dir=$1 days=${VNPU_CERT_DAYS:-365}
shift
mkdir -p "$dir"

names=""
for host in "$@"; do
    case $host in
        *[!0-9a-fA-F.:]*) names+=",DNS:$host" ;;
        *[.:]*) names+=",IP:$host" ;;
        *) names+=",DNS:$host" ;;
    esac
done

new_key() { openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1"; }

issue() { # NAME USAGE NAMES
    local extensions="basicConstraints=critical,CA:false
keyUsage=critical,digitalSignature
extendedKeyUsage=$2
authorityKeyIdentifier=keyid"
    [ -z "$3" ] || extensions+=$'\n'"subjectAltName=$3"
    new_key "$dir/$1.key"
    openssl req -new -key "$dir/$1.key" -subj "/O=vnpu/OU=$1" -out "$dir/$1.csr"
    openssl x509 -req -in "$dir/$1.csr" -CA "$dir/ca.pem" -CAkey "$dir/ca.key" -days "$days" -sha256 \
        -set_serial "0x$(openssl rand -hex 16)" -extfile <(echo "$extensions") -out "$dir/$1.pem" 2>/dev/null
    rm "$dir/$1.csr"
}

if [ ! -e "$dir/ca.key" ]; then
    new_key "$dir/ca.key"
    openssl req -x509 -new -key "$dir/ca.key" -sha256 -days 3650 -subj "/O=vnpu/OU=authority" -out "$dir/ca.pem" \
        -addext "basicConstraints=critical,CA:true,pathlen:0" -addext "keyUsage=critical,keyCertSign,cRLSign"
fi
issue server "serverAuth,clientAuth" "${names#,}" # its gateway calls etcd with it, as a client
issue client "clientAuth" ""
chmod 644 "$dir"/*.pem
echo "$dir: ca.pem, server.pem server.key (etcd's), client.pem client.key (vNPU's)"
