#!/usr/bin/env bash
# From a fresh clone to a fine-tuned model: installs the packages, builds, fine-tunes the small
# model of configs/quickstart on two MPI ranks, interrupts and resumes it, exports, and shows samples.
# A run folder is never overwritten: the first free one of runs/quickstart, runs/quickstart-2, … is taken.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/quickstart.sh [--run DIR] [--build DIR] [--skip-install]
  --run DIR       the run folder, which must not exist (default: the first free runs/quickstart[-N])
  --build DIR     the build folder (default: build)
  --skip-install  install no packages
TEXT
}

caller=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
run="" build=build install=yes
while [ $# -gt 0 ]; do
  case $1 in
    --run | --build)
      [ $# -ge 2 ] || { usage >&2; exit 2; }
      case $2 in /*) path=$2 ;; *) path=$caller/$2 ;; esac
      if [ "$1" = --run ]; then run=$path; else build=$path; fi
      shift 2 ;;
    --skip-install) install=no; shift ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
  esac
done
if [ -z "$run" ]; then
  run=runs/quickstart n=1
  while [ -e "$run" ]; do n=$((n + 1)) run=runs/quickstart-$n; done
elif [ -e "$run" ]; then
  echo "error: $run: the folder exists already; name one that does not with --run" >&2
  exit 2
fi

export LC_ALL=C.UTF-8
# Open MPI refuses root and more ranks than cores unless told otherwise; MPICH ignores these.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_btl_vader_single_copy_mechanism=none

config=configs/quickstart/quickstart.textproto
base=configs/quickstart/base_model
program=$build/launch/lorashard
logs=$run.logs
mkdir -p "$logs"
log=""
job=""

heading() { printf '\n== %s  [%d:%02d]\n' "$1" $((SECONDS / 60)) $((SECONDS % 60)); }
say() { printf '   %s\n' "$@"; }
failed() {
  local status=$?
  if [ $status -ne 0 ]; then
    [ -z "$job" ] || kill "$job" 2>/dev/null || true
    echo >&2
    if [ -s "$log" ]; then
      echo "The last lines of $log:" >&2
      tail -n 25 "$log" >&2
    fi
    echo "quickstart: stopped with status $status" >&2
  fi
}
trap failed EXIT

# Ctrl-C or SIGTERM: a run under way ends as it should, after a checkpoint, and its status is ours.
stopped() {
  trap '' INT TERM HUP
  local status=$1
  if [ -n "$job" ]; then
    kill -TERM "$job" 2>/dev/null || true
    status=0
    wait "$job" || status=$?
    job=""
    echo "quickstart: interrupted; the run $run ended with status $status (143: its checkpoint is on disk)" >&2
  fi
  log=""
  if [ "$1" = 130 ] && [ "$status" -eq 143 ]; then status=130; fi
  exit "$status"
}
trap 'stopped 130' INT
trap 'stopped 143' TERM HUP

# value NAME: of the metrics object on standard input.
value() { sed -n "s/.*\"$1\": *\([-+0-9.eE]*\).*/\1/p"; }
steps_done() { if [ -f "$run/metrics.jsonl" ]; then wc -l <"$run/metrics.jsonl"; else echo 0; fi; }

# The processes that PID started, those included that others started for it.
descendants() {
  local child
  for child in $(cat /proc/"$1"/task/*/children 2>/dev/null); do
    echo "$child"
    descendants "$child"
  done
}

# watch_job LAST: prints every 20th step of the background job until it ends or has done LAST steps.
shown=0
watch_job() {
  local now
  while true; do
    now=$(steps_done)
    while [ $((shown + 20)) -le "$now" ]; do
      shown=$((shown + 20))
      sed -n "${shown}p" "$run/metrics.jsonl" | {
        read -r line
        printf '   step %3d of %d   loss %.3f   %6.0f tokens/s\n' "$shown" "$steps" \
          "$(value loss <<<"$line")" "$(value tokens_per_s <<<"$line")"
      }
    done
    if [ "$now" -ge "$1" ] || ! kill -0 "$job" 2>/dev/null; then return; fi
    sleep 0.2
  done
}

# In a session of its own, so that a Ctrl-C comes to this script alone, which passes it on.
train() { LORASHARD=$program exec setsid bash launch/run_nodes.sh -n 2 train "$config" --set output.dir="$run" "$@" </dev/null; }

heading "1. Debian packages"
if [ $install = yes ]; then bash launch/install_packages.sh | sed 's/^/   /'; else say "skipped"; fi

heading "2. Build (some three minutes on two cores)"
log=$logs/build.log
{
  cmake --preset cpu -B "$build" -DLORASHARD_TESTS=OFF
  cmake --build "$build" --target lorashard
} >"$log" 2>&1
say "built $program"

heading "3. Fine-tune on 2 MPI ranks, tensor parallel"
say "base   a llama of 2.8 million weights that has read the King James Bible and nothing else"
say "data   dictionary entries in jest, from the Debian package fortunes"
steps=$(sed -n 's/^train {.*steps: *\([0-9]*\).*/\1/p' $config)
log=$logs/train.log
train >"$log" 2>&1 &
job=$!
watch_job $((steps * 5 / 8))
kill -0 "$job" 2>/dev/null || { wait "$job"; echo "error: $run: the run ended before it was interrupted" >&2; exit 3; }
say "" "Now both ranks get SIGTERM, as from a cluster that wants its machine back. They finish the" \
  "step they are in, write a checkpoint and end."
ranks=()
for pid in $(descendants "$job"); do
  if [ "$(cat /proc/"$pid"/comm 2>/dev/null)" = lorashard ]; then ranks+=("$pid"); fi
done
if [ ${#ranks[@]} -ne 2 ]; then
  echo "error: quickstart: expected to find 2 ranks under mpirun, found ${#ranks[@]}" >&2
  exit 3
fi
kill -TERM "${ranks[@]}"
status=0
wait "$job" || status=$?
job=""
if [ $status -ne 143 ]; then
  echo "error: the interrupted run ended with status $status, and not with 143" >&2
  exit 3
fi
say "Stopped at step $(steps_done) with status 143; newest checkpoint: $(cat "$run/checkpoints/latest")"

heading "4. Resume from that checkpoint"
log=$logs/resume.log
train --resume >"$log" 2>&1 &
job=$!
watch_job $((steps + 1))
wait "$job"
job=""
say "" "training loss, mean of 10 steps: $(awk -v n="$steps" '
  match($0, /"loss": *[-+0-9.eE]+/) {
    split(substr($0, RSTART, RLENGTH), part, ":")
    if (NR <= 10) first += part[2] / 10
    if (NR > n - 10) last += part[2] / 10
  }
  END { printf "%.3f -> %.3f", first, last }' "$run/metrics.jsonl")"
say "loss on entries it was not trained on: $(value eval_loss <"$run/metrics.jsonl" | awk '
  { printf "%s%.3f", (NR > 1 ? " -> " : ""), $1 }')"

heading "5. Export the merged model"
log=$logs/export.log
"$program" export --model "$base" --adapter "$run/adapter" --format merged --out "$run/merged" </dev/null >"$log" 2>&1
say "base + adapter as one Hugging Face model: $run/merged"

heading "6. The same prompts, before and after"
sample() { "$program" generate --model "$1" --prompt "$2" --max-new-tokens 48 --temperature 0.5 --seed "$3" </dev/null 2>>"$log"; }
log=$logs/generate.log
column() { expand -t 3 "$1" | fold -s -w 50 | sed 's/ *$//' | head -n 9; }
rule=--------------------------------------------------
printf '   %-52s%s\n' base fine-tuned $rule $rule
for prompt in "Wisdom" "Law" "Bread" "The fool"; do
  sample "$base" "$prompt" 2 >"$logs/base.txt"
  sample "$run/merged" "$prompt" 2 >"$logs/tuned.txt"
  column "$logs/base.txt" >"$logs/base.column"
  column "$logs/tuned.txt" >"$logs/tuned.column"
  echo
  # Joined line by line: a column of 50 signs, a gap of 2, the other column.
  awk -v tuned="$logs/tuned.column" '
    { if ((getline right < tuned) <= 0) right = ""; printf "   %-52s%s\n", $0, right }
    END { while ((getline right < tuned) > 0) printf "   %-52s%s\n", "", right }' "$logs/base.column"
done

heading "Done. What lies where"
say "$run/adapter             the adapter, opens in PEFT" \
  "$run/merged              the merged model, opens in transformers" \
  "$run/metrics.jsonl       loss, learning rate, speed of every step" \
  "$run/config.textproto    the settings as resolved" \
  "$run/checkpoints         what --resume starts from" \
  "$logs             what the programs printed" \
  "" "Try:  $program generate --model $base --adapter $run/adapter --prompt \"Love\""
log=""
