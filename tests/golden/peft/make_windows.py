#!/usr/bin/env python3
"""Makes the reference cases with sliding windows and of Gemma 3: torch + PEFT + transformers in float64.

Modules that transformers computes in fp32 whatever the model's type (norms, softmax) stay so. Files and the
rest of the run are make_golden.py's, which this imports.
    make_windows.py [CASE...]
"""
import math
import sys

import safetensors.torch
import torch
import transformers
from transformers import AutoModelForCausalLM

import make_golden as golden
from make_golden import BASE, NEW, OLD

GEMMA = dict(model_type="gemma3_text", architectures=["Gemma3ForCausalLM"], attention_bias=False,
             hidden_activation="gelu_pytorch_tanh", tie_word_embeddings=True, query_pre_attn_scalar=24,
             attn_logit_softcapping=None, final_logit_softcapping=None, rms_norm_eps=1e-6, sliding_window=6)
GEMMA_BASE = {k: v for k, v in BASE.items() if k != "hidden_act"}
CASES = {
    # The window in every layer; shorter than most sequences (3 to 24 tokens).
    "mistral_window": dict(
        config={**BASE, **OLD, "model_type": "mistral", "architectures": ["MistralForCausalLM"],
                "rope_theta": 10000.0, "sliding_window": 5, "head_dim": 8, "vocab_size": 256},
        lora=dict(r=4, lora_alpha=8, target_modules=["q_proj", "k_proj", "v_proj"]),
        optimizer=dict(lr=2e-3, weight_decay=0.0), schedule=("COSINE", 2), lines=16, generate=True),
    # By layer_types, which come before max_window_layers.
    "qwen3_window": dict(
        config={**BASE, **NEW, "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"],
                "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "rms_norm_eps": 1e-6,
                "head_dim": 8, "num_key_value_heads": 3, "attention_bias": False, "num_hidden_layers": 3,
                "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
        lora=dict(r=3, lora_alpha=6, target_modules=["q_proj", "v_proj", "down_proj"]),
        optimizer=dict(lr=2e-3, weight_decay=0.0), schedule=("LINEAR", 1), lines=16),
    # As published (the older form, with layer_types), scaled rope in the full layers, one key/value head.
    "gemma3": dict(
        config={**GEMMA_BASE, **OLD, **GEMMA, "num_hidden_layers": 3, "num_attention_heads": 4,
                "num_key_value_heads": 1, "head_dim": 16, "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0,
                "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "_sliding_window_pattern": 6,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
                "use_bidirectional_attention": False, "pad_token_id": 0, "eos_token_id": [2, 3]},
        lora=dict(r=4, lora_alpha=8, target_modules="all-linear"),
        optimizer=dict(lr=2e-3, weight_decay=0.0), schedule=("COSINE", 2), lines=16, generate=True),
    # The newer form; layers by sliding_window_pattern; biases; a head of its own.
    "gemma3_new_config": dict(
        config={**GEMMA_BASE, **NEW, **GEMMA, "head_dim": 8, "attention_bias": True, "tie_word_embeddings": False,
                "sliding_window_pattern": 2,
                "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 500000.0},
                                    "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0}}},
        lora=dict(r=3, lora_alpha=5, target_modules=["q_proj", "o_proj", "up_proj", "down_proj"]),
        optimizer=dict(lr=2e-3, weight_decay=0.01), schedule=("LINEAR", 2), lines=16),
}

plain_weights = golden.make_weights


def make_weights(c, g):
    """Gemma's gains are stored less one; its norms around both sublayers have their own names."""
    tensors = plain_weights(dict(c, model_type="qwen3") if c["model_type"] == "gemma3_text" else c, g)
    if c["model_type"] != "gemma3_text":
        return tensors
    for i in range(c["num_hidden_layers"]):
        for name in ("pre_feedforward_layernorm", "post_feedforward_layernorm"):
            tensors[f"model.layers.{i}.{name}.weight"] = 1 + 0.3 * torch.randn(c["hidden_size"], generator=g)
        if c["attention_bias"]:
            for name, rows in (("q", c["num_attention_heads"] * c["head_dim"]), ("o", c["hidden_size"])):
                assert tensors[f"model.layers.{i}.self_attn.{name}_proj.bias"].shape == (rows,)
    for name, t in tensors.items():
        if name.endswith("norm.weight"):
            tensors[name] = t.float() - 1
        if name == "model.embed_tokens.weight":  # they are multiplied by the root of the hidden size
            tensors[name] = t.float() / math.sqrt(c["hidden_size"]) * (5 if c["tie_word_embeddings"] else 1)
    return {name: t.to(torch.bfloat16).contiguous() for name, t in tensors.items()}


def load_base(folder):
    model = AutoModelForCausalLM.from_pretrained(folder + "/model", dtype=torch.float32, attn_implementation="eager")
    return model.double().eval()


def as_stored(tensors):
    return {k: t.float() if t.dtype == torch.float64 else t for k, t in tensors.items()}


def save_file(tensors, path, **options):
    safetensors.torch.save_file(as_stored(tensors), path, **options)


def save_adapter(model, folder):
    """In fp32, which then is what the run begins with."""
    for p in model.parameters():
        if p.requires_grad:
            p.data = p.data.float().double()
    plain_save_adapter(model, folder)
    path = folder + "/adapter_model.safetensors"
    save_file(safetensors.torch.load_file(path), path, metadata={"format": "pt"})


def loss_sum(model, rows):
    """One row at a time: where a window holds padding alone, the fp32 softmax of a float64 mask is NaN."""
    return sum(plain_loss_sum(model, [row]) for row in rows)


plain_save_adapter, plain_loss_sum = golden.save_adapter, golden.loss_sum
golden.make_weights, golden.load_base, golden.loss_sum = make_weights, load_base, loss_sum
golden.save_adapter, golden.save_file = save_adapter, save_file

if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.utils.logging.disable_progress_bar()
    for name in sys.argv[1:] or CASES:
        golden.make_case(name, CASES[name])
