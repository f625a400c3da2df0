#!/usr/bin/env python3
"""Makes the reference cases of GPT-2 and of biases: torch + PEFT + transformers in float64, on the CPU.

As make_golden.py, whose helpers it uses; values are formed in float64 from the fp32 or bf16 files.
    make_gpt2.py [CASE...]
"""
import json
import math
import os
import shutil
import sys

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import make_golden as golden
from make_golden import BASE, HERE, LLAMA, NEW, OLD

GPT2 = dict(model_type="gpt2", architectures=["GPT2LMHeadModel"], n_embd=48, n_layer=2, n_head=6, n_positions=40,
            n_ctx=40, n_inner=None, vocab_size=301, activation_function="gelu_new", layer_norm_epsilon=1e-5,
            attn_pdrop=0.1, embd_pdrop=0.1, resid_pdrop=0.1, bos_token_id=2, eos_token_id=2,
            initializer_range=0.02, summary_type="cls_index", summary_use_proj=True, summary_activation=None,
            summary_proj_to_logits=True, summary_first_dropout=0.1, use_cache=True,
            task_specific_params={"text-generation": {"do_sample": True, "max_length": 50}})
CASES = {
    # As the hub's gpt2: a base saved without its head, with the buffers of old files.
    "gpt2": dict(config={**GPT2}, headless=True, bf16=True,
                 lora=dict(r=4, lora_alpha=8, target_modules="all-linear"),
                 optimizer=dict(lr=2e-3, weight_decay=0.0), schedule=("COSINE", 2), lines=16, generate=True),
    "gpt2_c_attn": dict(config={**GPT2, "n_inner": 100, "n_head": 4, "tie_word_embeddings": False,
                                "scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True,
                                "activation_function": "gelu", "torch_dtype": "bfloat16"}, bf16=True,
                        lora=dict(r=3, lora_alpha=6, use_rslora=True, target_modules=["c_attn"],
                                  rank_pattern={"h.1.attn.c_attn": 5}),
                        optimizer=dict(lr=5e-3, weight_decay=0.01), schedule=("LINEAR", 1), lines=14),
    "qwen3_bias": dict(
        config={**BASE, **NEW, "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"],
                "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}, "rms_norm_eps": 1e-6,
                "head_dim": 16, "num_key_value_heads": 3, "attention_bias": True, "use_sliding_window": False,
                "sliding_window": None, "max_window_layers": 2, "layer_types": ["full_attention"] * 2}, bf16=True,
        lora=dict(r=3, lora_alpha=6, target_modules=["q_proj", "v_proj", "o_proj", "down_proj"]),
        optimizer=dict(lr=2e-3, weight_decay=0.0), schedule=("CONSTANT", 0), lines=14),
}


def make_weights(config, case, g):
    """Random weights under their Hugging Face names: matrices N(0, 1.3/in), gains around 1, biases not 0."""
    if config["model_type"] != "gpt2":
        return golden.make_weights(config, g)
    h, inner = config["n_embd"], config["n_inner"] or 4 * config["n_embd"]
    t = {"wte.weight": 0.2 * torch.randn(config["vocab_size"], h, generator=g),
         "wpe.weight": 0.2 * torch.randn(config["n_positions"], h, generator=g)}

    def conv1d(name, n_in, n_out):
        t[name + ".weight"] = torch.randn(n_in, n_out, generator=g) * math.sqrt(1.3 / n_in)
        t[name + ".bias"] = 0.3 * torch.randn(n_out, generator=g)

    def norm(name):
        t[name + ".weight"] = 1 + 0.3 * torch.randn(h, generator=g)
        t[name + ".bias"] = 0.3 * torch.randn(h, generator=g)

    for i in range(config["n_layer"]):
        at = f"h.{i}."
        norm(at + "ln_1")
        conv1d(at + "attn.c_attn", h, 3 * h)
        conv1d(at + "attn.c_proj", h, h)
        norm(at + "ln_2")
        conv1d(at + "mlp.c_fc", h, inner)
        conv1d(at + "mlp.c_proj", inner, h)
        if case.get("headless"):
            n = 8
            t[at + "attn.masked_bias"] = torch.tensor(-1e4)
            t[at + "attn.bias"] = torch.tril(torch.ones(n, n)).view(1, 1, n, n)
    norm("ln_f")
    if not case.get("headless"):
        t = {"transformer." + name: value for name, value in t.items()}
    if not config.get("tie_word_embeddings", True):
        t["lm_head.weight"] = torch.randn(config["vocab_size"], h, generator=g) * math.sqrt(1.3 / h)
    return {name: v.to(torch.bfloat16 if case.get("bf16") else torch.float32).contiguous() for name, v in t.items()}


def load_base(folder):
    model = AutoModelForCausalLM.from_pretrained(folder + "/model", dtype=torch.float32, attn_implementation="eager")
    for module in model.modules():  # it wants fp32, and says nothing in float64
        if hasattr(module, "reorder_and_upcast_attn"):
            module.reorder_and_upcast_attn = False
    return model.double().eval()


def make_case(name, case):
    folder = os.path.join(HERE, name)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder + "/model")
    g = torch.Generator().manual_seed(sum(map(ord, name)))
    config = case["config"]
    golden.write_json(folder + "/model/config.json", config)
    save_file(make_weights(config, case, g), folder + "/model/model.safetensors", metadata={"format": "pt"})
    vocab = config["vocab_size"]
    rows, eval_rows = golden.make_data(case["lines"], vocab, g), golden.make_data(5, vocab, g)
    golden.write_jsonl(folder + "/data.jsonl", rows)
    golden.write_jsonl(folder + "/eval.jsonl", eval_rows)
    golden.write_config(folder, name, case)

    torch.manual_seed(7)
    lora = peft.LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, **case["lora"])
    model = peft.get_peft_model(load_base(folder), lora)
    for key, p in model.named_parameters():
        if "lora_B" in key:
            p.data.normal_(std=0.15, generator=g)
        if "lora_" in key:
            p.data = p.data.float().double()
    golden.save_adapter(model.float(), folder + "/adapter")
    model = peft.PeftModel.from_pretrained(load_base(folder), folder + "/adapter", is_trainable=True).double()
    # PEFT's own generator draws B; what is saved is what is trained.
    start = load_file(folder + "/adapter/adapter_model.safetensors")
    for key, p in model.named_parameters():
        if "lora_" in key:
            assert torch.equal(p.data.float(), start[key.replace(".default", "")]), key

    first = torch.tensor([rows[0]["input_ids"]])
    positions = sorted({0, first.shape[1] // 2, first.shape[1] - 1})
    with torch.no_grad():
        base = load_base(folder)
        merged = peft.PeftModel.from_pretrained(load_base(folder), folder + "/adapter").double().merge_and_unload()
        save_file({"positions": torch.tensor(positions),
                   "base_logits": base(input_ids=first).logits[0][positions].float().contiguous(),
                   "merged_logits": merged(input_ids=first).logits[0][positions].float().contiguous()},
                  folder + "/logits.safetensors")
    expected = {"made_with": {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__,
                              "peft": peft.__version__}, "steps": []}
    if case.get("generate"):
        expected["generation"] = []
        while len(expected["generation"]) < 2:
            prompt = torch.randint(4, vocab, (3 + 2 * len(expected["generation"]),), generator=g).tolist()
            with torch.no_grad():
                out = [golden.greedy(m, prompt, 20, {2, 3}) for m in (base, merged)]
            if min(gap for _, gap in out) < 2e-3 or out[0][0] == out[1][0]:
                continue
            expected["generation"].append({"prompt": prompt, "base": out[0][0], "adapter": out[1][0],
                                           "smallest_gap": min(gap for _, gap in out)})

    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.999), eps=1e-8, **case["optimizer"])
    schedule = golden.SCHEDULES[case["schedule"][0]](optimizer, case["schedule"][1], golden.STEPS)
    for step in range(golden.STEPS):
        batch = [rows[(step * golden.GLOBAL_BATCH + i) % len(rows)] for i in range(golden.GLOBAL_BATCH)]
        total = golden.counted(batch)
        loss = golden.loss_sum(model, batch) / total
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        expected["steps"].append({"step": step + 1, "loss": loss.item(), "grad_norm": norm.item(),
                                  "learning_rate": schedule.get_last_lr()[0], "counted_labels": total})
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        expected["eval_loss"] = (golden.loss_sum(model, eval_rows) / golden.counted(eval_rows)).item()
    golden.save_adapter(model.float(), folder + "/final_adapter")
    golden.write_json(folder + "/expected.json", expected)
    print(name, [round(s["loss"], 4) for s in expected["steps"]], "eval", round(expected["eval_loss"], 4))


def main():
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.utils.logging.disable_progress_bar()
    for name in sys.argv[1:] or CASES:
        make_case(name, CASES[name])


if __name__ == "__main__":
    main()
