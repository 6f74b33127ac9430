#!/bin/bash
# The rival of bench/prolog.py: checks made while the job waits, in the manner of mej/nhc (bash, /sys read by
# builtins into arrays, one function per check, no fork). Kinder than a usual prolog of this kind, which also forks
# nvidia-smi and ibstat. $1 is the root that holds sys/ and dev/.

root=$1
declare -a names states speeds

die() {
    echo "ERROR: health check failed: $*" >&2
    exit 1
}

check_gpus() { # number
    local device vendor class count=0 node=0
    for device in "$root"/sys/bus/pci/devices/*; do
        read -r vendor <"$device/vendor"
        read -r class <"$device/class"
        [[ $vendor == 0x10de && $class == 0x030[02]00 ]] && ((count += 1))
    done
    for device in "$root"/dev/nvidia[0-9]*; do
        [[ -e $device ]] && ((node += 1))
    done
    [[ $count -eq $1 && $node -eq $1 ]] || die "check_gpus: $count GPUs and $node device files, not $1"
}

gather_ports() {
    local port line
    for port in "$root"/sys/class/infiniband/*/ports/*; do
        [[ -e $port ]] || break
        names+=("$port")
        read -r line <"$port/state"
        [[ $line == *ACTIVE ]] || line=
        states+=("$line")
        read -r line <"$port/phys_state"
        [[ $line == *LinkUp ]] || states[-1]=
        read -r line <"$port/rate"
        speeds+=("${line%% *}")
    done
}

check_ib() { # number, Gb/s
    local i count=0
    [[ ${#names[@]} -gt 0 ]] || gather_ports
    for ((i = 0; i < ${#names[@]}; i++)); do
        [[ -n ${states[i]} && ${speeds[i]} -eq $2 ]] && ((count += 1))
    done
    [[ $count -eq $1 ]] || die "check_ib: $count ports of $2 Gb/s are up, not $1"
}

check_eth() { # name, Mb/s
    local carrier speed
    read -r carrier <"$root/sys/class/net/$1/carrier"
    read -r speed <"$root/sys/class/net/$1/speed"
    [[ $carrier -eq 1 && $speed -eq $2 ]] || die "check_eth: $1 is down or slow"
}

check_gpus 8
check_ib 9 400
check_eth eth0 100000
check_eth eth1 100000
exit 0
