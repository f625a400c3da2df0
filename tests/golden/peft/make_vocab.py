#!/usr/bin/env python3
"""Makes the reference values of tests/golden/peft/vocab: what PEFT trains of embedding and head.

torch + PEFT + transformers in float64, on the models and data of make_golden.py's cases.
    make_vocab.py [CASE...]
"""
import json
import os
import shutil
import sys
import warnings

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import make_golden as golden

HERE = os.path.dirname(os.path.abspath(__file__))
STEPS, GLOBAL_BATCH, MICRO_BATCH, SEQ_LEN = 5, 4, 2, 32
TOKENS = [31, 7, 299, 0, 150, 124, 300]  # of every rank, in no order; some occur in the data
PAD = 263  # occurs in the data of llama2: its row of the embedding gets no gradient from the look-up
CASES = {
    "lora": dict(model="llama2", pad=PAD, lora=dict(r=4, lora_alpha=8, target_modules=["lm_head", "embed_tokens", "v_proj"])),
    "lora_head": dict(model="llama2", lora=dict(r=3, lora_alpha=5, target_modules=["lm_head"])),
    "lora_tied": dict(model="llama_tied_bias", lora=dict(r=4, lora_alpha=8, use_rslora=True,
                                                         target_modules=["lm_head", "embed_tokens", "up_proj"])),
    "lora_scaled": dict(model="gemma3", lora=dict(r=4, lora_alpha=8, target_modules=["embed_tokens", "v_proj"])),
    "saved": dict(model="llama2", pad=PAD, lora=dict(r=2, lora_alpha=4, target_modules=["q_proj"],
                                                     modules_to_save=["lm_head", "embed_tokens"])),
    "saved_tied": dict(model="llama_tied_bias", lora=dict(r=2, lora_alpha=4, target_modules=["q_proj"],
                                                          modules_to_save=["lm_head"])),
    "saved_as_one": dict(model="llama_tied_bias", lora=dict(r=2, lora_alpha=4, target_modules=["q_proj"],
                                                            modules_to_save=["embed_tokens"], ensure_weight_tying=True)),
    "tokens": dict(model="llama2", pad=PAD, lora=dict(r=2, lora_alpha=4, target_modules=["o_proj"],
                                                      trainable_token_indices={"embed_tokens": TOKENS + [PAD], "lm_head": TOKENS[2:]})),
    "tokens_tied": dict(model="llama_tied_bias", lora=dict(r=2, lora_alpha=4, target_modules="all-linear",
                                                           trainable_token_indices=TOKENS)),
}


def load_base(case):
    folder = os.path.join(HERE, case["model"], "model")
    config = transformers.AutoConfig.from_pretrained(folder)
    config.pad_token_id = case.get("pad")
    return AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float64,
                                                attn_implementation="eager").eval()


def save_adapter(model, folder):
    golden.save_adapter(model, folder)
    path = folder + "/adapter_model.safetensors"
    # The copies of the base that PEFT adds stand only in the first adapter of the first case.
    keep = folder.endswith("lora/adapter")
    save_file({k: v.float().contiguous() for k, v in load_file(path).items() if keep or "base_layer" not in k}, path,
              metadata={"format": "pt"})


def loss_sum(model, rows):
    """One row at a time: where a window holds padding alone, the fp32 softmax of a float64 mask is NaN."""
    return sum(golden.loss_sum(model, [row]) for row in rows)


def read_rows(path):
    with open(path) as f:
        return [json.loads(line) for line in f]


def make_case(name, case):
    folder = os.path.join(HERE, "vocab", name)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    source = os.path.join(HERE, case["model"])
    at = f"tests/golden/peft/{case['model']}"
    with open(folder + "/config.textproto", "w") as f:
        f.write(f"""# The run whose values stand in expected.json (paths from the top of the tree).
model {{ path: "{at}/model" }}
data {{ train: "{at}/data.jsonl" eval: "{at}/eval.jsonl" format: TOKENS seq_len: {SEQ_LEN} shuffle: false }}
lora {{ init_from: "tests/golden/peft/vocab/{name}/adapter" }}
optimizer {{ learning_rate: 2e-3 weight_decay: 0.01 max_grad_norm: 1.0 }}
train {{ steps: {STEPS} global_batch_size: {GLOBAL_BATCH} micro_batch_size: {MICRO_BATCH} }}
compute {{ backend: CPU dtype: FP32 }}
output {{ dir: "runs/vocab_{name}" }}
""")
    g = torch.Generator().manual_seed(sum(map(ord, name)))
    rows, eval_rows = read_rows(source + "/data.jsonl"), read_rows(source + "/eval.jsonl")
    torch.manual_seed(7)
    model = peft.get_peft_model(load_base(case), peft.LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, **case["lora"]))
    for key, p in model.named_parameters():
        if not p.requires_grad:
            continue
        if "lora_B" in key or "lora_embedding_A" in key:
            p.data = 0.15 * torch.randn(p.shape, generator=g, dtype=p.dtype)
        if "modules_to_save" in key or "trainable_tokens_delta" in key:
            p.data = p.data + 0.05 * torch.randn(p.shape, generator=g, dtype=p.dtype) * p.data.abs().mean()
        p.data = p.data.float().double()  # as the file has them
    save_adapter(model, folder + "/adapter")

    first = torch.tensor([rows[0]["input_ids"]])
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-3, weight_decay=0.01)
    expected = {"made_with": {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__,
                              "peft": peft.__version__}, "model": case["model"], "pad_token_id": case.get("pad"), "steps": []}
    cursor = 0
    for step in range(1, STEPS + 1):
        batch = [rows[(cursor + i) % len(rows)] for i in range(GLOBAL_BATCH)]
        cursor += GLOBAL_BATCH
        total, loss = golden.counted(batch), 0.0
        optimizer.zero_grad()
        for b in range(0, GLOBAL_BATCH, MICRO_BATCH):
            part = loss_sum(model, batch[b:b + MICRO_BATCH]) / total
            part.backward()
            loss += part.item()
        norm = torch.nn.utils.clip_grad_norm_(trained, 1.0).item()
        expected["steps"].append({"step": step, "loss": loss, "grad_norm": norm, "counted_labels": total})
        optimizer.step()
    with torch.no_grad():
        expected["eval_loss"] = (loss_sum(model, eval_rows) / golden.counted(eval_rows)).item()
    save_adapter(model, folder + "/final_adapter")
    golden.write_json(folder + "/expected.json", expected)
    losses = [s["loss"] for s in expected["steps"]]
    occurring = {i for r in rows for i in r["input_ids"]}
    print(f"{name}: loss {losses[0]:.4f} -> {losses[-1]:.4f}, norm {expected['steps'][0]['grad_norm']:.3f}, "
          f"{len(trained)} tensors, tokens that occur {sorted(occurring & set(TOKENS + [PAD]))}", flush=True)


def main():
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    for name in sys.argv[1:] or CASES:
        make_case(name, CASES[name])


if __name__ == "__main__":
    main()
