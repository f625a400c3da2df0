#!/usr/bin/env python3
"""Makes the reference values of epochs, schedules and direct preference optimization (README.md), in float64.

Needs what make_golden.py needs, and TRL.
    make_objective.py
"""
import json
import lzma
import math
import os
import shutil
from types import SimpleNamespace

import datasets
import peft
import tokenizers
import torch
import transformers
import trl
from make_golden import HERE, collate, counted, load_base, loss_sum, save_adapter, write_json, write_jsonl

RATE, DPO_RATE, BETA = 0.02, 0.003, 0.2


def linear_to(o, warmup, steps, low):
    return transformers.get_polynomial_decay_schedule_with_warmup(o, warmup, steps, lr_end=low, power=1.0)


def cosine_to(o, warmup, steps, low):
    return transformers.get_cosine_with_min_lr_schedule_with_warmup(o, warmup, steps, min_lr=low)


def cosine_again(o, warmup, steps, cycles):
    return transformers.get_cosine_with_hard_restarts_schedule_with_warmup(o, warmup, steps, num_cycles=cycles)


def rates(make, warmup, steps, shape):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=RATE)
    schedule = make(optimizer, warmup, steps, shape)
    out = []
    for step in range(steps):
        out.append(schedule.get_last_lr()[0])
        optimizer.step()
        if step + 1 < steps:  # transformers' polynomial divides by zero there when all steps are warmup
            schedule.step()
    return out


def make_schedules():
    cases = []
    for steps, warmup in ((1, 0), (10, 3), (40, 4), (7, 7), (5, 8)):
        for low in (0.003, 1e-7):
            cases.append({"kind": "LINEAR", "min_learning_rate": low, "make": linear_to, "shape": low})
            cases.append({"kind": "COSINE", "min_learning_rate": low, "make": cosine_to, "shape": low})
        for cycles in (1, 2, 3, 7):
            cases.append({"kind": "COSINE", "cycles": cycles, "make": cosine_again, "shape": cycles})
        for case in cases:
            if "steps" not in case:
                case.update(steps=steps, warmup_steps=warmup)
    for ratio, steps in ((0.1, 9), (0.03, 100), (1.0, 4), (0.5, 5)):  # as TrainingArguments.get_warmup_steps
        cases.append({"kind": "LINEAR", "warmup_ratio": ratio, "steps": steps, "make": linear_to, "shape": 0.0,
                      "warmup": math.ceil(steps * ratio)})
    with open(os.path.join(HERE, "..", "schedule_shapes.json"), "w") as f:
        lines = []
        for case in cases:
            make, shape, warmup = case.pop("make"), case.pop("shape"), case.pop("warmup", case.get("warmup_steps"))
            case["rates"] = rates(make, warmup, case["steps"], shape)
            lines.append(json.dumps({"learning_rate": RATE, **case}))
        f.write("[\n" + ",\n".join(lines) + "\n]\n")


def load_policy(case):
    model = peft.PeftModel.from_pretrained(load_base(os.path.join(HERE, case)), os.path.join(HERE, case, "adapter"),
                                           is_trainable=True)
    return model.double().eval()


def made_with():
    return {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__,
            "peft": peft.__version__}


def read_jsonl(path):
    with open(path) as f:
        return [json.loads(line) for line in f]


def write_config(name, case, rate, data, rest):
    at = "tests/golden/peft"
    with open(os.path.join(HERE, name, "config.textproto"), "w") as f:
        f.write(f"""# The run whose values stand in expected.json (paths from the top of the tree).
model {{ path: "{at}/{case}/model" }}
data {{ {data} seq_len: 32 shuffle: false }}
lora {{ init_from: "{at}/{case}/adapter" }}
optimizer {{ learning_rate: {rate} weight_decay: 0.01 max_grad_norm: 1.0 }}
{rest}
compute {{ backend: CPU dtype: FP32 }}
output {{ dir: "runs/{name}" }}
""")


def train(model, batches, batch_loss, rate, low, warmup):
    """Steps over `batches` on a cosine from `rate` to `low`; batch_loss gives a mean and what else to record."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.01)
    schedule = cosine_to(optimizer, warmup, len(batches), low)
    steps = []
    for i, batch in enumerate(batches):
        optimizer.zero_grad()
        loss, more = batch_loss(batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, 1.0).item()
        steps.append({"step": i + 1, "loss": loss.item(), "grad_norm": norm,
                      "learning_rate": schedule.get_last_lr()[0], **more})
        optimizer.step()
        schedule.step()
    return steps


def finish(name, model, expected):
    folder = os.path.join(HERE, name)
    save_adapter(model.float(), folder + "/final_adapter")
    write_json(folder + "/expected.json", {"made_with": made_with(), **expected})
    print(name, [round(s["loss"], 4) for s in expected["steps"]], flush=True)


def make_epochs():
    """14 rows in batches of 4, 2.5 epochs: four steps an epoch, the last of two rows; ten steps."""
    name, case, batch = "epochs", "llama31", 4
    shutil.rmtree(os.path.join(HERE, name), ignore_errors=True)
    os.makedirs(os.path.join(HERE, name))
    write_config(name, case, RATE, 'train: "tests/golden/peft/llama31/data.jsonl" format: TOKENS',
                 "schedule { kind: COSINE min_learning_rate: 0.002 warmup_ratio: 0.15 }\n"
                 f"train {{ epochs: 2.5 global_batch_size: {batch} micro_batch_size: 1 }}")
    rows = read_jsonl(os.path.join(HERE, case, "data.jsonl"))
    epoch = [rows[i:i + batch] for i in range(0, len(rows), batch)]
    steps = math.ceil(2.5 * len(epoch))
    batches = (epoch * 3)[:steps]
    model = load_policy(case)
    expected = train(model, batches, lambda b: (loss_sum(model, b) / counted(b), {"counted_labels": counted(b)}),
                     RATE, 0.002, math.ceil(0.15 * steps))
    for i, step in enumerate(expected):
        step["epoch"] = i // len(epoch) + sum(map(len, epoch[:i % len(epoch) + 1])) / len(rows)
    finish(name, model, {"steps": expected})


def token_trainer(case, rows, max_length):
    """TRL's trainer on texts whose words are ids: its tokenizer gives the rows' own ids, and EOS."""
    names = {0: "<pad>", 2: "</s>"}
    words = tokenizers.models.WordLevel({names.get(i, f"t{i}"): i for i in range(301)}, unk_token="<pad>")
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>")
    text = lambda ids: "".join(f"t{i} " for i in ids)
    data = datasets.Dataset.from_list([{k: text(v) for k, v in row.items()} for row in rows])
    args = trl.DPOConfig("/tmp/dpo", max_length=max_length, use_cpu=True, report_to=[], beta=BETA, bf16=False,
                         gradient_checkpointing=False)
    trainer = trl.DPOTrainer(model=load_policy(case), args=args, train_dataset=data, processing_class=fast)
    trainer.model.delete_adapter("ref")  # a copy of the adapter at the start: our reference is the base
    trainer.model.double().eval()
    return trainer


def completion_logps(model, rows, which, max_length):
    """log p of the completions, summed over their tokens: first max_length tokens of prompt + completion."""
    sequences = []
    for row in rows:
        ids = (row["prompt_ids"] + row[which + "_ids"])[:max_length]
        sequences.append({"input_ids": ids, "labels": [-100] * len(row["prompt_ids"]) + ids[len(row["prompt_ids"]):]})
    ids, mask, labels = collate(sequences)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    logps = -torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], ignore_index=-100,
                                               reduction="none")
    return logps.sum(1)


def dpo(model, rows, max_length):
    """Mean of -log sigmoid(beta ((pi - ref)(chosen) - (pi - ref)(rejected))) over the pairs, and TRL's metrics."""
    chosen, rejected = (completion_logps(model, rows, which, max_length) for which in ("chosen", "rejected"))
    with torch.no_grad(), model.disable_adapter():
        reference = [completion_logps(model, rows, which, max_length) for which in ("chosen", "rejected")]
    rewards = [BETA * (chosen - reference[0]), BETA * (rejected - reference[1])]
    loss = -torch.nn.functional.logsigmoid(rewards[0] - rewards[1]).mean()
    mean = lambda x: x.detach().double().mean().item()
    return loss, {"rewards_chosen": mean(rewards[0]), "rewards_rejected": mean(rewards[1]),
                  "rewards_margin": mean(rewards[0] - rewards[1]), "rewards_accuracy": mean(rewards[0] > rewards[1]),
                  "logps_chosen": mean(chosen), "logps_rejected": mean(rejected)}


def make_dpo():
    """11 pairs in batches of 4, 8 steps in file order; seq_len 32 cuts some, of one pair all that differs."""
    name, case, length, batch, steps = "dpo", "qwen2", 32, 4, 8
    shutil.rmtree(os.path.join(HERE, name), ignore_errors=True)
    os.makedirs(os.path.join(HERE, name))
    write_config(name, case, DPO_RATE, f'train: "tests/golden/peft/{name}/data.jsonl" eval: "tests/golden/peft/{name}/eval.jsonl" '
                             "format: PREFERENCE_TOKENS",
                 f"schedule {{ kind: COSINE warmup_steps: 1 }}\ndpo {{ beta: {BETA} }}\n"
                 f"train {{ objective: DPO steps: {steps} global_batch_size: {batch} micro_batch_size: 1 }}")
    g = torch.Generator().manual_seed(5)
    pick = lambda low, high: torch.randint(low, high, (1,), generator=g).item()
    ids = lambda low, high: torch.randint(4, 301, (pick(low, high),), generator=g).tolist()
    rows = [{"prompt": ids(1, 14), "chosen": ids(1, 16), "rejected": ids(1, 16)} for _ in range(16)]
    rows[2]["chosen"] += ids(30, 31)  # cut
    rows[5]["prompt"] += ids(30 - len(rows[5]["prompt"]), 31 - len(rows[5]["prompt"]))  # two tokens left
    rows[7]["rejected"] = rows[7]["chosen"] + ids(1, 4)
    trainer = token_trainer(case, rows, length)
    rows = [{k: row[k] for k in ("prompt_ids", "chosen_ids", "rejected_ids")} for row in trainer.train_dataset]
    write_jsonl(os.path.join(HERE, name, "data.jsonl"), rows[:11])
    write_jsonl(os.path.join(HERE, name, "eval.jsonl"), rows[11:])
    model = load_policy(case)
    for some in (rows[:4], rows[4:11]):  # the formula is TRL's, whose head computes in fp32
        inputs = trainer.data_collator(some)
        theirs = trainer._compute_loss(trainer.model, inputs, return_outputs=False).item()
        ours, more = dpo(model, some, length)
        assert abs(theirs - ours.item()) < 1e-6, (theirs, ours.item())
        for key, trl_key in (("rewards_chosen", "rewards/chosen"), ("rewards_rejected", "rewards/rejected"),
                             ("rewards_margin", "rewards/margins"), ("rewards_accuracy", "rewards/accuracies"),
                             ("logps_chosen", "logps/chosen"), ("logps_rejected", "logps/rejected")):
            value = trainer._metrics["eval"][trl_key][-1]
            assert abs(value - more[key]) < 1e-5, (key, value, more[key])
    batches = [[rows[(batch * i + k) % 11] for k in range(batch)] for i in range(steps)]
    expected = train(model, batches, lambda b: dpo(model, b, length), DPO_RATE, 0.0, 1)
    loss, more = dpo(model, rows[11:], length)
    finish(name, model, {"trl": trl.__version__, "steps": expected,
                         "eval": {"loss": loss.item(), **more}})


def make_preference_rows():
    """Ids of PREFERENCE lines as TRL's DPOTrainer makes them, for tokenizers of ../tokenizers."""
    rows = [{"prompt": "Why?", "chosen": " Because.", "rejected": " No."},
            {"prompt": "Question: 2+2=", "chosen": "4", "rejected": "5 \u00fcber"},
            {"prompt": "", "chosen": "one two", "rejected": "three"},
            {"prompt": "A wor", "chosen": "d of it", "rejected": "k of it"},
            {"prompt": "ends in a space ", "chosen": "yes", "rejected": " no"},
            {"prompt": "line\n", "chosen": "\nmore", "rejected": "\n\nless EOS"}]
    implicit = [{"chosen": "Human: hi Bot: yes", "rejected": "Human: hi Bot: no"},
                {"chosen": "same start", "rejected": "same start and more"},
                {"chosen": "caf\u00e9 x", "rejected": "caf\u00e8 x"},
                {"chosen": "\u4f60\u597d", "rejected": "\u4f60\u4eec"},
                {"chosen": "a", "rejected": "b"}]
    cases = []
    for name, eos in (("llama2", "</s>"), ("llama3_1", "<|end_of_text|>"), ("gpt2", "<|endoftext|>"),
                      ("smollm", "<|endoftext|>"), ("gemma", "<eos>")):
        folder = os.path.join(HERE, "..", "tokenizers")
        with lzma.open(os.path.join(folder, name + ".json.xz"), "rt") as f:
            tokenizer = tokenizers.Tokenizer.from_str(f.read())
        fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos)
        out = []
        for part in (rows, implicit):
            part = [{k: v.replace("EOS", eos) for k, v in row.items()} for row in part]
            made = trl.DPOTrainer._prepare_dataset(SimpleNamespace(_tokenizer=fast), datasets.Dataset.from_list(part), fast,
                                                   trl.DPOConfig("/tmp/dpo", use_cpu=True, bf16=False), "train")
            out += [{"line": a, **{k: b[k] for k in ("prompt_ids", "chosen_ids", "rejected_ids")}}
                    for a, b in zip(part, made)]
        cases.append({"tokenizer": name, "eos_token": eos, "rows": out})
    with open(os.path.join(HERE, "..", "preference_rows.json"), "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    make_schedules()
    make_epochs()
    make_dpo()
    make_preference_rows()
