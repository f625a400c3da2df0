"""Writes trainer/tokenizer/unicode_categories.cpp: the general category of every code point as the
regular expressions of Hugging Face tokenizers see it (the Oniguruma built into the package), so
that our ids depend on no other library's Unicode version.

    python3 make_unicode_tables.py > ../../../trainer/tokenizer/unicode_categories.cpp
"""

import sys

from tokenizers import Regex, pre_tokenizers

CATEGORIES = ("Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp "
              "Cc Cf Co").split()  # the order of enum Category; what is left is Cn
CODE_POINTS = [c for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]


def matching(pattern):
    """The code points that match a pattern of one character."""
    split = pre_tokenizers.Split(Regex(pattern), "removed")
    found = []
    for i in range(0, len(CODE_POINTS), 4096):
        chunk = CODE_POINTS[i:i + 4096]
        kept = set()
        for _, (begin, end) in split.pre_tokenize_str("".join(map(chr, chunk))):
            kept.update(range(begin, end))
        found += [c for k, c in enumerate(chunk) if k not in kept]
    return found


def main():
    category = [len(CATEGORIES)] * 0x110000
    for index, name in enumerate(CATEGORIES):
        for code_point in matching(r"\p{%s}" % name):
            category[code_point] = index
    runs = []
    for code_point, value in enumerate(category):
        if not runs or runs[-1][1] != value:
            runs.append((code_point, value))
    print("// Written by tests/golden/tokenizers/make_unicode_tables.py; not for editing.")
    print('#include "trainer/tokenizer/unicode.h"\n')
    print("namespace lorashard {\n")
    print("// Start of each run of code points of one category: code point * 32 + category.")
    print("const uint32_t kCategoryRuns[] = {")
    words = ["0x%x" % (start * 32 + value) for start, value in runs]
    line = "   "
    for word in words:
        if len(line) + len(word) + 2 > 100:
            print(line)
            line = "   "
        line += " " + word + ","
    print(line.rstrip(",") + "};")
    print("const size_t kCategoryRunCount = %d;\n" % len(runs))
    print("}  // namespace lorashard")
    print(len(runs), "runs", file=sys.stderr)


if __name__ == "__main__":
    main()
