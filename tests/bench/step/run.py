"""Starts programs, bounds their time, and reads what they measured."""
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import threading
import time

QV = ["q_proj", "v_proj"]
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Failed(Exception):
    """A program that was to be measured failed; the message says which and how."""


def finish(process, timeout, watch=None):
    """Waits for a process that leads its own session, while `watch(process)` looks on; ends it after
    `timeout` seconds, gently first because mpirun ends its ranks then. Returns (exit status or None
    if it ran out of time, its rusage, what watch returned)."""
    late = threading.Event()

    def end(number):
        late.set()
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            pass

    timers = [threading.Timer(timeout, end, [signal.SIGTERM]),
              threading.Timer(timeout + 10, end, [signal.SIGKILL])]
    for timer in timers:
        timer.daemon = True
        timer.start()
    try:
        seen = watch(process) if watch else None
        _, status, usage = os.wait4(process.pid, 0)
    except BaseException:
        end(signal.SIGTERM)
        raise
    finally:
        for timer in timers:
            timer.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)
    return (None if late.is_set() else process.returncode), usage, seen


def started(command, **arguments):
    """A process in a session of its own."""
    try:
        return subprocess.Popen(command, start_new_session=True, **arguments)
    except OSError as error:
        raise Failed(f"{command[0]}: {error.strerror}") from error


def running(process):
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def timed(command, timeout, environment, stdin=None, stdout=subprocess.DEVNULL):
    """Runs a command: dict(seconds, cpu_seconds, peak_rss_mib). Fails on any other exit than 0."""
    begin = time.perf_counter()
    with open(os.path.join(environment["LORASHARD_BENCH_WORK"], "stderr"), "w+") as errors:
        process = started(command, env=environment, stdin=stdin, stdout=stdout, stderr=errors)
        status, usage, _ = finish(process, timeout)
        seconds = time.perf_counter() - begin
        if status != 0:
            errors.seek(0)
            what = f"over {timeout:.0f} s" if status is None else f"exit status {status}"
            raise Failed(f"{os.path.basename(command[0])}: {what}: {errors.read()[-400:].strip()}")
    return {"seconds": seconds, "cpu_seconds": usage.ru_utime + usage.ru_stime,
            "peak_rss_mib": usage.ru_maxrss / 1024}


class Bench:
    """The programs, where they work, and every sample taken."""

    def __init__(self, options):
        self.options = options
        self.quick = options.quick
        self.work = os.path.abspath(options.work)
        os.makedirs(self.work, exist_ok=True)
        self.program = os.path.join(os.path.abspath(options.build), "launch", "lorashard")
        self.roof_program = os.path.join(os.path.abspath(options.build), "tests", "bench",
                                         "onednn_rate")
        self.threads = options.threads
        self.environment = dict(os.environ, LORASHARD_BENCH_WORK=self.work,
                                XDG_CACHE_HOME=os.path.join(self.work, "cache"),
                                OMPI_MCA_rmaps_base_oversubscribe="1")
        if os.geteuid() == 0:
            self.environment.update(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
        self.peft_python, self.peft_versions = find_peft(options.peft_python)
        self.samples = []
        self.rows = []
        self.failed = False

    # ---- what is written down

    def sample(self, kind, **values):
        self.samples.append({"kind": kind, "at_s": round(time.monotonic(), 3), **values})

    def row(self, group, figure, case, target, measured, met):
        """One line of the table. met: True, False, a status of its own, or None with the reason in
        `measured`."""
        status = "skipped" if met is None else met or "not met"
        status = "met" if status is True else status
        if self.quick and status not in ("skipped", "failed"):
            status = "smoke run"  # other models and sizes than the targets speak of
        self.rows.append({"group": group, "figure": figure, "case": case, "target": target,
                          "measured": measured, "status": status})
        print(f"  {figure}, {case}: {measured} ({status})", flush=True)

    def attempt(self, group, case, measure, *arguments):
        """Runs one case; one that fails is said and does not keep the others from running."""
        try:
            measure(self, *arguments)
        except Failed as error:
            self.failed = True
            self.row(group, "failed", case, "-", " ".join(str(error).split()), "failed")

    # ---- lorashard

    def train(self, model, data, *, label, tokens, batch=2, steps=3, dtype="fp32", targets=QV,
              recompute="NONE", ranks=1, tensor=1, threads=None, rank=8, profile=None, watch=None,
              timeout=None):
        """One run of `lorashard train`. Returns the step records of metrics.jsonl, the process's own
        figures and the best step after the first: dict(steps, best_s, tok_s, peak_rss_mib, …).
        `watch` is called with the process while it runs."""
        run = os.path.join(self.work, "run")
        shutil.rmtree(run, ignore_errors=True)
        names = " ".join(f'target_modules: "{t}"' for t in targets)
        text = f"""model {{ path: {json.dumps(model)} }}
data {{ train: {json.dumps(data)} format: TOKENS seq_len: {tokens} shuffle: false }}
lora {{ rank: {rank} alpha: {2 * rank} {names} }}
train {{ steps: {steps} global_batch_size: {batch} micro_batch_size: {batch // (ranks // tensor)} }}
parallel {{ tensor: {tensor} }}
checkpoint {{ every: 0 }}
compute {{ backend: CPU dtype: {dtype.upper()} threads: {threads or self.threads}
          recompute: {recompute} }}
output {{ dir: {json.dumps(run)} }}
"""
        config = os.path.join(self.work, "run.textproto")
        with open(config, "w", encoding="utf-8") as file:
            file.write(text)
        command = [self.program, "train", config]
        if profile:
            command += ["--profile", profile]
        if ranks > 1:  # one rank runs without mpirun, which would bind it to one core
            command = [*self.options.mpirun.split(), "-n", str(ranks), *command]
        begin = time.time()
        timeout = timeout or self.options.timeout
        with open(os.path.join(self.work, "stderr"), "w+") as errors:
            process = started(command, env=self.environment, stdout=subprocess.DEVNULL,
                              stderr=errors)
            status, usage, seen = finish(process, timeout, watch)
            errors.seek(0)
            if status != 0:
                what = f"over {timeout} s" if status is None else f"exit status {status}"
                raise Failed(f"lorashard train: {what}: {errors.read()[-400:].strip()}")
        with open(os.path.join(run, "metrics.jsonl"), encoding="utf-8") as file:
            records = [json.loads(line) for line in file]
        best = min(r["step_time_s"] for r in (records[1:] or records))
        result = {
            "best_s": best, "tok_s": batch * tokens / best, "steps": records,
            # Of one rank the system's own figure; of several the largest rank's.
            "peak_rss_mib": usage.ru_maxrss / 1024 if ranks == 1
                            else max(r["peak_rss_mib"] for r in records),
            "started_at": begin, "watched": seen, "run": run,
        }
        self.sample("lorashard", label=label, model=os.path.basename(model), dtype=dtype,
                    targets=len(targets), tokens=tokens, batch=batch, recompute=recompute,
                    ranks=ranks, tensor=tensor, threads=threads or self.threads,
                    best_s=best, tok_s=result["tok_s"], peak_rss_mib=result["peak_rss_mib"],
                    step_times_s=[r["step_time_s"] for r in records],
                    loss=[r["loss"] for r in records], watched=seen)
        return result

    # ---- oneDNN

    def roof(self, weights, rows, dtype, fastest):
        """Times oneDNN on the GEMMs of `weights` [((n,k), count)], forward and input gradient,
        and keeps in `fastest` each GEMM's best seconds of all rounds. Returns (GFLOP/s over all
        of them, weighted by their flops; ""), or (None, why not)."""
        if not os.path.exists(self.roof_program):
            return None, f"no {self.roof_program}: configure with -DLORASHARD_BENCH=ON"
        command = [self.roof_program, "--threads", str(self.threads), "--rows", str(rows), "--type",
                   "bf16" if dtype == "bf16" else "f32"]
        command += [f"{n},{k}" for (n, k), _ in weights]
        try:
            done = subprocess.run(command, env=self.environment, stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE, text=True,
                                  timeout=self.options.timeout)
        except subprocess.TimeoutExpired:
            return None, f"onednn_rate took over {self.options.timeout} s"
        if done.returncode != 0:
            return None, done.stderr.strip()
        gemms = [json.loads(line) for line in done.stdout.splitlines()]
        for p in gemms:
            key = p["gemm"], p["n"], p["k"]
            fastest[key] = min(p["seconds"], fastest.get(key, p["seconds"]))
        counts = dict(weights)
        seconds = sum(t * counts[n, k] for (_, n, k), t in fastest.items())
        flops = sum(4.0 * rows * n * k * count for (n, k), count in weights)
        self.sample("onednn", dtype=dtype, rows=rows, threads=self.threads, gemms=gemms,
                    gflops_so_far=flops / seconds * 1e-9)
        return flops / seconds * 1e-9, ""

    # ---- torch + PEFT

    def peer(self, model, data, *, tokens, dtype="fp32", targets="qv", compiled=False,
             checkpointing=False, batch=2, steps=3, timeout=None):
        """One run of peers/peft_lora.py, bounded in time: dict(tok_s, bound_s, peak_rss_mib). If
        the time limit came within the first step, tok_s is None and bound_s what the step takes at
        least; if it came before (loading, compiling), both are None. peak_rss_mib is None unless a
        whole step was seen."""
        timeout = timeout or self.options.peer_timeout
        here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        command = [self.peft_python, os.path.join(here, "peers", "peft_lora.py"), model, data,
                   "--dtype", dtype, "--targets", targets, "--batch", str(batch), "--steps",
                   str(steps), "--threads", str(self.threads)]
        command += ["--compile"] if compiled else []
        command += ["--checkpointing"] if checkpointing else []
        environment = dict(self.environment, OMP_NUM_THREADS=str(self.threads),
                           TORCHINDUCTOR_CACHE_DIR=os.path.join(self.work, "inductor"),
                           HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
        out = os.path.join(self.work, "peer.out")
        begin = time.perf_counter()
        with open(out, "w") as file, open(os.path.join(self.work, "stderr"), "w+") as errors:
            process = started(command, env=environment, stdout=file, stderr=errors)
            status, _, _ = finish(process, timeout)
            spent = time.perf_counter() - begin
            errors.seek(0)
            complaint = errors.read()[-400:].strip()
        with open(out) as file:
            lines = [json.loads(line) for line in file if line.startswith("{")]
        if status not in (0, None):
            raise Failed(f"PEFT: exit status {status}: {complaint}")
        ready = next((line["ready_s"] for line in lines if "ready_s" in line), None)
        done = [line for line in lines if "step" in line]
        result = {"tok_s": None, "bound_s": None, "peak_rss_mib": None}
        if len(done) > 1 or (done and not compiled):
            # The first step counts only where there is no other.
            result["tok_s"] = batch * tokens / min(s["seconds"] for s in (done[1:] or done))
        elif ready is not None and not compiled:
            result["bound_s"] = spent - ready
        if done:
            result["peak_rss_mib"] = done[-1]["peak_rss_mib"]
        self.sample("peft", model=os.path.basename(model), dtype=dtype, targets=targets,
                    tokens=tokens, batch=batch, compiled=compiled, checkpointing=checkpointing,
                    timed_out=status is None, timeout_s=timeout, ready_s=ready, steps=done, **result)
        return result


def find_peft(given):
    """The first Python that has torch, transformers and peft: the one given, $LORASHARD_PEFT_PYTHON,
    ~/peft/bin/python. (path, versions), or (None, why not)."""
    places = [given] if given else [os.environ.get("LORASHARD_PEFT_PYTHON"),
                                    os.path.expanduser("~/peft/bin/python")]
    script = ("import json, torch, transformers, peft; print(json.dumps(dict(torch=torch.__version__,"
              "transformers=transformers.__version__, peft=peft.__version__)))")
    why = "no Python with torch, transformers and peft: see --peft-python"
    for place in places:
        if not place or not os.path.exists(place):
            continue
        try:
            done = subprocess.run([place, "-c", script], stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE, text=True, timeout=300)
        except subprocess.TimeoutExpired:
            why = f"{place}: importing torch, transformers and peft took over 300 s"
            continue
        if done.returncode == 0:
            return place, json.loads(done.stdout.splitlines()[-1])
        why = f"{place}: {done.stderr.strip().splitlines()[-1]}"
    if given:
        raise SystemExit(f"error: --peft-python: {why if os.path.exists(given) else 'no ' + given}")
    return None, why


def pick_cpus(threads):
    """`threads` processors on cores of their own where there are enough, out of those allowed."""
    allowed, seen, chosen = sorted(os.sched_getaffinity(0)), set(), []
    for cpu in allowed:
        path = f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        try:
            with open(path) as file:
                core = file.read().strip()
        except OSError:
            core = str(cpu)
        if core not in seen:
            seen.add(core)
            chosen.append(cpu)
    chosen += [cpu for cpu in allowed if cpu not in chosen]
    return chosen[:threads]


def machine(bench):
    """What the figures were taken on."""
    text = open("/proc/cpuinfo").read()
    flags = set(re.search(r"^flags\s*:(.*)$", text, re.M).group(1).split())
    wanted = ["avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16"]
    memory = re.search(r"MemTotal:\s*(\d+) kB", open("/proc/meminfo").read())

    def version(*command):
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                  text=True, timeout=60, env=bench.environment)
            return done.stdout.strip().splitlines()[0] if done.stdout.strip() else ""
        except (OSError, subprocess.TimeoutExpired):
            return ""

    return {
        "cpu": re.search(r"model name\s*:\s*(.*)", text).group(1),
        "flags": {flag: flag in flags for flag in wanted},
        "cpus_used": sorted(os.sched_getaffinity(0)), "cpus_online": os.cpu_count(),
        "threads": bench.threads, "memory_mib": int(memory.group(1)) // 1024,
        "system": platform.platform(), "python": platform.python_version(),
        "lorashard": version(bench.program, "--version"),
        "commit": version("git", "-C", os.path.dirname(os.path.abspath(__file__)), "rev-parse",
                          "--short", "HEAD"),
        "mpi": version(bench.options.mpirun.split()[0], "--version"),
        "peft": bench.peft_versions, "load_at_start": list(os.getloadavg()),
    }
