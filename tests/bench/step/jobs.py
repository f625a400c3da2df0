"""Figures of what stands around the steps: starting, tokenizing, exporting."""
import json
import lzma
import os
import random
import shutil
import time

from . import models
from .run import running, timed

MIB = 1024 * 1024


def read_whole(path):
    """Brings a file into the page cache."""
    with open(path, "rb", buffering=0) as file:
        while file.read(16 * MIB):
            pass


def first_record(run):
    """A watcher: when, on time.time(), metrics.jsonl got its first line, and that line."""
    path = os.path.join(run, "metrics.jsonl")

    def watch(process):
        while running(process):
            try:
                with open(path, encoding="utf-8") as file:
                    line = file.readline()
                if line.endswith("\n"):
                    return {"at": time.time(), "step_time_s": json.loads(line)["step_time_s"]}
            except OSError:
                pass
            time.sleep(0.005)
        return None
    return watch


def base_model(bench):
    name = "tiny" if bench.quick else "llama-1b"
    return name, models.SHAPES[name], models.model(bench.work, name, "bf16")


def start(bench):
    """Process start to the begin of the first step, the base's file in the page cache."""
    name, shape, folder = base_model(bench)
    data = models.token_data(bench.work, shape["vocab"], 2, 16)
    cache = os.path.join(bench.work, "cache")
    for case, fresh in (("first use", True), ("digest known from before", False)):
        times = []
        for _ in range(bench.options.rounds):
            if fresh:
                shutil.rmtree(cache, ignore_errors=True)
            read_whole(os.path.join(folder, "model.safetensors"))
            run = os.path.join(bench.work, "run")
            shutil.rmtree(run, ignore_errors=True)
            # The program refuses a run folder that holds a run, so the record seen is this run's.
            got = bench.train(folder, data, label="start", tokens=16, batch=1, steps=1,
                              dtype="bf16", watch=first_record(run))
            if got["watched"]:
                times.append(got["watched"]["at"] - got["started_at"] -
                             got["watched"]["step_time_s"])
        if times:
            bench.row("start", "start to first step", f"{name} bf16, {case}", "<= 3 s",
                      f"{min(times):.2f} s (of " + ", ".join(f"{t:.2f}" for t in times) + ")",
                      min(times) <= 3)
        else:
            bench.row("start", "start to first step", f"{name} bf16, {case}", "<= 3 s",
                      "no run left a record in time", None)


def english(bench):
    """JSON strings, one a line: the paragraphs of the tree's own texts in a seeded order, repeated
    until there is enough of them."""
    top = os.path.abspath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", ".."))
    lines = []
    with open(os.path.join(top, "configs/quickstart/fortunes.train.jsonl"), encoding="utf-8") as file:
        lines += [json.loads(line)["text"] for line in file]
    for name in ("README.md", "CONTRIBUTING.md", "configs/run_config.proto", "LICENSE"):
        with open(os.path.join(top, name), encoding="utf-8") as file:
            lines += [p for p in file.read().split("\n\n") if p.strip()]
    size = (1 if bench.quick else 16) * MIB
    draw, total = random.Random(0), 0
    path = os.path.join(bench.work, "english.jsonl")
    with open(path, "w", encoding="utf-8") as file:
        while total < size:
            text = draw.choice(lines)
            total += len(text.encode())
            file.write(json.dumps(text) + "\n")
    return path, total


def tokenizers(bench):
    """name -> folder with tokenizer.json: the one given, or those of the tests."""
    if bench.options.tokenizer:
        yield os.path.basename(os.path.abspath(bench.options.tokenizer)), bench.options.tokenizer
        return
    golden = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "golden",
                          "tokenizers")
    for name in ["llama3_1"] if bench.quick else ["llama3_1", "qwen3", "llama2", "gemma"]:
        folder = os.path.join(bench.work, "tokenizers", name)
        os.makedirs(folder, exist_ok=True)
        with lzma.open(os.path.join(golden, name + ".json.xz")) as packed:
            with open(os.path.join(folder, "tokenizer.json"), "wb") as file:
                shutil.copyfileobj(packed, file)
        yield name, folder


def tokenize(bench):
    """Bytes of text per second of processor time, reading and writing JSON included, loading the
    tokenizer not."""
    path, size = english(bench)
    empty = os.path.join(bench.work, "empty.jsonl")
    open(empty, "w", encoding="utf-8").close()
    for name, folder in tokenizers(bench):
        command = [bench.program, "tokenize", "--model", folder]
        cpu, idle = [], []
        for _ in range(bench.options.rounds):
            idle.append(timed([*command, empty], 60, bench.environment)["cpu_seconds"])
            cpu.append(timed([*command, path], 600, bench.environment)["cpu_seconds"])
        rate = size / (min(cpu) - min(idle)) * 1e-6
        bench.sample("tokenize", tokenizer=name, bytes=size, cpu_seconds=cpu, loading_s=idle)
        bench.row("tokenize", "tokenizing", f"{name}, {size / 1e6:.0f} MB of English",
                  ">= 10 MB/s a core", f"{rate:.1f} MB/s", rate >= 10)


def copy_seconds(source, target):
    """A plain copy that is on the disk when it ends."""
    begin = time.perf_counter()
    with open(source, "rb", buffering=0) as a, open(target, "wb", buffering=0) as b:
        while piece := a.read(8 * MIB):
            b.write(piece)
        os.fsync(b.fileno())
    return time.perf_counter() - begin


def export(bench):
    """A merged model against a plain copy of the same bytes, in turns; and its peak memory."""
    name, shape, folder = base_model(bench)
    source = os.path.join(folder, "model.safetensors")
    size = models.weight_bytes(folder)
    data = models.token_data(bench.work, shape["vocab"], 2, 16)
    run = bench.train(folder, data, label="adapter to export", tokens=16, batch=1, steps=1,
                      dtype="bf16", targets=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj",
                                             "up_proj", "down_proj"])["run"]
    adapter = os.path.join(bench.work, "adapter")
    shutil.rmtree(adapter, ignore_errors=True)
    shutil.copytree(os.path.join(run, "adapter"), adapter)
    out, copy = os.path.join(bench.work, "export"), os.path.join(bench.work, "copy")
    exports, copies, peak = [], [], 0.0
    for _ in range(bench.options.rounds):
        shutil.rmtree(out, ignore_errors=True)
        read_whole(source)
        copies.append(copy_seconds(source, copy))
        os.remove(copy)
        read_whole(source)
        got = timed([bench.program, "export", "--model", folder, "--adapter", adapter, "--out", out],
                    bench.options.timeout, bench.environment)
        exports.append(got["seconds"])
        peak = max(peak, got["peak_rss_mib"])
    written = sum(os.path.getsize(os.path.join(out, f)) for f in os.listdir(out)
                  if f.endswith(".safetensors"))
    shutil.rmtree(out)
    bench.sample("export", model=name, bytes=written, export_s=exports, copy_s=copies,
                 peak_rss_mib=peak)
    rates = [written / min(exports) * 1e-6, size / min(copies) * 1e-6]
    case = f"{name} bf16, all linear layers"
    bench.row("export", "export merged against a plain copy", case, ">= 70 %",
              f"{rates[0] / rates[1]:.0%} ({rates[0]:.0f} of {rates[1]:.0f} MB/s, both to the disk)",
              rates[0] >= 0.7 * rates[1])
    largest = models.largest_tensor_bytes(shape, "bf16") / MIB
    bench.row("export", "peak RSS of export", case, "<= 2x the largest tensor",
              f"{peak / largest:.2f}x ({peak:.0f} MiB, largest {largest:.0f} MiB)",
              peak <= 2 * largest)
