#!/usr/bin/env python3
"""How cost grows: step time and peak memory over weights, sequence length, LoRA rank and MPI ranks,
measured on this computer beside what the cost model says (trainer/cost/cost_model.h).

  python3 tests/bench/cost_growth.py --build build --work /tmp/growth            # about 20 minutes
  python3 tests/bench/cost_growth.py --build build --work /tmp/growth --quick    # a smoke test

Needs the programs lorashard and bench_cost (cmake -DLORASHARD_BENCH=ON) and nothing but Python's
standard library; with matplotlib it draws a figure per sweep as well. Models are random and written
once into --work; results go to --work/cost_growth.json.

The computer should be quiet. Rounds go over all points in turns; of every point the fastest step
counts, because others slow a step down but never speed it up. The machine's rates (bench_cost
measure) are taken in every round too, the best kept: the model is not fitted to the steps.
"""
import argparse
import array
import json
import os
import random
import shutil
import struct
import subprocess
import sys
from pathlib import Path

# name: hidden, layers, heads, kv_heads, head_dim, intermediate, vocabulary, tied
MODELS = {
    "tiny": (64, 2, 4, 2, 16, 160, 512, True),
    "w9": (256, 6, 4, 2, 64, 768, 8192, True),
    "w32": (384, 12, 6, 2, 64, 1024, 24576, True),
    "smol135": (576, 30, 9, 3, 64, 1536, 49152, True),
    "llama100": (768, 10, 12, 4, 64, 2048, 32000, True),
    "w330": (1024, 24, 16, 4, 64, 2816, 32000, True),
}
POOL = 1 << 20  # random values; matrices take them over and over, each from another place


def tensors(shape):
    """(name, shape) in the order of the file."""
    hidden, layers, heads, kv_heads, head_dim, inter, vocab, tied = shape
    q, kv = heads * head_dim, kv_heads * head_dim
    yield "model.embed_tokens.weight", (vocab, hidden)
    for i in range(layers):
        p = f"model.layers.{i}."
        yield p + "input_layernorm.weight", (hidden,)
        yield p + "post_attention_layernorm.weight", (hidden,)
        for name, rows, cols in (
            ("self_attn.q_proj", q, hidden), ("self_attn.k_proj", kv, hidden),
            ("self_attn.v_proj", kv, hidden), ("self_attn.o_proj", hidden, q),
            ("mlp.gate_proj", inter, hidden), ("mlp.up_proj", inter, hidden),
            ("mlp.down_proj", hidden, inter)):
            yield p + name + ".weight", (rows, cols)
    yield "model.norm.weight", (hidden,)
    if not tied:
        yield "lm_head.weight", (vocab, hidden)


def count(shape):
    n = 1
    for s in shape:
        n *= s
    return n


def weights_of(shape):
    return sum(count(s) for _, s in tensors(shape))


def narrowed(values, dtype):
    """float32 values as the bytes of dtype; BF16 by cutting bits off."""
    raw = values.tobytes()
    if dtype == "F32":
        return raw
    half = bytearray(len(raw) // 2)
    half[0::2], half[1::2] = raw[2::4], raw[3::4]
    return bytes(half)


def write_model(folder, shape, dtype):
    """A random Llama in Hugging Face's layout. Kept when it is there already."""
    if (folder / "model.safetensors").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    hidden, layers, heads, kv_heads, head_dim, inter, vocab, tied = shape
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
        "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "head_dim": head_dim, "intermediate_size": inter,
        "vocab_size": vocab, "max_position_embeddings": 65536, "hidden_act": "silu",
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": tied,
        "attention_bias": False, "mlp_bias": False, "bos_token_id": 1, "eos_token_id": 2,
        "torch_dtype": "float32" if dtype == "F32" else "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    size = 4 if dtype == "F32" else 2
    header, at = {}, 0
    for name, s in tensors(shape):
        end = at + count(s) * size
        header[name] = {"dtype": dtype, "shape": list(s), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    generator = random.Random(1)
    pool = narrowed(array.array("f", (generator.gauss(0, 0.02) for _ in range(POOL))), dtype)
    ones = narrowed(array.array("f", [1.0] * 8192), dtype)
    partial = folder / "model.safetensors.partial"
    with open(partial, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for name, s in tensors(shape):
            left = count(s) * size
            if len(s) == 1:
                out.write(ones[:left])
                continue
            start = generator.randrange(POOL) * size
            while left > 0:
                piece = pool[start:start + left]
                out.write(piece)
                left -= len(piece)
                start = 0
    partial.rename(folder / "model.safetensors")


def write_data(path, vocab, length, lines):
    if path.exists():
        return
    generator = random.Random(length)
    with open(path, "w") as out:
        for _ in range(lines):
            ids = [generator.randrange(3, vocab) for _ in range(length)]
            out.write(json.dumps({"input_ids": ids, "labels": ids}) + "\n")


def point(sweep, x, model, **changes):
    settings = dict(model=model, dtype="FP32", base="F32", seq=512, micro=2, batch=2, rank=8,
                    targets="q_proj,v_proj", tp=1, dp=1, threads=0, recompute="NONE")
    settings.update(changes)
    return {"sweep": sweep, "x": x, "settings": settings, "measured": {}, "modelled": {}}


def sweeps(quick, cpus):
    """Every point: one training run. Threads are shared out over the ranks."""
    threads = cpus
    points = []
    models = ["tiny", "w9"] if quick else ["w9", "w32", "llama100", "smol135", "w330"]
    middle = "tiny" if quick else "llama100"
    small = "tiny" if quick else "w32"
    for m in models:
        points.append(point("weights", weights_of(MODELS[m]), m, threads=threads))
    for seq in (64, 128) if quick else (128, 256, 512, 1024, 2048, 4096, 8192):
        points.append(point("sequence", seq, small, seq=seq, micro=1, batch=1, threads=threads))
    for r in (4, 16) if quick else (2, 8, 32, 128, 256):
        points.append(point("rank", r, middle, rank=r, targets="all-linear", threads=threads))
    for b in (1, 4) if quick else (1, 2, 4, 8):
        points.append(point("micro_batch", b, middle, micro=b, batch=b, threads=threads))
    for recompute in ("NONE", "MLP", "FULL"):
        points.append(point("recompute", recompute, middle, recompute=recompute, threads=threads))
    for dtype, base in (("FP32", "F32"), ("FP32", "BF16"), ("BF16", "BF16")):
        points.append(point("dtype", f"{dtype} on {base}", middle, dtype=dtype, base=base,
                            threads=threads))
    ranks = [n for n in (1, 2, 4, 8) if n <= cpus]
    for n in ranks:
        each = max(1, cpus // n)
        points.append(point("tensor ranks", n, middle, tp=n, threads=each))
        points.append(point("data ranks", n, middle, dp=n, micro=1, batch=max(ranks),
                            threads=each))
    return points


class Runner:
    def __init__(self, arguments):
        self.work = arguments.work
        self.program = arguments.build / "launch" / "lorashard"
        self.cost = arguments.build / "tests" / "bench" / "bench_cost"
        self.steps = arguments.steps
        self.rates = {}  # (threads, ranks) -> the best rates seen
        for path in (self.program, self.cost):
            if not path.exists():
                sys.exit(f"error: {path}: not there; build with -DLORASHARD_BENCH=ON")
        self.environment = dict(
            os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
            OMPI_MCA_btl_vader_single_copy_mechanism="none")

    def call(self, command):
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True,
                              env=self.environment)
        if done.returncode != 0:
            sys.exit(f"error: {' '.join(map(str, command))}: status {done.returncode}\n"
                     f"{done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def model_folder(self, s):
        folder = self.work / f"{s['model']}-{s['base'].lower()}"
        write_model(folder, MODELS[s["model"]], s["base"])
        return folder

    def measure_rates(self, points):
        """Once a round for every number of threads and ranks; the best rate of each kind stays."""
        for key in sorted({(p["settings"]["threads"], p["settings"]["tp"] * p["settings"]["dp"])
                           for p in points}):
            now = json.loads(self.call([self.cost, "measure", "--threads", key[0], "--host-ranks",
                                        key[1]]))
            best = self.rates.setdefault(key, now)
            for rate in ("f32_flops", "bf16_flops", "memory_bandwidth"):
                best[rate] = max(best[rate], now[rate])

    def model(self, p):
        s = p["settings"]
        rates = self.rates[s["threads"], s["tp"] * s["dp"]]
        p["modelled"] = json.loads(self.call(
            [self.cost, "model", "--model", self.model_folder(s), "--rates", json.dumps(rates),
             "--targets", s["targets"], "--dtype", s["dtype"], "--recompute", s["recompute"],
             "--rank", s["rank"], "--seq", s["seq"], "--micro", s["micro"], "--global", s["batch"],
             "--tp", s["tp"], "--dp", s["dp"]]))

    def train(self, p):
        s = p["settings"]
        vocab = MODELS[s["model"]][6]
        data = self.work / f"data-{vocab}-{s['seq']}.jsonl"
        write_data(data, vocab, s["seq"], 16)
        out = self.work / "run"
        shutil.rmtree(out, ignore_errors=True)
        targets = " ".join(f'target_modules: "{t}"' for t in s["targets"].split(","))
        config = self.work / "run.textproto"
        config.write_text(
            f'model {{ path: "{self.model_folder(s)}" }}\n'
            f'data {{ train: "{data}" format: TOKENS seq_len: {s["seq"]} shuffle: false }}\n'
            f'lora {{ rank: {s["rank"]} alpha: 16 {targets} }}\n'
            f'train {{ steps: {self.steps} global_batch_size: {s["batch"]} '
            f'micro_batch_size: {s["micro"]} }}\n'
            f'parallel {{ tensor: {s["tp"]} }}\n'
            f'checkpoint {{ every: 0 }}\n'
            f'compute {{ backend: CPU dtype: {s["dtype"]} threads: {s["threads"]} '
            f'recompute: {s["recompute"]} }}\n'
            f'output {{ dir: "{out}" }}\n')
        ranks = s["tp"] * s["dp"]
        launcher = [] if ranks == 1 else ["mpirun", "--bind-to", "none", "-n", ranks]
        self.call([*launcher, self.program, "train", config])
        lines = [json.loads(l) for l in (out / "metrics.jsonl").read_text().splitlines()]
        best = min(l["step_time_s"] for l in lines[1:])  # the first generates code
        m = p["measured"]
        m["seconds"] = min(best, m.get("seconds", best))
        m["peak_rss_mib"] = max(l["peak_rss_mib"] for l in lines)
        m["tokens_per_second"] = lines[-1]["tokens"] / m["seconds"]


def available_bytes():
    try:
        for line in open("/proc/meminfo"):
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 1 << 62


def print_table(points):
    print(f"\n{'sweep':<13}{'x':>12}{'measured s':>12}{'modelled s':>12}{'ratio':>7}"
          f"{'tok/s':>8}{'RSS MiB':>9}{'modelled':>9}{'ratio':>7}")
    for p in points:
        if not p["measured"]:
            continue
        measured, modelled = p["measured"], p["modelled"]
        memory = modelled["memory"]["total"] / (1 << 20)
        print(f"{p['sweep']:<13}{p['x']!s:>12}{measured['seconds']:>12.4f}"
              f"{modelled['seconds']:>12.4f}{measured['seconds'] / modelled['seconds']:>7.2f}"
              f"{measured['tokens_per_second']:>8.0f}{measured['peak_rss_mib']:>9.0f}"
              f"{memory:>9.0f}{measured['peak_rss_mib'] / memory:>7.2f}")


def draw(points, folder):
    try:
        import matplotlib
        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        return
    for sweep in ("weights", "sequence", "rank", "micro_batch", "tensor ranks", "data ranks"):
        line = [p for p in points if p["sweep"] == sweep and p["measured"]]
        if len(line) < 2:
            continue
        figure, (time, memory) = plt.subplots(1, 2, figsize=(9, 3.5))
        x = [p["x"] for p in line]
        time.loglog(x, [p["measured"]["seconds"] for p in line], "o", label="measured")
        time.loglog(x, [p["modelled"]["seconds"] for p in line], "-", label="modelled")
        time.set(xlabel=sweep, ylabel="seconds a step")
        memory.loglog(x, [p["measured"]["peak_rss_mib"] for p in line], "o", label="measured")
        memory.loglog(x, [p["modelled"]["memory"]["total"] / (1 << 20) for p in line], "-",
                      label="modelled")
        memory.set(xlabel=sweep, ylabel="peak MiB a rank")
        time.legend()
        figure.tight_layout()
        figure.savefig(folder / f"cost_growth_{sweep.replace(' ', '_')}.png")
        plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--build", type=Path, default=Path("build"), help="CMake's build folder")
    parser.add_argument("--work", type=Path, required=True, help="folder for models and results")
    parser.add_argument("--rounds", type=int, default=2, help="turns over all points")
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps a run; at least 2")
    parser.add_argument("--sweep", action="append", help="only this sweep; may be repeated")
    parser.add_argument("--quick", action="store_true", help="tiny models: does the script work?")
    arguments = parser.parse_args()
    if arguments.steps < 2:
        parser.error("--steps: at least 2, the first step of a run generates code")
    arguments.work = arguments.work.resolve()
    arguments.work.mkdir(parents=True, exist_ok=True)
    cpus = len(os.sched_getaffinity(0))
    points = sweeps(arguments.quick, cpus)
    if arguments.sweep:
        points = [p for p in points if p["sweep"] in arguments.sweep]
    if not points:
        parser.error("--sweep: there is no such sweep")
    runner = Runner(arguments)
    result = arguments.work / "cost_growth.json"
    for round_number in range(arguments.rounds):
        runner.measure_rates(points)
        for i, p in enumerate(points):
            runner.model(p)
            s = p["settings"]
            need = p["modelled"]["memory"]["total"] * s["tp"] * s["dp"]
            if need > 0.8 * available_bytes():
                print(f"skipped: {p['sweep']} {p['x']} needs {need / (1 << 30):.1f} GiB",
                      file=sys.stderr)
                continue
            runner.train(p)
            print(f"round {round_number + 1}/{arguments.rounds} point {i + 1}/{len(points)}: "
                  f"{p['sweep']} {p['x']}: {p['measured']['seconds']:.3f} s", file=sys.stderr)
        for p in points:  # with the best rates of all rounds so far
            runner.model(p)
        rates = [{"threads": k[0], "ranks": k[1], **v} for k, v in sorted(runner.rates.items())]
        result.write_text(json.dumps({"cpus": cpus, "rates": rates, "points": points}, indent=1))
    print_table(points)
    draw(points, arguments.work)
    print(f"\nwritten: {result}")


if __name__ == "__main__":
    main()
