#!/usr/bin/env bash
# Users and roles in etcd for vNPU, each with the least it needs; then access control is switched on.
#
#   docker/etcd/users.sh DIR NODE...                 e.g. users.sh secrets node-1 node-2
#   VNPU_ENGINES="org/a b" docker/etcd/users.sh DIR NODE...      one user for each of these engines besides
#
# etcdctl is told of etcd by its own variables: ETCDCTL_ENDPOINTS, ETCDCTL_CACERT, ETCDCTL_CERT, ETCDCTL_KEY. Names and
# passwords are written into DIR (0700), a file of environment variables for each process. Run it again with more
# nodes: what is there is kept. Which user may do what: docs/security.md
set -euo pipefail
umask 077
export ETCDCTL_API=3

if [ $# -lt 2 ]; then
    sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
dir=$1 root=/vnpu/v1/
shift
mkdir -p "$dir"
for node in "$@"; do
    case $node in *[!A-Za-z0-9._-]*) echo "$node is no node's name" >&2 && exit 2 ;; esac
done

as_root() { # only then is a user needed: the first call finds an etcd without access control
    if [ -e "$dir/root.env" ]; then
        ETCDCTL_USER=root:$(sed -n 's/^VNPU_ETCD_PASSWORD=//p' "$dir/root.env") etcdctl "$@" >/dev/null
    else
        etcdctl "$@" >/dev/null
    fi
}

add_user() { # NAME FILE ROLE...
    local name=$1 file=$dir/$2.env password
    shift 2
    if [ ! -e "$file" ]; then
        password=$(openssl rand -hex 24)
        as_root user add "$name" --interactive=false <<<"$password"
        printf 'VNPU_ETCD_USER=%s\nVNPU_ETCD_PASSWORD=%s\n' "$name" "$password" >"$file.new"
        mv "$file.new" "$file"
    fi
    for role in "$@"; do as_root user grant-role "$name" "$role"; done
}

add_role() { # NAME read|readwrite KEY...: a key that ends with a slash means all below it
    local name=$1 what=$2 below
    shift 2
    as_root role get "$name" 2>/dev/null || as_root role add "$name"
    for key in "$@"; do
        below=""
        case $key in */) below=--prefix ;; esac
        as_root role grant-permission "$name" "$what" $below "$key"
    done
}

escaped() { # an engine's id as a segment of a key: coordinator/store/keys.py
    local text=$1 out="" char i
    for ((i = 0; i < ${#text}; i++)); do
        char=${text:i:1}
        case $char in [A-Za-z0-9._~-]) out+=$char ;; *) printf -v out '%s%%%02X' "$out" "'$char" ;; esac
    done
    echo "$out"
}

as_root role get root 2>/dev/null || as_root role add root
add_user root root root
add_role vnpu-read read $root
add_role vnpu-coordinator readwrite \
    ${root}epoch ${root}heartbeat ${root}coordinator/election/ ${root}coordinators/ ${root}tokens/ ${root}seats/ \
    ${root}demand/ ${root}refusals/ ${root}processes/ ${root}policy/ ${root}decisions/
add_role vnpu-engine readwrite ${root}engines/
add_user vnpu-watch watch vnpu-read
add_user vnpu-coordinator coordinator vnpu-read vnpu-coordinator
add_user vnpu-engine engine vnpu-read vnpu-engine
for node in "$@"; do
    add_role "vnpu-node-$node" readwrite "${root}nodes/$node/"
    add_user "vnpu-daemon-$node" "daemon-$node" vnpu-read "vnpu-node-$node"
    add_user "vnpu-up-$node" "up-$node" vnpu-read vnpu-coordinator vnpu-engine "vnpu-node-$node"
done
for engine in ${VNPU_ENGINES:-}; do
    add_role "vnpu-engine-$(escaped "$engine")" readwrite "${root}engines/$(escaped "$engine")/"
    add_user "vnpu-engine-$(escaped "$engine")" "engine-$(escaped "$engine")" vnpu-read "vnpu-engine-$(escaped "$engine")"
done
as_root auth enable
echo "$dir: $(cd "$dir" && ls ./*.env | tr '\n' ' ')"
