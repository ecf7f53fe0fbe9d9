#!/usr/bin/env bash
# A real Slurm with two nodes, each in a network namespace with an address of its own, on this one machine:
#   two_nodes.sh up DIR     start (root, slurm-wlm, munge, iproute2); DIR holds its configuration, state and logs
#   two_nodes.sh down DIR   end it; nothing is left
#   two_nodes.sh check      say what is missing, if something is
# The two hosts alone, network namespaces poise1 and poise2 without Slurm (root, iproute2):
#   two_nodes.sh hosts_up, hosts_down, hosts_check
set -euo pipefail

BRIDGE=poisebr
NET=10.213.7

say() { echo "two_nodes: $*" >&2; }

need() {
  local tool
  for tool in "$@"; do
    command -v "$tool" >/dev/null || { say "$tool is not installed (Debian: apt-get install slurm-wlm munge iproute2)" && return 1; }
  done
}

check() { need slurmctld slurmd munged sbatch && hosts_check; }

hosts_check() {
  need ip nsenter || return 1
  [[ $EUID == 0 ]] || { say "needs root" && return 1; }
  ip link add poiseprobe type bridge 2>/dev/null || { say "may not make network devices here" && return 1; }
  ip link del poiseprobe
}

configuration() { # DIR
  cat <<CONF
ClusterName=poise
SlurmctldHost=$(hostname -s)($NET.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$1/munge.socket,cred_expire=15
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
JobRequeue=1
SlurmctldPort=16817
SlurmdPort=16818
SlurmctldPidFile=$1/slurmctld.pid
SlurmctldLogFile=$1/slurmctld.log
StateSaveLocation=$1/state
SlurmdPidFile=$1/slurmd-%n.pid
SlurmdLogFile=$1/slurmd-%n.log
SlurmdSpoolDir=$1/spool-%n
SlurmdParameters=config_overrides
KillWait=15
InactiveLimit=0
SchedulerParameters=batch_sched_delay=1,sched_interval=5,requeue_delay=1
NodeName=poise1 NodeHostname=$(hostname -s) NodeAddr=$NET.11 CPUs=2 State=UNKNOWN
NodeName=poise2 NodeHostname=$(hostname -s) NodeAddr=$NET.12 CPUs=2 State=UNKNOWN
PartitionName=all Nodes=poise1,poise2 Default=YES MaxTime=INFINITE State=UP
CONF
}

hosts_up() {
  local node
  ip link add "$BRIDGE" type bridge
  ip addr add "$NET.1/24" dev "$BRIDGE"
  ip link set "$BRIDGE" up
  for node in 1 2; do
    ip netns add "poise$node"
    ip link add "poiseveth$node" type veth peer name fast0 netns "poise$node"
    ip link set "poiseveth$node" master "$BRIDGE" up
    ip -n "poise$node" addr add "$NET.1$node/24" dev fast0
    ip -n "poise$node" link set fast0 up
    ip -n "poise$node" link set lo up
  done
}

hosts_down() {
  local node pid
  for node in 1 2; do
    for pid in $(ip netns pids "poise$node" 2>/dev/null); do kill -KILL "$pid" 2>/dev/null || true; done
    ip netns del "poise$node" 2>/dev/null || true
    ip link del "poiseveth$node" 2>/dev/null || true
  done
  ip link del "$BRIDGE" 2>/dev/null || true
}

up() {
  local dir=$1 node
  mkdir -p "$dir"/{state,spool-poise1,spool-poise2}
  install -d -o munge -g munge -m 755 "$dir/munge"
  dd if=/dev/urandom of="$dir/munge/key" bs=128 count=1 status=none
  chown munge:munge "$dir/munge/key" && chmod 400 "$dir/munge/key"
  runuser -u munge -- munged --key-file="$dir/munge/key" --socket="$dir/munge/socket" --pid-file="$dir/munge/pid" \
    --log-file="$dir/munge/log" --seed-file="$dir/munge/seed"
  ln -sf "$dir/munge/socket" "$dir/munge.socket"
  configuration "$dir" >"$dir/slurm.conf"
  export SLURM_CONF=$dir/slurm.conf
  hosts_up
  slurmctld -f "$dir/slurm.conf"
  # nsenter, not `ip netns exec`: that mounts another /sys, without the cgroups that slurmd looks for
  for node in 1 2; do nsenter --net="/run/netns/poise$node" slurmd -f "$dir/slurm.conf" -N "poise$node"; done
  for _ in $(seq 60); do
    if [[ $(sinfo -h -N -o %T 2>/dev/null | grep -cx idle) == 2 ]]; then return; fi
    sleep 1
  done
  sinfo -N -l >&2 || true
  say "the nodes did not come up; logs: $dir" && return 1
}

down() {
  local dir=$1 file
  export SLURM_CONF=$dir/slurm.conf
  scancel --full --signal=KILL -u root 2>/dev/null || true
  for file in "$dir"/slurmd-*.pid "$dir/slurmctld.pid" "$dir/munge/pid"; do
    if [[ -f $file ]]; then kill "$(<"$file")" 2>/dev/null || true; fi
  done
  hosts_down
}

case "${1:-}" in
  up | down) "$1" "${2:?two_nodes.sh $1 DIR}" ;;
  check | hosts_up | hosts_down | hosts_check) "$1" ;;
  *) say "usage: two_nodes.sh up|down DIR, check, hosts_up, hosts_down, hosts_check" && exit 2 ;;
esac
