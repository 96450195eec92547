"""Files of settings and of structures that are damaged or meant to harm, and what must be said of each."""

from __future__ import annotations

import gzip

Texts = dict[str, tuple[str | bytes, str]]

_PAIR = "k{0}: &k{0} {{b: *k{1}, c: *k{1}}}\n"
_NOT_YAML = "this is not valid YAML: "
_TOO_DEEP = _NOT_YAML + "lists and tables lie in each other more than 20"

SETTINGS: Texts = {
    "lists-nested": ("train_file: " + "[" * 100_000, _TOO_DEEP),
    "tables-nested": ("heads: " + "{a: " * 50_000, _TOO_DEEP),
    "dashes-nested": ("- " * 100_000, _TOO_DEEP),
    "aliases-that-multiply": (
        "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)),
        _NOT_YAML + "its aliases unfold to more than 20000",
    ),
    "aliases-of-tables": (
        "k0: &k0 {b: 1, c: 1}\n" + "".join(_PAIR.format(i, i - 1) for i in range(1, 20)),
        "aliases unfold to more than",
    ),
    "alias-of-itself": ("E0s: &a [*a]", "found unconstructable recursive node"),
    "alias-unknown": ("name: *nobody", "undefined alias"),
    "nul-escaped": ('name: "a\\0b"', "a text on line 1 holds the character NUL"),
    "nul": ("name: a\0b", _NOT_YAML),
    "control-characters": ("name: a\x1b[2Jb", _NOT_YAML),
    "seed-of-26-digits": ("seed: 1" + "0" * 26, "seed must be a whole number from 0 to 9"),
    "seed-of-5000-digits": ("seed: " + "9" * 5000, r"seed must be .*not '9+\.\.\.9+'"),
    "seed-negative": ("seed: -1", "seed must be"),
    "seed-fraction": ("seed: 1.5", "seed must be"),
    "20000-keys": ("".join(f"key_{i}: 1\n" for i in range(20_000)), _NOT_YAML + "it has more than 20000 keys"),
    "9000-keys": ("".join(f"key_{i}: 1\n" for i in range(9_000)), "'key_0' is not a setting"),
    "list-of-50000": ("train_file: [" + "a, " * 50_000 + "]", _NOT_YAML + "it has more than 20000 keys"),
    "two-megabytes": ("name: " + "x" * 2_000_000, "no configuration file: it has more than 1048576 bytes"),
    "long-value": ("lr: " + "x" * 900_000, r"lr must be .*not 'x+\.\.\.x+'"),
    "long-key": ("x" * 900 + ": 1", r"'x+\.\.\.x+' is not a setting"),
    "a-list": ("- 1\n- 2", "is a table of 'setting: value' lines, not a list"),
    "a-text": ("just words", "is a table of 'setting: value' lines, not a single text"),
    "two-documents": ("name: a\n---\nname: b", _NOT_YAML),
    "not-utf-8": (b"name: \xff\xfe", "it is not UTF-8 text"),
    "utf-16": ("name: a".encode("utf-16"), "it is not UTF-8 text"),
    "binary": (bytes(range(256)), "it is not UTF-8 text"),
    "tabs": ("name:\n\t- a", _NOT_YAML),
    "not-closed": ("E0s: {1: -13.6", _NOT_YAML),
    "quote-not-closed": ('name: "a', _NOT_YAML),
    "key-a-list": ("? [a, b]\n: c", _NOT_YAML),
    "merged": ("a: &a {lr: 1}\n<<: *a", "'a' is not a setting"),
    "tag-of-python": ("lr: !!python/object/apply:os.system ['exit 3']", "lr must be"),
    "key-twice": ("lr: 1\nlr: 2", "the key 'lr' comes twice"),
    "setting-twice": ("train_file: a\ntrain-file: b", "train_file is given twice"),
    "unknown": ("learning_rat: 1", "'learning_rat' is not a setting"),
    "config-in-config": ("config: other.yaml", "cannot be given inside a configuration file"),
    "number-infinite": ("lr: .inf", "lr must be"),
    "number-not-a-number": ("lr: nan", "lr must be"),
    "number-beyond-floats": ("r_max: 1e999", "r_max must be"),
    "table-for-a-number": ("lr: {a: 1}", "lr must be"),
}

_COLUMNS = "Properties=species:S:1:pos:R:3"
_EXPECTED, _UNREADABLE = "a number of atoms is expected", "structure 0 cannot be read"
_NUMBER = "structure 0 has a position|structure 0"

STRUCTURES: Texts = {
    "number-of-atoms-huge": (f"1{'0' * 15}\n{_COLUMNS}\nH 0 0 0\n", "the file ends after 1 of its"),
    "number-of-5000-digits": ("9" * 5000 + f"\n{_COLUMNS}\nH 0 0 0\n", _EXPECTED),
    "nothing": ("", "empty|no structure"),
    "blank-lines": ("\n" * 100_000, "no structure|cannot be read|empty"),
    "line-without-end": ("x" * 20_000_000, _EXPECTED),
    "zeros": (bytes(20_000_000), _EXPECTED),
    "a-page": ("<!DOCTYPE html><html></html>", _EXPECTED),
    "position-nan": (f"1\n{_COLUMNS}\nH 0 0 nan\n", "structure 0"),
    "position-infinite": (f"1\n{_COLUMNS}\nH 0 0 inf\n", "structure 0"),
    "position-beyond-floats": (f"1\n{_COLUMNS}\nH 0 0 1e999\n", "structure 0"),
    "columns-a-billion": ("1\nProperties=species:S:1:pos:R:1000000000\nH 0 0 0\n", _UNREADABLE),
    "columns-negative": ("1\nProperties=species:S:1:pos:R:-3\nH 0 0 0\n", _UNREADABLE),
    "columns-many": ("1\nProperties=" + "species:S:1:" * 20_000 + "pos:R:3\nH 0 0 0\n", _UNREADABLE),
    "lattice-nan": (f'1\nLattice="nan 0 0 0 5 0 0 0 5" {_COLUMNS}\nH 0 0 0\n', "structure 0"),
    "lattice-flat": (f'1\nLattice="5 0 0 5 0 0 0 0 5" pbc="T T T" {_COLUMNS}\nH 0 0 0\n', "structure 0"),
    "element-unknown": (f"1\n{_COLUMNS}\nQq 0 0 0\n", "structure 0"),
    "other-encoding": (b"1\n" + _COLUMNS.encode() + b" a=\xff\nH 0 0 0\n", "this is not a readable text file"),
    "compressed-and-cut": (gzip.compress(b"1\n" * 1000)[:-20], "not a readable text file|cannot be read"),
}
