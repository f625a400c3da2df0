"""Models with random weights, as Hugging Face directories, and token data. Standard library only.

A checkpoint is streamed to disk tensor by tensor. Its values are cut from one seeded block of normal
values, each tensor at its own place, so that a gigabyte takes seconds: speed and memory do not depend
on the values, as long as they are finite and of the usual size.
"""
import array
import json
import os
import random
import struct

# Names follow the peers' measurements; `tiny` serves smoke runs, `logits` and `logits-small` the
# measurement of logits memory.
SHAPES = {
    "smol135": dict(hidden=576, layers=30, heads=9, kv_heads=3, width=1536, vocab=49152),
    "llama100": dict(hidden=768, layers=12, heads=12, kv_heads=4, width=2048, vocab=32000),
    "llama-1b": dict(hidden=2048, layers=16, heads=32, kv_heads=8, width=8192, vocab=128256),
    "tiny": dict(hidden=256, layers=4, heads=4, kv_heads=2, width=512, vocab=8192),
    "logits": dict(hidden=64, layers=1, heads=1, kv_heads=1, width=64, vocab=262144),
    "logits-small": dict(hidden=64, layers=1, heads=1, kv_heads=1, width=64, vocab=1024),
}
BLOCK = 1048573  # values of the seeded block: a prime, so that no two rows of a matrix are equal


def head_dim(shape):
    return shape["hidden"] // shape["heads"]


def layer_weights(shape):
    """The seven weight matrices of a layer: name -> (out, in)."""
    h, f, d = shape["hidden"], shape["width"], head_dim(shape)
    kv = shape["kv_heads"] * d
    return {
        "self_attn.q_proj": (shape["heads"] * d, h), "self_attn.k_proj": (kv, h),
        "self_attn.v_proj": (kv, h), "self_attn.o_proj": (h, shape["heads"] * d),
        "mlp.gate_proj": (f, h), "mlp.up_proj": (f, h), "mlp.down_proj": (h, f),
    }


def gemm_weights(shape):
    """Every (out, in) that a token is multiplied with, and how often: [((n, k), count)]."""
    counts = {}
    for weight in layer_weights(shape).values():
        counts[weight] = counts.get(weight, 0) + shape["layers"]
    head = (shape["vocab"], shape["hidden"])
    counts[head] = counts.get(head, 0) + 1
    return sorted(counts.items())


def weights_in_gemms(shape):
    return sum(n * k * count for (n, k), count in gemm_weights(shape))


def attention_flops(shape, tokens):
    """Causal attention of one sequence, forward and backward, without recomputation: two GEMMs
    forward and four backward over tokens*(tokens+1)/2 pairs a head."""
    pairs = tokens * (tokens + 1) / 2
    return 6 * 2 * pairs * shape["heads"] * head_dim(shape) * shape["layers"]


def step_flops(shape, sequences, tokens):
    """Model flops of a LoRA step on frozen weights: 4 per weight and token, and attention."""
    return (4 * weights_in_gemms(shape) * sequences * tokens +
            sequences * attention_flops(shape, tokens))


def tensors(shape):
    """(name, shape) in the order of the file. Embeddings are tied: there is no lm_head."""
    yield "model.embed_tokens.weight", (shape["vocab"], shape["hidden"])
    for layer in range(shape["layers"]):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", (shape["hidden"],)
        for name, weight in layer_weights(shape).items():
            yield prefix + name + ".weight", weight
        yield prefix + "post_attention_layernorm.weight", (shape["hidden"],)
    yield "model.norm.weight", (shape["hidden"],)


def config(shape, dtype):
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": False,
        "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2, "mlp_bias": False,
        "dtype": "bfloat16" if dtype == "bf16" else "float32", "head_dim": head_dim(shape),
        "hidden_act": "silu", "hidden_size": shape["hidden"], "initializer_range": 0.02,
        "intermediate_size": shape["width"], "max_position_embeddings": 8192,
        "num_attention_heads": shape["heads"], "num_hidden_layers": shape["layers"],
        "num_key_value_heads": shape["kv_heads"], "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "tie_word_embeddings": True, "use_cache": True, "vocab_size": shape["vocab"],
    }


def to_bf16(floats):
    """Little-endian fp32 bytes cut to their upper halves."""
    out = bytearray(len(floats) // 2)
    out[0::2] = floats[2::4]
    out[1::2] = floats[3::4]
    return bytes(out)


def normal_block(dtype, seed):
    draw = random.Random(seed)
    block = array.array("f", (draw.gauss(0, 0.02) for _ in range(BLOCK)))
    if struct.pack("=H", 1) != b"\x01\x00":
        block.byteswap()
    return to_bf16(block.tobytes()) if dtype == "bf16" else block.tobytes()


def write_model(folder, shape, dtype, seed=0):
    """Writes config.json and model.safetensors; the latter appears whole or not at all."""
    width = 2 if dtype == "bf16" else 4
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, dims in tensors(shape):
        size = width
        for d in dims:
            size *= d
        header[name] = {"dtype": "BF16" if dtype == "bf16" else "F32", "shape": list(dims),
                        "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    block = normal_block(dtype, seed)
    place = random.Random(seed + 1)
    one = struct.pack("<f", 1.0)
    one = to_bf16(one) if dtype == "bf16" else one

    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, "model.safetensors.part")
    with open(temporary, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, dims in tensors(shape):
            if len(dims) == 1:
                file.write(one * dims[0])
                continue
            left = dims[0] * dims[1] * width
            start = place.randrange(BLOCK) * width
            while left:
                piece = block[start:start + left]
                file.write(piece)
                left -= len(piece)
                start = 0
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
        json.dump(config(shape, dtype), file, indent=2)
    os.replace(temporary, os.path.join(folder, "model.safetensors"))


def model(work, name, dtype):
    """The folder of a model, written on first use."""
    folder = os.path.join(work, "models", f"{name}-{dtype}")
    if not os.path.exists(os.path.join(folder, "model.safetensors")):
        print(f"  writing {folder}", flush=True)
        write_model(folder, SHAPES[name], dtype)
    return folder


def token_data(work, vocab, sequences, tokens):
    """A TOKENS file of random sequences of one length; every position but the first has a label."""
    path = os.path.join(work, "data", f"v{vocab}-{sequences}x{tokens}.jsonl")
    if not os.path.exists(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        draw = random.Random(vocab * 1000003 + tokens)
        with open(path + ".part", "w", encoding="utf-8") as file:
            for _ in range(sequences):
                ids = [draw.randrange(3, vocab) for _ in range(tokens)]
                file.write(json.dumps({"input_ids": ids}) + "\n")
        os.replace(path + ".part", path)
    return path


def weight_bytes(folder):
    return os.path.getsize(os.path.join(folder, "model.safetensors"))


def largest_tensor_bytes(shape, dtype):
    return max(n * k for (n, k), _ in gemm_weights(shape)) * (2 if dtype == "bf16" else 4)
