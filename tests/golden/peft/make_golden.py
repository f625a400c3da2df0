#!/usr/bin/env python3
"""Makes the reference values of tests/golden: torch + PEFT + transformers, in fp32, on the CPU.

Needs torch, transformers, peft and safetensors; the tests read only what this writes (README.md).
    make_golden.py [CASE...]
"""
import json
import math
import os
import shutil
import sys

import peft
import torch
import transformers
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

HERE = os.path.dirname(os.path.abspath(__file__))
STEPS, GLOBAL_BATCH, MICRO_BATCH, SEQ_LEN = 8, 4, 2, 32
SCHEDULES = {
    "CONSTANT": lambda o, warmup, steps: transformers.get_constant_schedule_with_warmup(o, warmup),
    "LINEAR": lambda o, warmup, steps: transformers.get_linear_schedule_with_warmup(o, warmup, steps),
    "COSINE": lambda o, warmup, steps: transformers.get_cosine_schedule_with_warmup(o, warmup, steps),
}

# Sizes that do not divide (vocabulary, intermediate) are on purpose: they are split unevenly.
BASE = dict(hidden_size=48, intermediate_size=100, num_hidden_layers=2, num_attention_heads=6,
            num_key_value_heads=2, vocab_size=301, max_position_embeddings=96, hidden_act="silu",
            rms_norm_eps=1e-5, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2, use_cache=True)
LLAMA = dict(model_type="llama", architectures=["LlamaForCausalLM"], attention_bias=False, mlp_bias=False)
LLAMA3_ROPE = dict(rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
                   original_max_position_embeddings=24)
OLD = dict(torch_dtype="bfloat16", transformers_version="4.44.0")
NEW = dict(dtype="bfloat16", transformers_version="5.0.0")
CASES = {
    "llama2": dict(
        config={**BASE, **LLAMA, **OLD, "rope_theta": 10000.0, "rope_scaling": None, "pretraining_tp": 1},
        lora=dict(r=4, lora_alpha=8, target_modules="all-linear"),
        optimizer=dict(lr=2e-3, weight_decay=0.0), schedule=("COSINE", 2), lines=16, generate=True),
    "llama31": dict(
        config={**BASE, **LLAMA, **OLD, "rope_theta": 10000.0, "rope_scaling": LLAMA3_ROPE,
                "num_key_value_heads": 3, "eos_token_id": [2, 3]},
        lora=dict(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]),
        optimizer=dict(lr=5e-3, weight_decay=0.01), schedule=("LINEAR", 1), lines=14),
    "llama31_new_config": dict(
        config={**BASE, **LLAMA, **NEW, "head_dim": 8,
                "rope_parameters": {"rope_theta": 500000.0, **LLAMA3_ROPE}},
        lora=dict(r=2, lora_alpha=6, use_rslora=True,
                  target_modules=r".*\.layers\.1\..*(down_proj|o_proj|k_proj)"),
        optimizer=dict(lr=1e-3, weight_decay=0.0), schedule=("CONSTANT", 0), lines=16),
    "mistral": dict(
        config={**BASE, **OLD, "model_type": "mistral", "architectures": ["MistralForCausalLM"],
                "rope_theta": 1000000.0, "sliding_window": None, "head_dim": 16, "vocab_size": 256},
        lora=dict(r=4, lora_alpha=4, target_modules=["o_proj", "gate_proj", "up_proj", "down_proj"]),
        optimizer=dict(lr=1e-3, weight_decay=0.1), schedule=("LINEAR", 3), lines=16),
    "qwen2": dict(
        config={**BASE, **OLD, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"],
                "rope_theta": 1000000.0, "rms_norm_eps": 1e-6, "use_sliding_window": False,
                "sliding_window": 64, "max_window_layers": 2, "vocab_size": 300},
        lora=dict(r=4, lora_alpha=8, target_modules="all-linear",
                  exclude_modules=["layers.0.mlp.up_proj"],
                  rank_pattern={"q_proj": 6, "layers.1.mlp.down_proj": 2}, alpha_pattern={"k_proj": 3}),
        optimizer=dict(lr=1e-3, weight_decay=0.0), schedule=("COSINE", 0), lines=16),
    "qwen3": dict(
        config={**BASE, **NEW, "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"],
                "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}, "rms_norm_eps": 1e-6,
                "head_dim": 16, "num_key_value_heads": 3, "attention_bias": False,
                "use_sliding_window": False, "sliding_window": None, "max_window_layers": 2,
                "layer_types": ["full_attention"] * 2},
        lora=dict(r=4, lora_alpha=8, target_modules="all-linear"),
        optimizer=dict(lr=2e-3, weight_decay=0.0), schedule=("COSINE", 2), lines=16, generate=True),
    "llama_tied_bias": dict(
        config={**BASE, **LLAMA, **OLD, "rope_theta": 10000.0, "attention_bias": True, "mlp_bias": True,
                "tie_word_embeddings": True, "num_hidden_layers": 3, "num_key_value_heads": 3},
        lora=dict(r=3, lora_alpha=5, target_modules="all-linear"),
        optimizer=dict(lr=1e-3, weight_decay=0.0), schedule=("LINEAR", 2), lines=16),
}


def make_weights(c, g):
    """Random weights under their Hugging Face names, bf16: matrices N(0, 1.3/in), gains around 1, biases not 0."""
    hidden, mlp, head = c["hidden_size"], c["intermediate_size"], c.get("head_dim", 8)
    q, kv = c["num_attention_heads"] * head, c["num_key_value_heads"] * head
    bias_qkv = c["model_type"] == "qwen2" or c.get("attention_bias", False)
    tensors = {}

    def matrix(name, rows, cols, bias=False):
        tensors[name + ".weight"] = torch.randn(rows, cols, generator=g) * math.sqrt(1.3 / cols)
        if bias:
            tensors[name + ".bias"] = torch.randn(rows, generator=g) * 0.3

    def gain(name, n):
        tensors[name + ".weight"] = 1 + 0.3 * torch.randn(n, generator=g)

    tensors["model.embed_tokens.weight"] = torch.randn(c["vocab_size"], hidden, generator=g) * (
        0.2 if c["tie_word_embeddings"] else 1.0)
    for i in range(c["num_hidden_layers"]):
        at = f"model.layers.{i}."
        gain(at + "input_layernorm", hidden)
        matrix(at + "self_attn.q_proj", q, hidden, bias_qkv)
        matrix(at + "self_attn.k_proj", kv, hidden, bias_qkv)
        matrix(at + "self_attn.v_proj", kv, hidden, bias_qkv)
        matrix(at + "self_attn.o_proj", hidden, q, c.get("attention_bias", False))
        if c["model_type"] == "qwen3":
            gain(at + "self_attn.q_norm", head)
            gain(at + "self_attn.k_norm", head)
        gain(at + "post_attention_layernorm", hidden)
        for name, rows, cols in (("gate", mlp, hidden), ("up", mlp, hidden), ("down", hidden, mlp)):
            matrix(at + f"mlp.{name}_proj", rows, cols, c.get("mlp_bias", False))
    gain("model.norm", hidden)
    if not c["tie_word_embeddings"]:
        matrix("lm_head", c["vocab_size"], hidden)
    return {name: t.to(torch.bfloat16).contiguous() for name, t in tensors.items()}


def make_data(count, vocab, g):
    """Ragged token sequences; labels follow input_ids with a masked prefix and some masked holes."""
    rows = []
    for i in range(count):
        length = int(torch.randint(3, 25, (1,), generator=g))
        ids = torch.randint(4, vocab, (length,), generator=g).tolist()
        labels = list(ids)
        for j in range(int(torch.randint(0, max(1, length // 2), (1,), generator=g))):
            labels[j] = -100
        if i % 3 == 1:
            labels[length // 2] = -100
        rows.append({"input_ids": ids, "labels": labels})
    return rows


def write_jsonl(path, rows):
    with open(path, "w") as f:
        for row in rows:
            f.write(json.dumps(row, separators=(",", ":")) + "\n")


def write_json(path, value):
    with open(path, "w") as f:
        json.dump(value, f, indent=1)
        f.write("\n")


def collate(rows):
    """Right-padded to the longest row: input_ids, attention_mask, labels."""
    n = max(len(r["input_ids"]) for r in rows)
    pad = lambda values, fill: values + [fill] * (n - len(values))
    return (torch.tensor([pad(r["input_ids"], 0) for r in rows]),
            torch.tensor([pad([1] * len(r["input_ids"]), 0) for r in rows]),
            torch.tensor([pad(r["labels"], -100) for r in rows]))


def loss_sum(model, rows):
    """Sum of the cross entropies of all counted labels. The label of position t+1 is predicted at t."""
    ids, mask, labels = collate(rows)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(),
                                             ignore_index=-100, reduction="sum")


def counted(rows):
    return sum(label != -100 for r in rows for label in r["labels"][1:])


def greedy(model, prompt, count, avoid):
    """`count` greedy ids after `prompt`, and the smallest gap between the best two logits; None if it ends early."""
    ids, gap = list(prompt), float("inf")
    for _ in range(count):
        top = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].topk(2)
        gap = min(gap, (top.values[0] - top.values[1]).item())
        ids.append(top.indices[0].item())
        if ids[-1] in avoid:
            return None, 0
    return ids[len(prompt):], gap


def load_base(folder):
    model = AutoModelForCausalLM.from_pretrained(folder + "/model", dtype=torch.float32, attn_implementation="eager")
    return model.eval()


def save_adapter(model, folder):
    model.save_pretrained(folder)
    if os.path.exists(folder + "/README.md"):
        os.remove(folder + "/README.md")
    path = folder + "/adapter_config.json"
    with open(path) as f:
        config = json.load(f)
    config["base_model_name_or_path"] = None
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()
    write_json(path, config)


def write_config(folder, name, case):
    lora, at = case["lora"], f"tests/golden/peft/{name}"
    with open(folder + "/config.textproto", "w") as f:
        f.write(f"""# The run whose values stand in expected.json (paths from the top of the tree).
model {{ path: "{at}/model" }}
data {{ train: "{at}/data.jsonl" eval: "{at}/eval.jsonl" format: TOKENS seq_len: {SEQ_LEN} shuffle: false }}
lora {{ init_from: "{at}/adapter" }}
optimizer {{ learning_rate: {case['optimizer']['lr']} weight_decay: {case['optimizer']['weight_decay']} max_grad_norm: 1.0 }}
schedule {{ kind: {case['schedule'][0]} warmup_steps: {case['schedule'][1]} }}
train {{ steps: {STEPS} global_batch_size: {GLOBAL_BATCH} micro_batch_size: {MICRO_BATCH} }}
compute {{ backend: CPU dtype: FP32 }}
output {{ dir: "runs/{name}" }}
""")


def make_case(name, case):
    folder = os.path.join(HERE, name)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder + "/model")
    g = torch.Generator().manual_seed(sum(map(ord, name)))
    config = case["config"]
    write_json(folder + "/model/config.json", config)
    save_file(make_weights(config, g), folder + "/model/model.safetensors", metadata={"format": "pt"})
    rows, eval_rows = make_data(case["lines"], config["vocab_size"], g), make_data(5, config["vocab_size"], g)
    write_jsonl(folder + "/data.jsonl", rows)
    write_jsonl(folder + "/eval.jsonl", eval_rows)
    write_config(folder, name, case)

    torch.manual_seed(7)
    model = peft.get_peft_model(load_base(folder), peft.LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, **case["lora"]))
    for key, p in model.named_parameters():
        if "lora_B" in key:
            p.data.normal_(std=0.15, generator=g)
    save_adapter(model, folder + "/adapter")

    # Logits of the first sequence: the base, and the initial adapter merged.
    first = torch.tensor([rows[0]["input_ids"]])
    n = first.shape[1]
    positions = sorted({0, n // 2, n - 1})
    with torch.no_grad():
        base = load_base(folder)
        base_logits = base(input_ids=first).logits[0]
        merged = peft.PeftModel.from_pretrained(load_base(folder), folder + "/adapter").merge_and_unload()
        merged_logits = merged(input_ids=first).logits[0]
    save_file({"positions": torch.tensor(positions), "base_logits": base_logits[positions].contiguous(),
               "merged_logits": merged_logits[positions].contiguous()}, folder + "/logits.safetensors")

    expected = {
        "made_with": {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__,
                      "peft": peft.__version__},
        "steps": [],
    }
    if case.get("generate"):
        expected["generation"] = []
        prompt_at = 0
        while len(expected["generation"]) < 3:
            prompt = torch.randint(4, config["vocab_size"], (3 + 2 * len(expected["generation"]),), generator=g).tolist()
            with torch.no_grad():
                out = [greedy(m, prompt, 20, {2, 3}) for m in (base, merged)]
            # Prompts that reach an end token or a near tie would test chance and not arithmetic.
            if min(gap for _, gap in out) < 2e-3 or out[0][0] == out[1][0]:
                prompt_at += 1
                assert prompt_at < 500
                continue
            expected["generation"].append({"prompt": prompt, "base": out[0][0], "adapter": out[1][0],
                                           "smallest_gap": min(gap for _, gap in out)})

    lr = case["optimizer"]["lr"]
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=case["optimizer"]["weight_decay"])
    kind, warmup = case["schedule"]
    schedule = SCHEDULES[kind](optimizer, warmup, STEPS)
    cursor = 0
    for step in range(1, STEPS + 1):
        batch = [rows[(cursor + i) % len(rows)] for i in range(GLOBAL_BATCH)]
        cursor += GLOBAL_BATCH
        total, loss = counted(batch), 0.0
        optimizer.zero_grad()
        for at in range(0, GLOBAL_BATCH, MICRO_BATCH):
            part = loss_sum(model, batch[at:at + MICRO_BATCH]) / total
            part.backward()
            loss += part.item()
        norm = torch.nn.utils.clip_grad_norm_(trained, 1.0).item()
        expected["steps"].append({"step": step, "loss": loss, "grad_norm": norm,
                                  "learning_rate": schedule.get_last_lr()[0], "counted_labels": total})
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        expected["eval_loss"] = (loss_sum(model, eval_rows) / counted(eval_rows)).item()
        expected["eval_counted_labels"] = counted(eval_rows)
    save_adapter(model, folder + "/final_adapter")
    write_json(folder + "/expected.json", expected)
    losses = [s["loss"] for s in expected["steps"]]
    print(f"{name}: loss {losses[0]:.4f} -> {losses[-1]:.4f}, norms {expected['steps'][0]['grad_norm']:.3f}, "
          f"merged differs by {(merged_logits - base_logits).abs().max():.3f}", flush=True)


def make_schedules():
    values = []
    for kind, make in SCHEDULES.items():
        for steps, warmup in ((1, 0), (5, 0), (10, 3), (100, 10), (7, 7), (5, 8)):
            optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
            schedule = make(optimizer, warmup, steps)
            factors = []
            for _ in range(steps):
                factors.append(schedule.get_last_lr()[0])
                optimizer.step()
                schedule.step()
            values.append({"kind": kind, "steps": steps, "warmup_steps": warmup, "factor": factors})
    with open(os.path.join(HERE, "..", "schedules.json"), "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(v) for v in values) + "\n]\n")


def make_target_matching():
    """What PEFT adapts for many settings; names relative to the transformers model, plus rank and alpha of each."""
    settings = [
        dict(target_modules="all-linear"),
        dict(target_modules=["q_proj"]),
        dict(target_modules=["q_proj", "v_proj"]),
        dict(target_modules=["self_attn.q_proj"]),
        dict(target_modules=["0.self_attn.q_proj"]),
        dict(target_modules=["layers.1.mlp.down_proj", "o_proj"]),
        dict(target_modules=["model.layers.0.self_attn.k_proj"]),
        dict(target_modules=["proj"]),
        dict(target_modules=["_proj"]),
        dict(target_modules=["q_proj", "no_such_module"]),
        dict(target_modules=["Q_PROJ"]),
        dict(target_modules=[".*q_proj"]),
        dict(target_modules="q_proj"),
        dict(target_modules=".*q_proj"),
        dict(target_modules=r".*\.(q|v)_proj"),
        dict(target_modules=r"model\.layers\.[1-9]\d*\.mlp\..*_proj"),
        dict(target_modules=r".*layers\.(?!0).*(up|down)_proj"),
        dict(target_modules=r"model\.layers\.0\.self_attn\.q_proj|.*\.down_proj"),
        dict(target_modules=r"layers\.0\..*q_proj"),
        dict(target_modules=["lm_head", "q_proj"]),
        dict(target_modules="all-linear", exclude_modules=["down_proj"]),
        dict(target_modules="all-linear", exclude_modules=r".*layers\.0\..*"),
        dict(target_modules=["q_proj", "k_proj"], exclude_modules=["layers.1.self_attn.k_proj"]),
        dict(target_modules=["q_proj"], exclude_modules=["q_proj"]),
        dict(target_modules=["q_proj", "v_proj"], layers_to_transform=[1]),
        dict(target_modules=["q_proj", "up_proj"], layers_to_transform=0, layers_pattern="layers"),
        dict(target_modules=["q_proj"], layers_to_transform=[0], layers_pattern="blocks"),
        dict(target_modules="all-linear", rank_pattern={"q_proj": 2}, alpha_pattern={"layers.1.mlp.up_proj": 3}),
        dict(target_modules="all-linear", rank_pattern={"mlp.*": 2, "down_proj": 3}),
        dict(target_modules="all-linear", rank_pattern={r".*\.layers\.1\..*": 5}, alpha_pattern={"^model.layers.0.self_attn.(q|k)_proj": 7}),
        dict(target_modules=["q_proj", "v_proj"], rank_pattern={"proj": 2}, alpha_pattern={"self_attn.v_proj": 1}, use_rslora=True),
    ]
    out = []
    for family in ("llama2", "llama_tied_bias"):
        folder = os.path.join(HERE, family)
        names = [n for n, m in load_base(folder).named_modules() if isinstance(m, (torch.nn.Linear, torch.nn.Embedding))]
        cases = []
        for setting in settings:
            entry = {"settings": {"r": 8, "lora_alpha": 16, **setting}}
            try:
                model = peft.get_peft_model(load_base(folder), peft.LoraConfig(**entry["settings"]))
                entry["matched"] = {
                    n.removeprefix("base_model.model."): {"r": m.r["default"], "alpha": m.lora_alpha["default"],
                                                          "scaling": m.scaling["default"]}
                    for n, m in model.named_modules() if isinstance(m, LoraLayer)}
            except ValueError as error:
                entry["error"] = str(error).split("\n")[0][:160]
            cases.append(entry)
        out.append({"model": f"peft/{family}/model", "modules": names, "cases": cases})
    with open(os.path.join(HERE, "..", "target_matching.json"), "w") as f:
        f.write("[\n" + ",\n".join(
            '{"model": %s,\n "modules": %s,\n "cases": [\n  %s\n]}' % (
                json.dumps(m["model"]), json.dumps(m["modules"]), ",\n  ".join(map(json.dumps, m["cases"])))
            for m in out) + "\n]\n")


def main():
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.utils.logging.disable_progress_bar()
    for name in sys.argv[1:] or CASES:
        make_case(name, CASES[name])
    make_schedules()
    make_target_matching()


if __name__ == "__main__":
    main()
