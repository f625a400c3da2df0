#!/usr/bin/env python3
"""Makes the reference values of Qwen3-MoE: as make_golden.py, but with the model in float64.

    make_moe.py [CASE...]
"""
import copy
import json
import math
import os
import sys

import peft
import torch
import transformers
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import make_golden as golden

MOE = dict(golden.BASE, **golden.NEW, model_type="qwen3_moe", architectures=["Qwen3MoeForCausalLM"],
           rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}, rms_norm_eps=1e-6, vocab_size=151,
           attention_bias=False, use_sliding_window=False, sliding_window=None, max_window_layers=2,
           output_router_logits=False, router_aux_loss_coef=0.001)
# Layer 0 has experts and is below the lowest adapted layer, which is dense.
PARTLY = ["layers.2.mlp.gate.weight", "layers.2.mlp.experts.down_proj", "layers.3.mlp.experts.gate_up_proj",
          "layers.3.mlp.experts.down_proj"]
CASES = {
    "qwen3_moe": dict(
        config={**MOE, "head_dim": 16, "num_key_value_heads": 3, "num_experts": 6, "num_experts_per_tok": 2,
                "moe_intermediate_size": 28, "decoder_sparse_step": 1, "mlp_only_layers": [],
                "norm_topk_prob": True},
        lora=dict(r=3, lora_alpha=6, target_modules="all-linear"),
        optimizer=dict(lr=2e-3, weight_decay=0.0), schedule=("COSINE", 2), lines=16, generate=True),
    "qwen3_moe_dense": dict(
        config={**MOE, "num_hidden_layers": 4, "head_dim": 8, "attention_bias": True, "num_experts": 5,
                "num_experts_per_tok": 3, "moe_intermediate_size": 21, "intermediate_size": 50,
                "decoder_sparse_step": 1, "mlp_only_layers": [1], "norm_topk_prob": False},
        lora=dict(r=4, lora_alpha=6, use_rslora=True, rank_pattern={"layers.3.mlp.experts.down_proj": 2},
                  target_modules=["layers.1.self_attn.q_proj", "layers.3.self_attn.v_proj"],
                  target_parameters=PARTLY),
        optimizer=dict(lr=2e-3, weight_decay=0.01), schedule=("LINEAR", 1), lines=14),
}


def make_weights(c, g):
    """As make_golden.make_weights, with a router and experts in place of the layers' MLP."""
    tensors = dense_weights({**c, "model_type": "qwen3"}, g)
    for i in range(c["num_hidden_layers"]):
        if i in c["mlp_only_layers"] or (i + 1) % c["decoder_sparse_step"]:
            continue
        at, hidden, width = f"model.layers.{i}.mlp.", c["hidden_size"], c["moe_intermediate_size"]
        for name in ("gate", "up", "down"):
            del tensors[f"{at}{name}_proj.weight"]
        shapes = {"gate": (c["num_experts"], hidden)}
        for e in range(c["num_experts"]):
            for name in ("gate", "up", "down"):
                shapes[f"experts.{e}.{name}_proj"] = (hidden, width) if name == "down" else (width, hidden)
        for name, (rows, cols) in shapes.items():
            w = torch.randn(rows, cols, generator=g) * math.sqrt(1.3 / cols)
            tensors[f"{at}{name}.weight"] = w.to(torch.bfloat16).contiguous()
    return tensors


def load_base(folder):
    model = AutoModelForCausalLM.from_pretrained(folder + "/model", dtype=torch.float64, attn_implementation="eager",
                                                 experts_implementation="eager")
    return model.eval()


def save_adapter(model, folder):
    """In fp32, which is what the run starts from."""
    if folder.endswith("/adapter"):
        for p in model.parameters():
            p.data.copy_(p.data.float())
    save_double(model, folder)
    path = folder + "/adapter_model.safetensors"
    save_file({name: t.float().contiguous() for name, t in load_file(path).items()}, path, metadata={"format": "pt"})
    with open(folder + "/adapter_config.json") as f:
        config = json.load(f)
    config["target_parameters"].sort()
    golden.write_json(folder + "/adapter_config.json", config)


def make_target_matching():
    """What PEFT adapts of qwen3_moe_dense for many settings: parameters by their own names."""
    settings = [
        dict(target_modules="all-linear"),
        dict(target_modules=["q_proj", "v_proj"]),
        dict(target_modules=["q_proj", "gate_proj", "up_proj"]),
        dict(target_modules=["q_proj", "down_proj"], rank_pattern={"down_proj": 2}, alpha_pattern={"experts.down_proj": 5}),
        dict(target_modules=["q_proj", "gate_proj"]),
        dict(target_modules=["mlp.gate", "o_proj"]),
        dict(target_modules=["layers.1.mlp.down_proj"]),
        dict(target_modules=["gate_proj", "up_proj", "down_proj"], rank_pattern={"gate_up_proj": 3}, use_rslora=True),
        dict(target_modules=r".*\.self_attn\..*_proj"),
        dict(target_modules=r".*\.layers\.1\..*(q|v)_proj"),
        dict(target_modules=r".*\.mlp\.experts\.(gate|up)_proj"),
        dict(target_modules=r".*\.down_proj"),
        dict(target_modules=r".*mlp\.gate"),
        dict(target_modules="all-linear", exclude_modules=["o_proj", "down_proj"]),
        dict(target_modules=["q_proj"], target_parameters=["experts.gate_up_proj"]),
        dict(target_modules=[], target_parameters=["gate.weight", "layers.2.mlp.experts.down_proj"]),
        dict(target_parameters=["gate_up_proj", "down_proj"]),
        dict(target_parameters=["gate_up"]),
        dict(target_parameters=["down_proj"], exclude_modules=["down_proj"]),
    ]
    folder, cases = os.path.join(golden.HERE, "qwen3_moe_dense"), []
    for setting in settings:
        entry = {"settings": {"r": 8, "lora_alpha": 16, **setting}}
        try:
            model = peft.get_peft_model(load_base(folder), peft.LoraConfig(**copy.deepcopy(entry["settings"])))
            entry["matched"] = {}
            for n, m in model.named_modules():
                if isinstance(m, LoraLayer):
                    name = n.removeprefix("base_model.model.").replace(".base_layer", "")
                    name += "." + m.parameter_name if hasattr(m, "parameter_name") else ""
                    entry["matched"][name] = {"r": m.r["default"], "alpha": m.lora_alpha["default"],
                                              "scaling": m.scaling["default"]}
        except ValueError as error:
            entry["error"] = str(error).split("\n")[0][:160]
        cases.append(entry)
    with open(os.path.join(golden.HERE, "..", "target_matching_moe.json"), "w") as f:
        f.write("[\n" + ",\n".join(map(json.dumps, cases)) + "\n]\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.utils.logging.disable_progress_bar()
    save_double, dense_weights = golden.save_adapter, golden.make_weights
    golden.make_weights, golden.load_base, golden.save_adapter = make_weights, load_base, save_adapter
    for case in sys.argv[1:] or CASES:
        golden.make_case(case, CASES[case])
        path = os.path.join(golden.HERE, case, "logits.safetensors")
        save_file({name: t.float() if name != "positions" else t for name, t in load_file(path).items()}, path)
    make_target_matching()
