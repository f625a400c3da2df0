#!/usr/bin/env python3
"""Makes fortunes.train.jsonl and fortunes.eval.jsonl from the Debian package fortunes.

The entries are those of its file `definitions` that read like a dictionary: a headword, a colon, a
definition, often a source. Wrapped lines are joined; long entries, entries with coarse words and
entries with signs that the King James Bible does not use (digits, for instance: the base model has
never seen them and LoRA leaves the embeddings alone) are left out. Needs only Python.

    apt-get install fortunes
    python3 make_data.py
"""
import json
import os
import random
import re

SOURCE = "/usr/share/games/fortunes/definitions"
COARSE = re.compile(
    r"\b(sex\w*|bitch\w*|shit\w*|fuck\w*|damn\w*|hell|ass|asses|asshole\w*|bastard\w*|whore\w*|breast\w*|nude|naked|"
    r"orgasm\w*|penis\w*|vagina\w*|virgin\w*|erotic\w*|drunk\w*|drugs?|suicid\w*|kill\w*|murder\w*|rape\w*|negro\w*|"
    r"jew\w*|nigger\w*|gay|gays|lesbian\w*|homosexual\w*|nazi\w*|hitler|islam\w*|muslim\w*|catholic\w*|polish|polack\w*|"
    r"irish\w*|german\w*|italian\w*|mexican\w*|chinese|japanese|indian\w*|blacks?|women|woman|wife|wives|girl\w*|"
    r"prostitut\w*|urin\w*|fart\w*|crap|piss\w*|condom\w*|genital\w*|masturbat\w*|lover\w*|adulter\w*|slut\w*|feces|"
    r"god|christ\w*|jesus|church\w*|abort\w*|toilet\w*|vomit\w*|corpse\w*|boob\w*|tits?|pms|queer|terroris\w*)\b", re.I)


SIGNS = re.compile(r"[A-WYZa-z ,.;:?!'()\n-]+")  # those of the base model's text


def tidy(entry):
    """'Headword:\\nDefinition.\\n-- Source', or None where the entry has another form."""
    lines = [line.rstrip() for line in entry.replace("\r", "").split("\n") if line.strip()]
    if len(lines) < 2 or lines[0].startswith(("QOTD", "Re: ")) or not lines[0].endswith(":") or len(lines[0]) > 48:
        return None
    body, source = [], ""
    for line in lines[1:]:
        if line.strip().startswith("-- "):
            source = "\n" + re.sub(r", *\".*", "", line.strip())
        elif source or not line[0].isspace():
            return None
        else:
            body.append(line.strip())
    text = re.sub(r"\s+", " ", " ".join(body)).replace('"', "'")
    if not 20 <= len(text) <= 330 or len(source) > 40:
        return None
    text = lines[0] + "\n" + text + source
    return text if SIGNS.fullmatch(text) and not text[0].isspace() else None


def main():
    with open(SOURCE, encoding="utf-8") as f:
        entries = [tidy(e) for e in f.read().split("\n%\n")]
    entries = sorted({e for e in entries if e and not COARSE.search(e)})
    random.Random(0).shuffle(entries)
    here = os.path.dirname(os.path.abspath(__file__))
    held_out = len(entries) // 16
    for name, part in (("eval", entries[:held_out]), ("train", entries[held_out:])):
        with open(os.path.join(here, f"fortunes.{name}.jsonl"), "w") as f:
            for text in part:
                f.write(json.dumps({"text": text}) + "\n")
        print(f"{name}: {len(part)} entries, {sum(map(len, part))} characters")


if __name__ == "__main__":
    main()
