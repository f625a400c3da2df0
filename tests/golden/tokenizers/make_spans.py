"""Where in the text each token comes from, as Hugging Face tokenizers' offsets say.

    python3 make_spans.py NAME...     # writes NAME.spans.json.xz beside NAME.json.xz

For each text of texts.json.xz the offsets of its ids in bytes, [begin, end] one behind another, -1 -1
for the post-processor's tokens. trim_offsets is switched off: a token's spaces are part of it.
"""
import json, lzma, pathlib, sys
from tokenizers import Tokenizer

HERE = pathlib.Path(__file__).parent


def read(name):
    return json.loads(lzma.open(HERE / name).read())


def no_trim(node):
    if isinstance(node, dict):
        return {k: False if k == "trim_offsets" else no_trim(v) for k, v in node.items()}
    return [no_trim(v) for v in node] if isinstance(node, list) else node


def spans(tokenizer, text):
    at = [0]
    for c in text:
        at.append(at[-1] + len(c.encode()))
    e = tokenizer.encode(text)
    out = []
    for (begin, end), sequence in zip(e.offsets, e.sequence_ids):
        out += [-1, -1] if sequence is None else [at[begin], at[end]]
    return out


for name in sys.argv[1:]:
    tree = read(name + ".json.xz")
    tree["post_processor"] = no_trim(tree.get("post_processor"))
    tokenizer = Tokenizer.from_str(json.dumps(tree))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    values = [spans(tokenizer, text) for text in read("texts.json.xz")]
    packed = lzma.compress(json.dumps(values, separators=(",", ":")).encode(), preset=9)
    (HERE / (name + ".spans.json.xz")).write_bytes(packed)
    print(name, len(packed))
