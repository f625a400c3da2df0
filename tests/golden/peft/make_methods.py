#!/usr/bin/env python3
"""Makes the reference values of tests/golden/peft/methods: LoRA+, layers_to_transform, trained biases and DoRA.

torch + PEFT + transformers in float64, on the models and data of make_golden.py's cases.
    make_methods.py [CASE...]
"""
import json
import os
import shutil
import sys

import peft
import torch
from peft.optimizers import create_loraplus_optimizer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import make_golden as golden

HERE = os.path.dirname(os.path.abspath(__file__))
STEPS, GLOBAL_BATCH, MICRO_BATCH, SEQ_LEN = 6, 4, 2, 32
CASES = {
    # Layers by number; a whole name counts in any layer. B learns faster than A.
    "layers_loraplus": dict(
        model="llama_tied_bias", ratio=8.0, decay=0.1, schedule=("LINEAR", 2),
        lora=dict(r=3, lora_alpha=5, target_modules=["q_proj", "down_proj", "model.layers.0.mlp.up_proj"],
                  layers_to_transform=[1, 2], layers_pattern="layers"),
        setting='target_modules: ["q_proj", "down_proj", "model.layers.0.mlp.up_proj"] layers_to_transform: [1, 2] '
                'layers_pattern: "layers"'),
    "bias_all": dict(
        model="llama_tied_bias", ratio=1.0, decay=0.05, schedule=("COSINE", 1),
        lora=dict(r=4, lora_alpha=8, target_modules=["v_proj", "down_proj"], bias="all",
                  layers_to_transform=1),
        setting="bias: all"),
    "bias_lora_only_loraplus": dict(
        model="qwen2", ratio=4.0, decay=0.1, schedule=("LINEAR", 0),
        lora=dict(r=4, lora_alpha=8, target_modules=["k_proj", "o_proj"], bias="lora_only"),
        setting="bias: lora_only"),
    "dora": dict(
        model="llama_tied_bias", ratio=1.0, decay=0.01, schedule=("COSINE", 1),
        lora=dict(r=4, lora_alpha=8, target_modules="all-linear", use_dora=True),
        setting="use_dora: true"),
    "dora_loraplus_bias": dict(
        model="qwen2", ratio=4.0, decay=0.05, schedule=("CONSTANT", 0),
        lora=dict(r=3, lora_alpha=9, target_modules=["q_proj", "k_proj", "o_proj", "up_proj", "down_proj"], use_dora=True,
                  use_rslora=True, bias="all"),
        setting="use_dora: true use_rslora: true bias: all"),
}


def load_base(case):
    folder = os.path.join(HERE, case["model"], "model")
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()


def save_adapter(model, folder):
    golden.save_adapter(model, folder)
    path = folder + "/adapter_model.safetensors"
    save_file({k: v.float() for k, v in load_file(path).items()}, path, metadata={"format": "pt"})


def read_rows(path):
    with open(path) as f:
        return [json.loads(line) for line in f]


def make_case(name, case):
    folder = os.path.join(HERE, "methods", name)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    at, source = f"tests/golden/peft/methods/{name}", os.path.join(HERE, case["model"])
    with open(folder + "/config.textproto", "w") as f:
        f.write(f"""# The run whose values stand in expected.json (paths from the top of the tree).
model {{ path: "tests/golden/peft/{case['model']}/model" }}
data {{ train: "tests/golden/peft/{case['model']}/data.jsonl" eval: "tests/golden/peft/{case['model']}/eval.jsonl"
       format: TOKENS seq_len: {SEQ_LEN} shuffle: false }}
lora {{ init_from: "{at}/adapter" {case['setting']} }}
optimizer {{ learning_rate: 1e-3 weight_decay: {case['decay']} max_grad_norm: 1.0 loraplus_lr_ratio: {case['ratio']} }}
schedule {{ kind: {case['schedule'][0]} warmup_steps: {case['schedule'][1]} }}
train {{ steps: {STEPS} global_batch_size: {GLOBAL_BATCH} micro_batch_size: {MICRO_BATCH} }}
compute {{ backend: CPU dtype: FP32 }}
output {{ dir: "runs/{name}" }}
""")
    g = torch.Generator().manual_seed(sum(map(ord, name)))
    rows, eval_rows = read_rows(source + "/data.jsonl"), read_rows(source + "/eval.jsonl")
    torch.manual_seed(7)
    model = peft.get_peft_model(load_base(case), peft.LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, **case["lora"]))
    for key, p in model.named_parameters():
        if not p.requires_grad:
            continue
        if "lora_B" in key:
            p.data.normal_(std=0.15, generator=g)
        if key.endswith("bias") or "magnitude" in key:
            p.data += 0.05 * torch.randn(p.shape, generator=g, dtype=p.dtype) * p.data.abs().mean()
        p.data = p.data.float().double()  # as the file has them
    save_adapter(model, folder + "/adapter")

    first = torch.tensor([rows[0]["input_ids"]])
    trained = [p for p in model.parameters() if p.requires_grad]
    if case["ratio"] == 1.0:
        optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=case["decay"])
    else:
        optimizer = create_loraplus_optimizer(model, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=case["ratio"],
                                              loraplus_weight_decay=case["decay"])
    kind, warmup = case["schedule"]
    schedule = golden.SCHEDULES[kind](optimizer, warmup, STEPS)
    expected = {"made_with": {"torch": torch.__version__.split("+")[0], "peft": peft.__version__}, "steps": []}
    cursor = 0
    for step in range(1, STEPS + 1):
        batch = [rows[(cursor + i) % len(rows)] for i in range(GLOBAL_BATCH)]
        cursor += GLOBAL_BATCH
        total, loss = golden.counted(batch), 0.0
        optimizer.zero_grad()
        for b in range(0, GLOBAL_BATCH, MICRO_BATCH):
            part = golden.loss_sum(model, batch[b:b + MICRO_BATCH]) / total
            part.backward()
            loss += part.item()
        norm = torch.nn.utils.clip_grad_norm_(trained, 1.0).item()
        expected["steps"].append({"step": step, "loss": loss, "grad_norm": norm,
                                  "learning_rate": schedule.get_last_lr()[0], "counted_labels": total})
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        expected["eval_loss"] = (golden.loss_sum(model, eval_rows) / golden.counted(eval_rows)).item()
        expected["last_logits"] = model(input_ids=first).logits[0, -1, :16].tolist()
    save_adapter(model, folder + "/final_adapter")
    with torch.no_grad():
        merged = model.merge_and_unload()
        again = merged(input_ids=first).logits[0, -1, :16]
        assert (again - torch.tensor(expected["last_logits"], dtype=again.dtype)).abs().max() < 1e-9
    golden.write_json(folder + "/expected.json", expected)
    losses = [s["loss"] for s in expected["steps"]]
    print(f"{name}: loss {losses[0]:.4f} -> {losses[-1]:.4f}, norm {expected['steps'][0]['grad_norm']:.3f}, "
          f"{len(trained)} tensors", flush=True)


# Adapters merged by add_weighted_adapter: name, adapters, weights and what else it takes.
MERGES = {
    "linear": (["a", "b"], [0.7, -0.4], dict(combination_type="linear")),
    "cat": (["a", "c"], [0.5, 1.5], dict(combination_type="cat")),
    "ties": (["a", "b"], [0.6, 0.9], dict(combination_type="ties", density=0.5)),
    "ties_frequency": (["a", "b"], [0.6, 0.9], dict(combination_type="ties", density=0.7, majority_sign_method="frequency")),
    "magnitude_prune": (["b", "a"], [1.0, -2.0], dict(combination_type="magnitude_prune", density=0.3)),
}


def make_merges():
    folder = os.path.join(HERE, "methods", "merge")
    shutil.rmtree(folder, ignore_errors=True)
    configs = {"a": dict(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"]),
               "b": dict(r=2, lora_alpha=3, target_modules=["v_proj"]),
               "c": dict(r=3, lora_alpha=2, target_modules=["q_proj", "v_proj"], use_rslora=True)}
    g = torch.Generator().manual_seed(3)
    model = None
    for name, config in configs.items():
        config = peft.LoraConfig(task_type="CAUSAL_LM", **config)
        if model is None:
            model = peft.get_peft_model(load_base(dict(model="llama2")), config, adapter_name=name)
        else:
            model.add_adapter(name, config)
    for key, p in model.named_parameters():
        if "lora_" in key:
            p.data = torch.randn(p.shape, generator=g).double()

    def save(name, out):
        model.save_pretrained(folder, selected_adapters=[name])
        os.rename(os.path.join(folder, name), os.path.join(folder, out + ".tmp"))
        os.rename(os.path.join(folder, out + ".tmp"), os.path.join(folder, out))
        path = os.path.join(folder, out, "adapter_model.safetensors")
        save_file({k: v.float() for k, v in load_file(path).items()}, path, metadata={"format": "pt"})
        with open(os.path.join(folder, out, "adapter_config.json")) as f:
            written = json.load(f)
        written["base_model_name_or_path"] = None
        written["target_modules"].sort()
        golden.write_json(os.path.join(folder, out, "adapter_config.json"), written)

    for name in configs:
        save(name, name)
    for name, (adapters, weights, options) in MERGES.items():
        model.add_weighted_adapter(adapters, weights, "merged_" + name, **options)
        save("merged_" + name, name)
    if os.path.exists(folder + "/README.md"):
        os.remove(folder + "/README.md")


def main():
    torch.set_num_threads(1)
    for name in sys.argv[1:] or [*CASES, "merge"]:
        if name == "merge":
            make_merges()
        else:
            make_case(name, CASES[name])


if __name__ == "__main__":
    main()
