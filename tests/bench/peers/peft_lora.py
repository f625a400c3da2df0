"""LoRA steps of torch + PEFT on this processor: the peer of step_bench.py.

Trains the factors of a Hugging Face model for a few steps on the first sequences of a TOKENS file.
Runs in an environment of its own (torch, transformers, peft from PyPI). One JSON object a line, at once:
  {"ready_s": seconds from start until the model is loaded and wrapped}
  {"step": 1, "seconds": ..., "loss": ..., "peak_rss_mib": ...}    the first step warms up (or compiles)
  {"done": true}
so that whoever bounds the time still sees what was reached.
"""
import argparse
import contextlib
import json
import resource
import time

START = time.perf_counter()
QV = ["q_proj", "v_proj"]
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="Hugging Face directory")
    parser.add_argument("data", help="JSONL with input_ids, each of one length")
    parser.add_argument("--dtype", choices=["fp32", "bf16", "bf16-autocast"], default="fp32",
                        help="bf16: base and activations; bf16-autocast: the same under torch.autocast")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--targets", choices=["qv", "all"], default="qv")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=0)
    return parser.parse_args()


def say(**values):
    print(json.dumps(values), flush=True)


def main():
    options = arguments()
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(
        options.model, dtype=torch.float32 if options.dtype == "fp32" else torch.bfloat16)
    model = get_peft_model(model, LoraConfig(
        r=options.rank, lora_alpha=2 * options.rank, task_type="CAUSAL_LM",
        target_modules=QV if options.targets == "qv" else ALL))
    if options.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    model.train()
    forward = torch.compile(model) if options.compile else model
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4,
                                  weight_decay=0.0, fused=True)
    with open(options.data, encoding="utf-8") as file:
        rows = [json.loads(line)["input_ids"] for line in file if line.strip()]
    batches = [torch.tensor(rows[i:i + options.batch])
               for i in range(0, len(rows) - options.batch + 1, options.batch)]
    say(ready_s=time.perf_counter() - START)

    for step in range(options.steps):
        ids = batches[step % len(batches)]
        autocast = (torch.autocast("cpu", dtype=torch.bfloat16) if options.dtype == "bf16-autocast"
                    else contextlib.nullcontext())
        begin = time.perf_counter()
        with autocast:
            loss = forward(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        say(step=step + 1, seconds=time.perf_counter() - begin, loss=loss.item(),
            peak_rss_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    say(done=True)


if __name__ == "__main__":
    main()
