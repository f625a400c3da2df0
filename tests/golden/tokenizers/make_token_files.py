"""Ids of folders whose tokens stand in several files, as transformers reads them.

    python3 make_token_files.py      # writes token_files.json.xz

Each case: the files beside smollm.json.xz (its tokenizer.json) and the ids of each text.
"""
import json, lzma, pathlib, random, tempfile
from transformers import PreTrainedTokenizerFast

HERE = pathlib.Path(__file__).parent
base = json.loads(lzma.open(HERE / "smollm.json.xz").read())
vocab = base["model"]["vocab"]
added = {t["content"]: t["id"] for t in base["added_tokens"]}
first_free = max([len(vocab)] + [i + 1 for i in added.values()])
new = ["<|user|>", "<|assistant|>", "<end>", "[PAD]", "<tool>", "Caf\u00e9", "hello"]
known = [t for t in list(vocab)[300:] if t.isascii() and len(t) > 2][:20]
texts = ["<|user|>hi <|assistant|> there<end>", "x <end> y<end>z", "[PAD] hello [PAD]",
         " <tool>  <tool>a", "a Cafe\u0301 caf\u00e9 <|user|> ", "hello hello  <|user|>\n"]


def case(r):
    pick = r.sample(new + r.sample(known, 2) + [next(iter(added))], 5)
    ids = {}

    def id_of(token):
        if token in added or token in vocab:
            return added.get(token, vocab.get(token))
        return ids.setdefault(token, first_free + len(ids))

    def token(content, keys=("lstrip", "rstrip", "single_word", "normalized", "special")):
        return {"content": content, **{k: r.random() < 0.3 for k in keys}}

    config, names, files = {}, {}, {}
    mode = r.choice(["decoder", "added", "map", "names", "both"])
    if mode in ("decoder", "both"):
        config["added_tokens_decoder"] = {str(id_of(c)): token(c) for c in pick[:3]}
    if mode in ("added", "both"):
        files["added_tokens.json"] = {c: id_of(c) for c in pick[1:4]}
    for key in ("eos_token", "pad_token", "bos_token"):
        if r.random() < 0.5:
            config[key] = r.choice(pick)
        if r.random() < 0.4 and mode != "names":
            names[key] = r.choice([r.choice(pick), token(r.choice(pick), ("lstrip", "normalized"))])
    if r.random() < 0.4:
        config["additional_special_tokens"] = r.sample(pick, 2)
    if names:
        files["special_tokens_map.json"] = names
    files["tokenizer_config.json"] = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    mine = texts + [" ".join(pick), "".join(pick)]
    with tempfile.TemporaryDirectory() as folder:
        for name, value in {"tokenizer.json": base, **files}.items():
            (pathlib.Path(folder) / name).write_text(json.dumps(value))
        t = PreTrainedTokenizerFast.from_pretrained(folder)
        return {"files": files, "texts": mine, "ids": [t.encode(x) for x in mine],
                "bos": t.bos_token_id, "eos": t.eos_token_id}


r = random.Random(7)
cases = [case(r) for _ in range(80)]
(HERE / "token_files.json.xz").write_bytes(lzma.compress(json.dumps(cases).encode(), preset=9))
