#!/usr/bin/env bash
# Writes tests/cuda/KERNELS.md: what nvcc makes of each kernel on each architecture. Fails if a
# kernel spills registers to local memory.
#   kernel_table.sh            compiles what changed since the table was written; needs nvcc
#   kernel_table.sh --check    exits with 1, naming the files, if the table is older than a source
set -euo pipefail
export LC_ALL=C
cd "$(dirname "$0")/../.."
table=tests/cuda/KERNELS.md
architectures="80 90 100"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# FILE and what it includes of kernels/cuda, each once; headers for the host alone left out.
sources() {
  local file seen=" " queue=("$1")
  while ((${#queue[@]})); do
    file=${queue[0]} queue=("${queue[@]:1}")
    [[ $seen == *" $file "* || $file =~ /(check|device|kernels)\.h$ ]] && continue
    seen+="$file "
    echo "$file"
    mapfile -t -O ${#queue[@]} queue < <(sed -n 's|^#include "\(kernels/cuda/[^"]*\)".*|\1|p' "$file")
  done
}

# A digest of them that comments and layout do not change, and of what forms the table.
digest() {
  { sources "$1" | sort | while read -r file; do echo "$file"; sed 's|//.*||' "$file"; done
    cat tests/cuda/occupancy_main.cpp
    if sources "$1" | xargs grep -q dyn_shared; then cat tests/cuda/dynamic_shared.txt; fi; } |
    tr -d '[:space:]' | sha256sum | cut -c1-16
}

# The table's section about FILE, if it is there and was made from the sources as they are.
current_section() {
  [[ -f $table ]] && awk -v head="## ${1##*/}" -v mark="<!-- sources $(digest "$1") -->" '
    /^## / { inside = $0 == head }
    inside { text = text $0 "\n"; if ($0 == mark) found = 1 }
    END { if (found) printf "%s", text; exit !found }' "$table"
}

if [[ ${1:-} == --check ]]; then
  status=0
  for file in kernels/cuda/*.cu; do
    current_section "$file" >/dev/null || { echo "$table is older than $file" >&2; status=1; }
  done
  exit $status
fi

nvcc=${NVCC:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}
toolkit=$(dirname "$(dirname "$(readlink -f "$nvcc")")")
ptxas=$toolkit/bin/ptxas
${CXX:-c++} -O1 -isystem "$toolkit/include" -o "$work/occupancy" tests/cuda/occupancy_main.cpp

# Of PTX: "mangled name, most threads of a block, whether dynamic shared memory is used".
entries() {
  awk '/\.entry / { match($0, /\.entry [A-Za-z0-9_$]+/); name = substr($0, RSTART + 7, RLENGTH - 7); threads = 1024; uses = 0 }
       /^\.maxntid/ { threads = $2 + 0; if ($3 + 0) threads *= $3; if ($4 + 0) threads *= $4 }
       name && /lorashard_dynamic_shared/ { uses = 1 }
       name && /^}/ { print name, threads, uses; name = "" }' "$1"
}

# Of what ptxas -v says: "mangled name, registers, static shared memory".
resources() {
  awk '/Compiling entry function/ { split($0, part, "\047"); name = part[2] }
       /Used [0-9]+ registers/ { match($0, /Used [0-9]+/); registers = substr($0, RSTART + 5, RLENGTH - 5)
         shared = 0; if (match($0, /[0-9]+ bytes smem/)) shared = substr($0, RSTART, RLENGTH) + 0
         print name, registers, shared }' "$1"
}

# Names as in the source, without what is the same for all.
readable() {
  c++filt | sed -e 's/^void //' -e 's/(anonymous namespace):://g' -e 's/lorashard::cuda:://g' \
    -e 's/(lorashard::Activation)0/SILU/g' -e 's/(lorashard::Activation)1/GELU/g' \
    -e 's/(lorashard::Activation)2/GELU_TANH/g' -e 's/__nv_bfloat16/bf16/g' -e 's/__half/f16/g' \
    -e 's/ >/>/g' -e 's/(.*//'
}

# What dynamic_shared.txt says of a kernel.
dynamic_bytes() {
  awk -v name="${1// /}" '!/^#/ && $1 == name { print $2; found = 1 } END { exit !found }' \
    tests/cuda/dynamic_shared.txt
}

# Compiles FILE and prints its section.
section() {
  local file=$1 base=${1##*/} architecture name threads uses registers static dynamic
  for architecture in $architectures; do
    "$nvcc" -std=c++20 -O3 -DNDEBUG -I. -ptx -arch=compute_$architecture -o "$work/$base.ptx" "$file" || return 1
    "$ptxas" -arch=sm_$architecture -v --warn-on-spills --warning-as-error -o /dev/null \
      "$work/$base.ptx" >"$work/log" 2>&1 || { grep error "$work/log" | c++filt >&2; return 1; }
    entries "$work/$base.ptx" | sort >"$work/entries"
    resources "$work/log" | sort >"$work/resources"
    join "$work/entries" "$work/resources" | while read -r name threads uses registers static; do
      name=$(readable <<<"$name")
      dynamic=0
      if ((uses)); then
        dynamic=$(dynamic_bytes "$name") ||
          { echo "dynamic_shared.txt lacks $name of $file" >&2; exit 1; }
      fi
      occupancy=$("$work/occupancy" <<<"$architecture $registers $static $dynamic $threads")
      printf '%s\t%s\t%s\t%s\t%s\t%s\n' "$name" "$threads" "$static" "$dynamic" "$registers" "$occupancy"
    done | sort >"$work/$architecture" || return 1
  done
  echo "## $base"
  echo "<!-- sources $(digest "$file") -->"
  echo
  echo "| kernel | threads | shared, static + dynamic | registers | occupancy |"
  echo "| --- | --- | --- | --- | --- |"
  paste "$work/80" "$work/90" "$work/100" | awk -F'\t' '{
    printf "| `%s` | %d | %d + %d | %d, %d, %d | %d, %d, %d |\n", $1, $2, $3, $4, $5, $11, $17, $6, $12, $18 }'
}

{
  echo "# Kernels as nvcc compiles them"
  echo
  echo "Written by tests/cuda/kernel_table.sh and read before it is committed. None spills registers to"
  echo "local memory. Threads: the most of a block; shared memory in bytes of a block; registers of a"
  echo "thread and occupancy (percent of a multiprocessor's 2048 threads that can be resident) for sm_80,"
  echo "sm_90 and sm_100. Compiled by $("$nvcc" --version | sed -n 's/.*release \([0-9.]*\).*/CUDA \1/p')."
} >"$work/table"
status=0
for file in kernels/cuda/*.cu; do
  # A file that fails leaves the others their sections.
  if current_section "$file" >"$work/section" || (section "$file") >"$work/section"; then
    { echo; sed -e '${/^$/d' -e '}' "$work/section"; } >>"$work/table"
  else
    status=1
  fi
done
cp "$work/table" $table
exit $status
