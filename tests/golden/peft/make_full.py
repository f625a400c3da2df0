#!/usr/bin/env python3
"""Makes full.json: full fine-tuning of models of make_golden.py's cases by torch in float64.

Of each final tensor it keeps its norm and a few projections, which together tell another tensor from it.
    make_full.py
"""
import json
import os

import torch
import transformers
from transformers import AutoModelForCausalLM

import make_golden as golden
import make_windows as windows

PROJECTIONS = 8
CASES = {  # case: learning rate, weight decay, whether norms and biases decay too
    "llama2": (1e-3, 0.0, False),
    "mistral": (1e-3, 0.1, True),
    "qwen2": (5e-4, 0.1, False),
    "qwen3": (1e-3, 0.05, False),
    "llama_tied_bias": (2e-3, 0.1, False),
    "gemma3": (1e-3, 0.0, False),
    "gemma3_new_config": (1e-3, 0.1, False),
    "qwen3_window": (1e-3, 0.0, False),
}


def projections(w):
    """sum_i w_i cos((k + 1) (i + 1) / 3): half the squared norm each, in the mean."""
    flat = w.detach().double().flatten()
    i = torch.arange(1, flat.numel() + 1, dtype=torch.float64)
    return [(flat * torch.cos((k + 1) * i / 3)).sum().item() for k in range(PROJECTIONS)]


def groups(model, decay, all_decay):
    """Parameter groups as transformers' Trainer makes them: norms and biases, the vectors, do not decay."""
    if all_decay:
        return [{"params": list(model.parameters()), "weight_decay": decay}]
    return [{"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": decay},
            {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0}]


def make_case(name):
    rate, decay, all_decay = CASES[name]
    folder = os.path.join(golden.HERE, name)
    case = {**golden.CASES, **windows.CASES}[name]
    with open(folder + "/data.jsonl") as f:
        rows = [json.loads(line) for line in f]
    with open(folder + "/eval.jsonl") as f:
        eval_rows = [json.loads(line) for line in f]
    model = AutoModelForCausalLM.from_pretrained(
        folder + "/model", dtype=torch.float64, attn_implementation="eager").eval()
    optimizer = torch.optim.AdamW(groups(model, decay, all_decay), lr=rate)
    kind, warmup = case["schedule"]
    schedule = golden.SCHEDULES[kind](optimizer, warmup, golden.STEPS)
    expected = {"case": name, "learning_rate": rate, "weight_decay": decay, "decay_norms_and_biases": all_decay,
                "steps": []}
    cursor = 0
    for _ in range(golden.STEPS):
        batch = [rows[(cursor + i) % len(rows)] for i in range(golden.GLOBAL_BATCH)]
        cursor += golden.GLOBAL_BATCH
        optimizer.zero_grad()
        loss = golden.loss_sum(model, batch) / golden.counted(batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        expected["steps"].append({"loss": loss.item(), "grad_norm": norm.item()})
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        expected["eval_loss"] = (golden.loss_sum(model, eval_rows) / golden.counted(eval_rows)).item()
    expected["tensors"] = {n: {"norm": p.detach().norm().item(), "projections": projections(p)}
                           for n, p in model.named_parameters()}
    print(name, [round(s["loss"], 4) for s in expected["steps"]], flush=True)
    return expected


def main():
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    made_with = {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__}
    cases = [json.dumps(make_case(name)) for name in CASES]
    with open(os.path.join(golden.HERE, "..", "full.json"), "w") as f:
        f.write('{"made_with": %s,\n "cases": [\n%s\n]}\n' % (json.dumps(made_with), ",\n".join(cases)))


if __name__ == "__main__":
    main()
