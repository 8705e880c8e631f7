#!/usr/bin/env bash
# Runs our programs under mpiexec over two hosts, alpha and beta, and checks what is promised of it: meshes know
# their hosts, losses are those of one rank, a rank that dies ends the job on both hosts.
#
#   two_hosts.sh MPIEXEC PROGRAM_DIR
#
# The hosts are namespaces of this machine: each has its own network, name, shared memory and mounts, and a cable
# (veth) joins them. Nothing of it has a name outside, so runs side by side do not meet, and nothing needs taking
# down: all processes live in one process namespace, which ends with its first process, however that ends, and the
# kernel removes the rest. Where a machine allows no namespaces this says so, and exits with 77.
set -euo pipefail

skip() { echo "two hosts: skipped: $1"; exit 77; }
fail() { echo "two hosts: $1"; exit 1; }

# --- Outside: makes the machine that the two hosts live on -----------------------------------------------------

if [ "${1:-}" != --inside ]; then
  [ $# -eq 2 ] || { echo "usage: two_hosts.sh MPIEXEC PROGRAM_DIR" >&2; exit 2; }
  for program in ip unshare nsenter setpriv hostname mount; do
    command -v "$program" >/dev/null || skip "there is no program '$program' (scripts/setup tests installs it)"
  done
  machine=(unshare --net --mount --pid --fork --kill-child --mount-proc)
  if ! "${machine[@]}" true 2>/dev/null; then  # without root: as root of a user namespace
    machine=(unshare --user --map-root-user "${machine[@]:1}")
    reason=$("${machine[@]}" true 2>&1) || skip "this machine allows no namespaces: $reason"
  fi
  work=$(mktemp -d)  # the inside mounts memory on it, so that it stays empty out here
  child=
  trap '[ -z "$child" ] || kill -KILL "$child" 2>/dev/null; rmdir "$work"' EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  setpriv --pdeathsig KILL "${machine[@]}" bash "$0" --inside "$work" "$1" "$(cd "$2" && pwd)" </dev/null &
  child=$!
  status=0
  wait "$child" || status=$?
  child=
  exit "$status"
fi

# --- Inside: cables the hosts ------------------------------------------------------------------------------------

work=$2 mpiexec=$3 bin=$4
mount -t tmpfs tmpfs "$work" || skip "mount is not allowed here"
cd "$work"
printf '127.0.0.1 localhost\n10.0.0.1 alpha\n10.0.0.2 beta\n' >etc_hosts
mount --bind etc_hosts /etc/hosts || skip "mount is not allowed here"

declare -A host  # process that keeps the host's namespaces
start_host() {  # NAME
  unshare --net --uts --ipc --mount sh -c "hostname $1 && ip link set lo up && mount -t tmpfs tmpfs /dev/shm &&
                                           touch $1.up && exec sleep infinity" &
  host[$1]=$!
  until [ -e "$1.up" ]; do kill -0 "${host[$1]}" 2>/dev/null || skip "host $1 could not be made"; sleep 0.02; done
}
on() {  # HOST COMMAND...
  local name=$1
  shift
  nsenter --target "${host[$name]}" --net --uts --ipc --mount --wd="$work" "$@" </dev/null
}
start_host alpha
start_host beta
ip link add alpha type veth peer name beta 2>why || skip "no cable between network namespaces: $(cat why)"
address=1
for name in alpha beta; do
  ip link set "$name" netns "${host[$name]}"
  on "$name" ip link set "$name" name eth0
  on "$name" ip address add 10.0.0.$address/24 dev eth0
  on "$name" ip link set eth0 up
  address=$((address + 1))
done

# What ssh is to mpiexec: [OPTIONS] HOST COMMAND...
cat >enter <<END
#!/bin/sh
while [ "\${1#-}" != "\$1" ]; do shift; done
case \$1 in alpha) host=${host[alpha]} ;; beta) host=${host[beta]} ;; *) exit 255 ;; esac
shift
exec nsenter --target \$host --net --uts --ipc --mount --wd="$work" sh -c "\$*"
END
chmod +x enter
printf 'alpha:2\nbeta:2\n' >hosts

# --- How checks are made -----------------------------------------------------------------------------------------

run() {  # STATUS COMMAND...: runs it into `out` and says so if its exit status is another; "any" is any but 0
  local wanted=$1 status=0
  shift
  "$@" >out 2>&1 || status=$?
  [ "$status" = "$wanted" ] || { [ "$wanted" = any ] && [ $status != 0 ] && [ $status != 124 ] && [ $status != 137 ]; } ||
    { cat out; fail "exit status $status, expected $wanted: $*"; }
}
says() { grep -q -- "$1" out || { cat out; fail "expected '$1' in this"; }; }
mpi() {  # OPTIONS OF MPIEXEC...: as a user of alpha; a job that hangs is ended, with status 124
  on alpha timeout --kill-after=2 100 "$mpiexec" -launcher ssh -launcher-exec "$work/enter" "$@"
}
now() { date +%s%N; }
within() {  # SECONDS SINCE
  local ms=$((($(now) - $2) / 1000000))
  [ $ms -le $(($1 * 1000)) ] || { cat out; fail "took $ms ms, expected at most $1 s"; }
}
nobody_is_left() {  # of a job, on either host; Hydra's own processes may take a moment longer
  local process name left
  for _ in $(seq 50); do
    left=
    for process in /proc/[0-9]*; do
      name=$(cat "$process/comm" 2>/dev/null) || continue
      case $name in dist_ranks | gpt2_train | mpiexec* | hydra*) left="$left $name(${process#/proc/})" ;; esac
    done
    [ -n "$left" ] || return 0
    sleep 0.1
  done
  fail "still there 5 s after the job's end:$left"
}
sent_by_alpha() { on alpha ip -s -o link show dev eth0 | tr -s ' \\' '\n' | grep -A 7 TX: | sed -n 8p; }

# --- Meshes and sums ---------------------------------------------------------------------------------------------

# Ranks as blocks and in turn; tests/dist/host_checks.cpp has the expectations. With one rank on each host, threads
# are all cores of a host and not half of them.
before=$(sent_by_alpha)
run 0 mpi -f hosts -n 4 "$bin/dist_ranks" hosts alpha,alpha,beta,beta
says "dp 1       2     3   beta"
after=$(sent_by_alpha)
# Of a sum of 4 MB beta needs at least what alpha's ranks put in, once. Without this, the transport could have gone
# through memory that the hosts share by being one machine.
[ $((after - before)) -gt $((4 << 20)) ] || fail "alpha sent $before to $after bytes: sums did not go over the cable"
run 0 mpi -hosts alpha,beta -n 4 "$bin/dist_ranks" hosts alpha,beta,alpha,beta
says "dp 1       1     3   beta"
run 0 mpi -hosts alpha,beta -n 2 "$bin/dist_ranks" hosts alpha,beta
run any mpi -f hosts -n 4 "$bin/dist_ranks" hosts alpha,beta,alpha,beta
says "ranks stand on alpha,alpha,beta,beta"  # the check can fail
echo "meshes: tp on one host, also where ranks go round the hosts; sums over both"

run 0 mpi -f hosts -n 4 "$bin/dist_ranks" behaviours
says "behaviours hold on 4 ranks (mpi)"
echo "communicators: every behaviour"

# --- Training ----------------------------------------------------------------------------------------------------

if [ -x "$bin/gpt2_train" ]; then
  awk 'BEGIN { split("and the lord said unto him in day people house made", word, " ")
               for (i = s = 1; i <= 3000; ++i) {
                 s = (s * 16807) % 2147483647
                 printf "%s%s", word[s % 11 + 1], i % 9 ? " " : "\n" } }' >text
  run 0 "$bin/gpt2_prepare" --text text --vocab 290 --out data
  train="$bin/gpt2_train --data data --model layers=2,heads=2,width=16,context=16 --batch 8 --steps 6 --lr 0.01
         --dropout 0.2 --clip 0.5 --eval-tokens 64 --progress none --comm-summary"

  same_losses() {  # BOUND LOG: relative, against alone.jsonl, of losses and norms of each step
    sed 's/.*"loss":\([^,]*\),"grad_norm":\([^,]*\),.*/\1 \2/' alone.jsonl >expected
    sed 's/.*"loss":\([^,]*\),"grad_norm":\([^,]*\),.*/\1 \2/' "$2" >actual
    paste expected actual | awk -v bound="$1" '
      function apart(a, b) { return a > b ? a - b : b - a }
      { for (i = 1; i <= 2; ++i) if (!(apart($i, $(i + 2)) <= bound * $i)) { print "step " NR ": " $0; bad = 1 } }
      END { exit bad || NR != 6 }' || fail "losses differ from those of one rank: $2"
  }

  # f64: the bound of tests/examples/parity_test.cpp.
  run 0 $train --dtype f64 --out alone --log alone.jsonl
  run 0 mpi -hosts alpha,beta -n 4 $train --dtype f64 --mesh dp=2,tp=2 --zero 3 --out a --log a.jsonl
  same_losses 1e-10 a.jsonl
  says "sent by rank 0 of 4 on 2 hosts"
  says "^dp  *reduce_scatter .* over 2 hosts"
  says "^tp  *all_reduce .*[0-9]$"  # and not "over 2 hosts"
  run 0 mpi -f hosts -n 4 $train --dtype f64 --mesh pp=2,dp=2 --micro-batch 2 --zero 3 --out b --log b.jsonl
  same_losses 1e-10 b.jsonl
  says "^pp  *send .* over 2 hosts"
  says "^dp  *reduce_scatter .*[0-9]$"
  echo '{"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 2}}' >hpz.json
  run 0 mpi -hosts alpha,beta -n 4 $train --dtype f64 --config hpz.json --out c --log c.jsonl
  same_losses 1e-10 c.jsonl
  says "^dp.gather  *all_gather .*[0-9]$"  # hpZ: parameters come from this host
  says "^dp.inner  *reduce_scatter .*[0-9]$"
  says "^dp.outer  *reduce_scatter .* over 2 hosts"
  says "mesh dp=4: 4 ranks on 2 hosts"
  echo "training: dp=2,tp=2 and pp=2,dp=2 with ZeRO-3, and hpZ, have the losses of one rank"

  # Invariant numerics: the same bits, of losses and parameters.
  run 0 $train --numerics invariant --micro-batch 1 --out bits --log alone.jsonl
  bits=$(grep "parameters have the hash" out)
  run 0 mpi -f hosts -n 4 $train --numerics invariant --micro-batch 1 --mesh dp=2,tp=2 --zero 3 --out d --log d.jsonl
  same_losses 0 d.jsonl
  says "$bits"
  echo "training: invariant numerics have the bits of one rank ($bits)"

  # What hosts without a shared folder would do in silence: beta sees another folder under the same path.
  mkdir elsewhere
  run 0 "$bin/gpt2_prepare" --text enter --vocab 290 --out other
  on beta mount --bind other data
  run 2 mpi -f hosts -n 4 $train --out e
  says "error (rank [23] of 4): --data data: what rank [23] finds there, on host beta, is not what rank 0 finds"
  on beta umount data
  on beta mount --bind elsewhere a
  run 2 mpi -f hosts -n 4 $train --dtype f64 --out a --resume --steps 7
  says "error (rank [23] of 4): --out a: rank 0 finds a checkpoint there, and rank [23] on host beta does not"
  on beta umount a
  run 0 mpi -f hosts -n 4 $train --dtype f64 --out a --resume --steps 7
  says "resuming after step 6"
  echo "files: other data or no checkpoint on one host is an error"
fi

# --- Ends --------------------------------------------------------------------------------------------------------

nobody_is_left
since=$(now)
run 2 mpi -f hosts -n 4 "$bin/dist_ranks" fail user_error
within 20 $since
[ "$(cat out)" = "error (rank 3 of 4): a mistake of the user's" ] || { cat out; fail "expected that line alone"; }
nobody_is_left
run 2 mpi -f hosts -n 4 "$bin/dist_ranks" fail every_rank
[ "$(grep -c error out)" = 1 ] || { cat out; fail "expected the mistake of all ranks once, and not once a host"; }
since=$(now)
run any mpi -f hosts -n 4 "$bin/dist_ranks" fail killed  # rank 3, by itself
within 20 $since
says "BAD TERMINATION"
says "RUNNING AT beta"
nobody_is_left
echo "ends: an error and a kill on beta end alpha's ranks"

if [ -x "$bin/gpt2_train" ]; then
  rank_on() {  # HOST: the process of one of its ranks of gpt2_train
    local process
    for process in /proc/[0-9]*; do
      [ "$(cat "$process/comm" 2>/dev/null)" = gpt2_train ] || continue
      [ "$(readlink "$process/ns/uts")" = "$(readlink "/proc/${host[$1]}/ns/uts")" ] || continue
      echo "${process#/proc/}" && return
    done
    fail "there is no gpt2_train on $1"
  }
  start_long() {  # FOLDER: trains until it is ended; returns after its second step
    mpi -f hosts -n 4 $train --steps 1000000 --mesh dp=2,tp=2 --zero 3 --out "$1" --log "$1.jsonl" >out 2>&1 &
    job=$!
    for _ in $(seq 600); do
      [ "$(cat "$1.jsonl" 2>/dev/null | wc -l)" -lt 2 ] || return 0
      kill -0 $job 2>/dev/null || break
      sleep 0.1
    done
    cat out
    fail "the run in $1 does not get to its second step"
  }
  start_long killed
  since=$(now)
  kill -KILL "$(rank_on beta)"
  status=0
  wait $job || status=$?
  [ $status != 0 ] && [ $status != 124 ] && [ $status != 137 ] || { cat out; fail "a killed rank: exit status $status"; }
  within 20 $since
  says "BAD TERMINATION"
  nobody_is_left
  start_long stopped
  for process in /proc/[0-9]*; do
    case $(cat "$process/comm" 2>/dev/null) in mpiexec*) kill -INT "${process#/proc/}" ;; esac
  done
  wait $job || { cat out; fail "Ctrl-C: expected status 0"; }
  says "stopped after step"
  [ -e stopped/latest ] || fail "Ctrl-C: expected a checkpoint"
  nobody_is_left
  echo "ends: a rank of gpt2_train killed on beta ends the job; Ctrl-C saves and ends it well on both hosts"
fi
echo "two hosts: all checks passed"
