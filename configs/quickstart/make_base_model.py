#!/usr/bin/env python3
"""Makes configs/quickstart/base_model: a small llama trained from scratch on the King James Bible.

The text is in the public domain; it comes from the Debian packages bible-kjv and bible-kjv-text.
Needs torch, transformers and tokenizers. Nothing that lorashard runs needs this script: what it
wrote lies beside it.

    apt-get install bible-kjv bible-kjv-text
    make_base_model.py --minutes 24 --out first
    make_base_model.py --start first --seed 1 --minutes 10 --learning-rate 2.5e-3

The first run gets through the text about twice, the second once more. (For the committed model the
first run joined verses with spaces and not with line ends.)
"""
import argparse
import math
import os
import random
import subprocess
import time

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

BOS, EOS = "<s>", "</s>"


def verses():
    """The Bible, one verse a string, without references."""
    out = subprocess.run(["bible", "-f", "Gen1:1-Rev22:21"], stdin=subprocess.DEVNULL,
                         capture_output=True, text=True, check=True).stdout
    found = [line.split(" ", 1)[1].strip() for line in out.splitlines() if " " in line]
    assert len(found) > 31000, len(found)
    return found


def documents(lines, seed):
    """Runs of 1 to 6 consecutive verses, one a line, so that a document starts and ends anywhere."""
    rng, at, docs = random.Random(seed), 0, []
    while at < len(lines):
        n = rng.choice((1, 1, 2, 2, 3, 4, 6))
        docs.append("\n".join(lines[at:at + n]))
        at += n
    return docs


def make_tokenizer(lines, vocab):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(lines, trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=[BOS, EOS], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, 0)])
    return tokenizer


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default=os.path.join(os.path.dirname(__file__), "base_model"))
    parser.add_argument("--minutes", type=float, default=25, help="processor time for training")
    parser.add_argument("--start", metavar="DIR", help="a model that this script wrote, to train on from")
    parser.add_argument("--seed", type=int, default=0, help="order of the text; take another with --start")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--seq-len", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)

    lines = verses()
    tokenizer = make_tokenizer(lines, vocab=2048)

    def stream(epoch):
        docs = documents(lines, seed=100 * args.seed + epoch)
        random.Random(100 * args.seed + epoch).shuffle(docs)
        ids = []
        for encoding in tokenizer.encode_batch(docs):
            ids += encoding.ids + [1]
        return torch.tensor(ids)

    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=192, intermediate_size=512,
        num_hidden_layers=6, num_attention_heads=6, num_key_value_heads=2, head_dim=32,
        max_position_embeddings=1024, rms_norm_eps=1e-5, tie_word_embeddings=True,
        rope_theta=10000.0, bos_token_id=0, eos_token_id=1, initializer_range=0.03)
    if args.start:
        model = LlamaForCausalLM.from_pretrained(args.start, dtype=torch.float32).train()
    else:
        model = LlamaForCausalLM(config)
    count = sum(p.numel() for p in model.parameters())
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0}],
                                  lr=args.learning_rate, betas=(0.9, 0.98), fused=True)
    per_step = args.batch * args.seq_len
    print(f"{count} weights, {len(lines)} verses", flush=True)

    # The schedule runs over processor time, not steps: warm up for 60 steps, cosine down to zero.
    start, step, epoch, smooth = time.process_time(), 0, 0, None
    ids, at = stream(0), 0
    while True:
        done = (time.process_time() - start) / (60 * args.minutes)
        if done >= 1:
            break
        scale = min(1.0, (step + 1) / 60) * 0.5 * (1 + math.cos(math.pi * done))
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * scale
        if at + per_step > len(ids):
            epoch += 1
            ids, at = stream(epoch), 0
        batch = ids[at:at + per_step].view(args.batch, args.seq_len)
        at += per_step
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        smooth = loss.item() if smooth is None else 0.98 * smooth + 0.02 * loss.item()
        step += 1
        if step % 50 == 0:
            print(f"step {step} epoch {epoch} loss {smooth:.3f} {step * per_step / (time.process_time() - start):.0f} tokens/s",
                  flush=True)

    model.eval()
    model = model.to(torch.bfloat16)
    model.save_pretrained(args.out)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS,
                            model_max_length=1024, clean_up_tokenization_spaces=False).save_pretrained(args.out)
    # The class under the name that transformers 4 knows too.
    path = os.path.join(args.out, "tokenizer_config.json")
    with open(path) as f:
        text = f.read()
    with open(path, "w") as f:
        f.write(text.replace('"TokenizersBackend"', '"PreTrainedTokenizerFast"'))
    model = model.float()
    for prompt in ("Wisdom", "A friend is", "The king said", "Love", "In the beginning"):
        ids = torch.tensor([tokenizer.encode(prompt).ids])
        torch.manual_seed(0)
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=50, do_sample=True,
                             temperature=0.8, pad_token_id=1)
        print(repr(tokenizer.decode(out[0].tolist())), flush=True)


if __name__ == "__main__":
    main()
