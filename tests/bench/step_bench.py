#!/usr/bin/env python3
"""Measures whole steps of lorashard beside their targets, and beside oneDNN and torch + PEFT.

  python3 tests/bench/step_bench.py --build build --work /var/tmp/bench --json figures.json
  python3 tests/bench/step_bench.py --only speed,ranks --models smol135 --dtypes fp32
  python3 tests/bench/step_bench.py --quick                    # a smoke run of about a minute

Ours, oneDNN's GEMMs and the peers run in turns on the same processors, and the best of several
rounds counts, because other programs slow a shared machine down but never speed it up. Models have
random weights and are made here; peers run if a Python with torch, transformers and peft is given or
found. Needs the standard library alone, a build with -DLORASHARD_BENCH=ON, and 10 GB of disk for the
model of 1.2 billion weights (groups start and export).

Each target gets a line: met, not met, or skipped with the reason; a skipped one counts as nothing.
Exit status: 0 measured, whatever was met; 1 a program that was to be measured failed; 2 wrong usage.
"""
import argparse
import json
import os
import sys
import time

from step import growth, jobs, models, speed
from step.run import Bench, machine, pick_cpus

GROUPS = {
    "speed": speed.speed,        # model flops against oneDNN, tokens/s against PEFT
    "memory": speed.memory,      # peak RSS against PEFT
    "ranks": speed.ranks,        # TP=2 and DP=2 against one rank
    "sequence": growth.sequence,  # 512 -> 8192 tokens
    "logits": growth.logits,     # a vocabulary of 262144
    "start": jobs.start,
    "tokenize": jobs.tokenize,
    "export": jobs.export,
}


def listed(allowed):
    def parse(text):
        words = [word for word in text.split(",") if word]
        for word in words:
            if word not in allowed:
                raise argparse.ArgumentTypeError(f"{word}: not one of {', '.join(allowed)}")
        if not words:
            raise argparse.ArgumentTypeError(f"empty: name some of {', '.join(allowed)}")
        return words
    return parse


def positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: at least 1")
    return value


def arguments():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--build", default="build", help="CMake's build folder [build]")
    add("--work", default="build/step_bench", help="models, data and runs [build/step_bench]")
    add("--json", metavar="FILE", help="machine, table and every raw sample")
    add("--only", type=listed(GROUPS), default=list(GROUPS), metavar="GROUP,…",
        help="of " + ", ".join(GROUPS))
    add("--models", type=listed(models.SHAPES), metavar="MODEL,…", help="[smol135,llama100]")
    add("--dtypes", type=listed(["fp32", "bf16"]), metavar="TYPE,…", help="[fp32,bf16]")
    add("--targets", type=listed(speed.TARGETS), metavar="qv|all,…",
        help="adapted modules: q and v, or all linear layers [qv,all]")
    add("--threads", type=positive, default=2, help="of one rank; two ranks share them out [2]")
    add("--rounds", type=positive, help="of which the best counts [3]")
    add("--steps", type=positive, help="of each run, the first warms up [4]")
    add("--timeout", type=positive, default=600, help="seconds for one of our runs [600]")
    add("--peft-python", metavar="PATH", help="Python with torch, transformers and peft "
        "[$LORASHARD_PEFT_PYTHON, ~/peft/bin/python]; none: no peers")
    add("--peer-timeout", type=positive, help="seconds for one run of a peer, twice that where it "
        "compiles, at most 120 for bf16 on a processor without bf16 units [300]")
    add("--no-compile", action="store_true", help="leave out the compiled form of the peer")
    add("--tokenizer", metavar="DIR", help="folder with tokenizer.json [those of the tests]")
    add("--mpirun", default="", metavar="COMMAND", help="[mpirun, with --bind-to none for Open MPI "
        "where a rank has several threads or the machine more processors than are used]")
    add("--quick", action="store_true", help="a tiny model, one round: does everything run?")
    options = parser.parse_args()
    defaults = dict(models=["smol135", "llama100"], dtypes=["fp32", "bf16"], targets=["qv", "all"],
                    rounds=3, steps=4, peer_timeout=300)
    if options.quick:
        defaults = dict(models=["tiny"], dtypes=["fp32"], targets=["qv"], rounds=1, steps=2,
                        peer_timeout=40)
        options.no_compile = True
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.tokenizer and not os.path.exists(os.path.join(options.tokenizer, "tokenizer.json")):
        parser.error(f"--tokenizer: no tokenizer.json in {options.tokenizer}")
    if not os.access(os.path.join(options.build, "launch", "lorashard"), os.X_OK):
        parser.error(f"--build: no {options.build}/launch/lorashard: build it first")
    allowed = len(os.sched_getaffinity(0))
    if options.threads > allowed:
        parser.error(f"--threads: {options.threads}, but only {allowed} processors may be used")
    return options, allowed


def choose_mpirun(options, allowed):
    """Open MPI binds two ranks to one core each: right for one thread on a machine of as many cores,
    otherwise in the way."""
    if options.mpirun:
        return
    options.mpirun = "mpirun"
    version = os.popen("mpirun --version 2>/dev/null").read()
    if "Open MPI" in version and (options.threads > 2 or allowed > options.threads):
        options.mpirun += " --bind-to none"


def print_table(rows):
    columns = ["figure", "case", "target", "measured", "status"]
    print("\n| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns))
    for row in rows:
        print("| " + " | ".join(row[c] for c in columns) + " |")
    counts = {}
    for row in rows:
        counts[row["status"]] = counts.get(row["status"], 0) + 1
    print("\n" + ", ".join(f"{n} {status}" for status, n in counts.items()))


def main():
    options, allowed = arguments()
    choose_mpirun(options, allowed)
    os.sched_setaffinity(0, pick_cpus(options.threads))  # for everything started from here
    bench = Bench(options)
    bench.machine = machine(bench)
    print(f"{bench.machine['cpu']}, {options.threads} threads, " +
          ", ".join(flag for flag, has in bench.machine["flags"].items() if has))
    print(f"PEFT: {bench.peft_versions}")
    load = os.getloadavg()[0]
    if load > 0.5:
        # One thread that has to wait for a processor holds up all that meet it at a barrier.
        print(f"warning: load {load:.1f}: other programs run here, and figures of several threads "
              "will be too low by any factor")
    for group in options.only:
        print(f"{group}:", flush=True)
        begin, load = time.monotonic(), os.getloadavg()
        bench.attempt(group, "-", GROUPS[group])
        bench.sample("group", group=group, seconds=time.monotonic() - begin,
                     load_before=list(load), load_after=list(os.getloadavg()))
        if options.json:  # after each group, so that a run that is cut short leaves its part
            with open(options.json + ".part", "w", encoding="utf-8") as file:
                json.dump({"machine": bench.machine, "command": sys.argv, "quick": options.quick,
                           "options": vars(options), "table": bench.rows,
                           "samples": bench.samples}, file, indent=1)
            os.replace(options.json + ".part", options.json)
    print_table(bench.rows)
    return 1 if bench.failed else 0


if __name__ == "__main__":
    sys.exit(main())
