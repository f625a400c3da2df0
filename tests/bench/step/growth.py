"""Figures at other sizes: long sequences and large vocabularies."""
import json
import os

from . import models

SLACK = 1.05  # of what is expected, for noise


def attention_seconds(trace):
    """Of the fastest step but the first of rank 0: (seconds of the step, of its attention kernels)."""
    with open(trace, encoding="utf-8") as file:
        events = [e for e in json.load(file) if e.get("ph") == "X" and e["pid"] == 0]
    steps = [e for e in events if e["cat"] == "step" and e["name"] == "step"]
    step = min(steps[1:] or steps, key=lambda e: e["dur"])
    begin, end = step["ts"], step["ts"] + step["dur"]
    attention = sum(e["dur"] for e in events
                    if e["cat"] == "kernel" and e["name"].startswith("attention_")
                    and begin <= e["ts"] < end)
    return step["dur"] * 1e-6, attention * 1e-6


def sequence(bench):
    """Sequence 512 -> 8192: time per token beside attention's own flops, and memory."""
    name = "tiny" if bench.quick else bench.options.models[-1]
    lengths = [128, 256, 512] if bench.quick else [512, 1024, 2048, 4096, 8192]
    shape = models.SHAPES[name]
    folder = models.model(bench.work, name, "fp32")
    points = {}
    for t in lengths:
        # Short sequences in pairs for the time, as in every other figure; one alone for the memory.
        for batch in (1, 2) if t == lengths[0] else (1,):
            data = models.token_data(bench.work, shape["vocab"], batch * 2, t)
            trace = os.path.join(bench.work, "trace.json")
            got = bench.train(folder, data, label="sequence", tokens=t, batch=batch, steps=3,
                              profile=trace, timeout=4 * bench.options.timeout)
            seconds, attention = attention_seconds(trace)
            flops = batch * models.attention_flops(shape, t)
            point = {"per_token": seconds / (batch * t), "rate": flops / attention,
                     "attention_per_token": attention / (batch * t)}
            points[(t, batch)] = dict(point, rss=got["peak_rss_mib"])
            bench.sample("sequence", model=name, tokens=t, batch=batch, step_s=seconds,
                         attention_s=attention, attention_gflops=flops / attention * 1e-9,
                         peak_rss_mib=got["peak_rss_mib"])
    first, last = lengths[0], lengths[-1]
    case = f"{name} fp32 {first} -> {last}"

    start = min(points[(first, 1)], points[(first, 2)], key=lambda p: p["per_token"])
    end = points[(last, 1)]
    more_flops = (models.attention_flops(shape, last) / last -
                  models.attention_flops(shape, first) / first)
    expected = start["per_token"] + more_flops / start["rate"]
    bench.row("sequence", "time per token: grows by attention's flops", case,
              f"<= {SLACK} of expected",
              f"{end['per_token'] / expected:.2f} ({end['per_token'] * 1e3:.2f} ms; expected "
              f"{expected * 1e3:.2f} = {start['per_token'] * 1e3:.2f} at {first} + flops at "
              f"{start['rate'] * 1e-9:.0f} GFLOP/s)", end["per_token"] <= SLACK * expected)

    rest = [p["per_token"] - p["attention_per_token"] for p in (start, end)]
    bench.row("sequence", "time per token without attention", case, f"<= {SLACK} of {first}",
              f"{rest[1] / rest[0]:.2f} ({rest[0] * 1e3:.2f} -> {rest[1] * 1e3:.2f} ms; attention "
              f"at {start['rate'] * 1e-9:.0f} -> {end['rate'] * 1e-9:.0f} GFLOP/s)",
              rest[1] <= SLACK * rest[0])

    # Linear: a token more costs at the end of the range what it costs in the middle.
    at = [(t, points[(t, 1)]["rss"]) for t in lengths]
    slopes = [(r1 - r0) / (t1 - t0) for (t0, r0), (t1, r1) in zip(at, at[1:])]
    if slopes[-2] <= 0:
        bench.row("sequence", "memory linear in T", case, "<= 1.1",
                  "resident memory did not grow between the two lengths before the last", None)
        return
    bench.row("sequence", "memory linear in T: KiB a token, last interval against the one before",
              case, "<= 1.1",
              f"{slopes[-1] / slopes[-2]:.2f} (" +
              ", ".join(f"{t}: {rss:.0f} MiB" for t, rss in at) + ")",
              slopes[-1] <= 1.1 * slopes[-2])


def logits(bench):
    """Memory for the logits of a 262,144-word vocabulary: what many tokens take more than few, less
    what they take more with a small vocabulary."""
    tokens, sequences = (512, 2) if bench.quick else (512, 16)
    large, small = models.SHAPES["logits"], models.SHAPES["logits-small"]
    for dtype in bench.options.dtypes:
        rss = {}
        for name, shape in (("logits", large), ("logits-small", small)):
            folder = models.model(bench.work, name, dtype)
            # Two tokens have one label: one row of logits.
            for t, batch in ((2, 1), (tokens, sequences)):
                data = models.token_data(bench.work, shape["vocab"], batch, t)
                rss[name, t] = bench.train(folder, data, label="logits", tokens=t, batch=batch,
                                           steps=2, dtype=dtype)["peak_rss_mib"]
        more = rss["logits", tokens] - rss["logits", 2]
        other = rss["logits-small", tokens] - rss["logits-small", 2]
        one_row = large["vocab"] * 4 / 2**20
        mib = more - other + one_row
        whole = sequences * tokens * one_row
        bench.row("logits", "logits memory, vocabulary of 262144",
                  f"{sequences}x{tokens} tokens {dtype}", "<= 64 MiB",
                  f"{mib:.0f} MiB (all at once: {whole:.0f} MiB in fp32)", mib <= 64)
