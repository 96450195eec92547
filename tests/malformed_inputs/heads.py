"""Heads that are misspelt, contradictory, without data, or named by nothing and by what should not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from malformed_inputs.cases import E0S, Build, add, frame, sound, waters, write

OTHER_ELEMENT = sound(seed=1).replace("O ", "S ")
UNLABELED = sound(seed=1).replace("REF_energy", "note").replace("REF_forces", "remark")


def _named(*heads: str, seed: int = 0) -> str:
    """Molecules, each of which names its head; none where the name is empty."""
    items = waters(len(heads), seed)
    return "".join(frame(item, f"head={head}" if head else "") for item, head in zip(items, heads, strict=True))


def two(
    a: str = "", b: str = "", *flags: str, files: Sequence[str] = (sound(), sound(seed=1)), e0s: str = E0S
) -> Build:
    """A run of the heads a and b, each with a file of its own as ``train_file``, and with further keys."""

    def build(folder: Path) -> list[str]:
        tables = (
            f"'{name}': {{'train_file': '{write(folder, text, f'{name}.xyz')}', {keys}}}"
            for name, keys, text in zip("ab", (a, b), files, strict=True)
        )
        written = [flag.replace("@", str(folder)) for flag in flags]
        return [f"--heads={{{', '.join(tables)}}}".replace("@", str(folder)), *written, *[e0s] * bool(e0s)]

    return build


def shared(names: str, *flags: str) -> Build:
    """A run on one file whose structures name these heads, one letter each and a space for none."""

    def build(folder: Path) -> list[str]:
        return [f"--train_file={write(folder, _named(*(name.strip() for name in names)))}", *flags, E0S]

    return build


def beside(build: Build, content: str | bytes, name: str) -> Build:
    """The same with another file in the folder."""
    return lambda folder: (write(folder, content, name), build(folder))[1]


def in_file(content: str | bytes, name: str = "heads.yaml") -> Build:
    """A run whose heads are read from a file, with ``@`` for a sound training file."""

    def build(folder: Path) -> list[str]:
        train = write(folder, sound())
        text = content.replace("@", train) if isinstance(content, str) else content
        return [f"--heads={write(folder, text, name)}", f"--train_file={train}", E0S]

    return build


def typed(text: str) -> Build:
    """A run with this text as heads."""
    return lambda folder: [f"--heads={text}", f"--train_file={write(folder, sound())}", E0S]


for _name, _text, _words in (
    ("an empty dictionary", "{}", "--heads names no head"),
    ("an empty list", "[]", "--heads names no head"),
    ("nothing", "", "--heads names no head"),
    ("a bracket that does not close", "{'a'", "is not written as a dictionary of heads"),
    ("a set", "{'a', 'b'}", "must be a dictionary of heads"),
    ("a list of tables", "[{'a': {}}]", "must have the name of a head, not {'a': {}}"),
    ("a number for a head", "{'a': 3}", "must have a dictionary for the head 'a', not 3"),
    ("a list for a head", "{'a': ['train_file']}", "must have a dictionary for the head 'a'"),
    ("two of one name in a list", "a, b, a", "names the head 'a' twice"),
    ("two of one name in a dictionary", "{'a': {}, 'a': {}}", "has a key twice"),
    ("two of one name as number and text", "{1: {}, '1': {}}", "names the head '1' twice"),
    ("a slash in a name", "{'pbe/d3': {}}", "whose name has the character '/'"),
    ("a backslash in a name", r"{'pbe\\d3': {}}", "whose name has the character"),
    ("a comma in a name", "{'pbe,d3': {}}", "whose name has the character ','"),
    ("a line break in a name", r"{'pbe\nd3': {}}", r"whose name has the character '\n'"),
    ("an empty name", "{'': {}}", "the head '', whose name is empty"),
    ("a space after a name", "{'pbe ': {}}", "begins or ends with a space"),
    ("None for a name", "{None: {}}", "must have the name of a head, not None"),
    ("a very long name", "{'" + "x" * 300 + "': {}}", "is longer than 100 bytes"),
    ("a comma too many", "a,,b", "the head '', whose name is empty"),
    ("a file that does not exist", "nowhere.yaml", "nowhere.yaml: the file cannot be read: No such file"),
    ("a directory", "/", "the file cannot be read: Is a directory"),
    ("lists in lists", "[" * 300 + "]" * 300, "--heads"),
):
    add("refused", f"heads with {_name}", typed(_text), _words)

for _name, _content, _words in (
    ("a list", "[a, b]\n", "not a list"),
    ("a word", "dft\n", "not a single text"),
    ("a bracket that does not close", "{a: [\n", "heads.yaml: this is not valid YAML"),
    ("a head twice", "a:\n  train_file: '@'\na:\n  train_file: b.xyz\n", "the key 'a' comes twice"),
    ("tables in tables", "a: " + "{b: " * 40 + "1" + "}" * 40, "more than 20 levels deep"),
    ("too much", "\n".join(f"h{i}: {{energy_key: E, forces_key: F}}" for i in range(5000)), "more than 20000 keys"),
    ("aliases of aliases", "a: &a [1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]\n" + "".join(
        f"{x}: &{x} [{','.join([f'*{y}'] * 30)}]\n" for x, y in ("ba", "cb", "dc")), "unfold to more than 20000"),
    ("another encoding", "a: {train_file: M\xfcller}".encode("latin-1"), "it is not UTF-8 text"),
    ("nothing", "", "--heads names no head"),
    ("a file name that is missing", "a:\n  train_file:\n", "train_file is empty"),
):  # fmt: skip
    add("refused", f"a file of heads with {_name}", in_file(_content), _words)
add(
    "refused", "a JSON file of heads without its end", in_file('{"a": {', "heads.json"), "heads.json: this is not valid"
)
add("read", "a file of heads as it would stand in --config", in_file("heads:\n  a:\n    train_file: '@'\n"))
add("read", "a JSON file of heads", in_file('{"a": {"train_file": "@", "keep_isolated_atoms": false}}', "heads.json"))

for _key, _words in (
    ("'weight': 0", "weight must be a number above 0"),
    ("'weight': -1", "weight must be a number above 0"),
    ("'weight': 'nan'", "weight must be a number above 0"),
    ("'weight': 1e999", "weight must be a number above 0"),
    ("'weight': 'heavy'", "weight must be a number above 0"),
    ("'wieght': 2", "unknown key 'wieght' for the head b; did you mean weight?"),
    ("'trian_file': 'b.xyz'", "did you mean train_file?"),
    ("'batch_size': 4", "unknown key 'batch_size' for the head b; there are energy_key"),
    ("3: 4", "unknown key 3 for the head b"),
    ("'info_keys': {'enrgy': 'E'}", "unknown label 'enrgy' in info_keys of the head b", ),
    ("'info_keys': ['E']", "info_keys must be a dictionary"),
    ("'arrays_keys': {'forces': 3}", "arrays_keys must be a dictionary"),
    ("'info_keys': {'energy': 'nowhere'}", "no structure has a label 'energy' under the key 'nowhere'"),
    ("'forces_key': 'nowhere'", "b.xyz: no structure has a label 'forces' under the key 'nowhere'"),
    ("'energy_unit': 'Hartre'", "did you mean Hartree?"),
    ("'valid_fraction': 1.0", "valid_fraction must be a number above 0 and below 1"),
    ("'valid_fraction': 'tenth'", "valid_fraction must be a number above 0 and below 1"),
    ("'scaling': 'std'", "scaling must be one of std_scaling"),
    ("'std': 0", "std must be a number above 0"),
    ("'mean': 'nan'", "mean must be a number"),
    ("'config_type_weights': {'Default': -1}", "config_type_weights must be a dictionary of weights"),
    ("'config_type_weights': \"{'Default': \"", "config_type_weights must be a dictionary of weights"),
    ("'config_type_weights': {'Default': 0}", "no training structure for the head b has a label with weight"),
    ("'keep_isolated_atoms': 'maybe'", "keep_isolated_atoms must be True or False"),
    ("'statistics_file': 's.json'", "s.json: this file, given as --statistics_file, cannot be opened"),
    ("'E0s': {'H': -13.6}", "Head b: --E0s gives no reference energy for O"),
    ("'E0s': {'Q': -13.6}", "mistake in the head b: E0s must map elements"),
    ("'E0s': [-13.6, -432.0]", "E0s must map atomic numbers"),
    ("'E0s': 'nowhere.json'", "Head b: nowhere.json: this file, given as --E0s, cannot be opened"),
    ("'E0s': 'average'", "Head b: --E0s average: the compositions of the 5 structures with an energy do not determine"),
    ("'E0s': 'estimated'", "Head b: E0s 'estimated' are the energies of a foundation model; add --foundation_model"),
    ("'E0s': 'foundation'", "Head b: E0s 'foundation' are the energies of a foundation model"),
    ("'train_file': []", "mistake in the head b: train_file"),
    ("'train_file': 'nowhere.xyz'", "nowhere.xyz: there is no such file"),
    ("'train_file': '@/no*.xyz'", "no*.xyz: no file matches this pattern"),
    ("'train_file': [{'file': '@/b.xyz', 'enrgy_key': 'E'}]", "did you mean energy_key?"),
    ("'train_file': [{'file': '@/b.xyz'}, '@/b.xyz']", "the same file is given twice"),
    ("'valid_file': 'nowhere.xyz'", "nowhere.xyz: there is no such file"),
    ("'test_dir': 'nowhere'", "--test_dir: nowhere is not a folder"),
):  # fmt: skip
    # a key that comes twice would be refused as such
    _build = two("", _key) if "train_file" not in _key else (
        lambda folder, key=_key: [
            f"--heads={{'a': {{'train_file': '{write(folder, sound(), 'a.xyz')}'}}, 'b': {{{key}}}}}".replace(
                "@", str(Path(write(folder, sound(seed=1), "b.xyz")).parent)
            ),
            E0S,
        ]
    )  # fmt: skip
    add("refused", f"a head with {_key}", _build, _words.replace("@/", ""))

add("refused", "a head without data", two("", "", files=(sound(), "\n")), "b.xyz: the file holds no structure")
add(
    "refused",
    "a head without a file",
    shared("aaaa", "--heads={'a': {}, 'b': {}}"),
    "train.xyz: no structure names",
)
add(
    "refused",
    "a head without a file, and none for all",
    lambda f: [f"--heads={{'a': {{'train_file': '{write(f, sound())}'}}, 'b': None}}", E0S],
    "--train_file is required for the head b",
)
add(
    "refused",
    "names of heads without a file",
    lambda f: ["--heads=a,b", E0S],
    "--train_file is required for the head a",
)
add("refused", "a head without labels", two(files=(sound(), UNLABELED)), "Head b:", "no structure has a label 'energy'")
add("refused", "a head of one structure", two(files=(sound(), sound(1))), "Head b:", "1 structures cannot be divided")
add(
    "refused",
    "E0s for one of two heads",
    two("'E0s': {'H': -13.6, 'O': -432.0}", e0s=""),
    "Head b: The reference energies",
)
add(
    "refused",
    "E0s for all that lack an element of one",
    two(files=(sound(), OTHER_ELEMENT)),
    "Head b:",
    "reference energy for S",
)
add("refused", "an average for all that is not determined", two(e0s="--E0s=average"), "Head a:", "do not determine")
add(
    "refused",
    "an element of one head in no other's E0s",
    two("", "", "--atomic_numbers=[1, 6, 8]"),
    "no head has a reference energy of C",
)
add("refused", "an element that --atomic_numbers lacks", two("", "", "--atomic_numbers=[1]"), "Head a:", "contains O")
add(
    "refused",
    "a validation set with an element of the other head",
    beside(two("", "'valid_file': '@/v.xyz'"), OTHER_ELEMENT, "v.xyz"),
    "Head b:", "v.xyz: structure 0 contains S",
)  # fmt: skip
add(
    "refused",
    "select_by a head that is none",
    two("", "", "--select_by=c"),
    "there is no head 'c'; give all or one of a, b",
)
add(
    "refused",
    "select_by a head without heads",
    lambda f: [f"--train_file={write(f, sound())}", E0S, "--select_by=c"],
    "there is no head 'c'",
)
add(
    "refused",
    "heads skipped that are none",
    two("", "", "--skip_evaluate_heads=a,c"),
    "there is no head 'c'; there are a, b",
)
add("refused", "a misspelt sampling", two("", "", "--head_sampling=balnced"), "did you mean balanced?")
add(
    "refused",
    "heads of dipoles",
    two("", "", "--model=AtomicDipolesMACE", "--loss=dipole"),
    "predicts no energies, and heads differ in these only",
)
add(
    "refused",
    "all as a head and as all heads",
    shared("abab", "--heads={'all': {}, 'b': {}}", "--select_by=all"),
    "one has this name too",
)

for _names, _words in (
    ("ababac", "structure 5 is for the head 'c'; this file is for several heads"),
    ("abab b", "structure 4 has no head= in its comment line"),
    (" ababa", "structure 1 names its head in head=, but structure 0 does not"),
    ("aaaaaa", "no structure names the head b with head="),
    ("aaaaab", "Head b: "),
):
    add("refused", f"a file for the heads a and b with those of {_names!r}", shared(_names, "--heads=a,b"), _words)
add("refused", "heads in the structures, one without", shared("aabb b", "--head_key=head"), "structure 4 has no head=")
add(
    "refused",
    "a head with a slash in the structures",
    lambda f: [f"--train_file={write(f, _named(*['a/b', 'c'] * 3))}", "--head_key=head", E0S],
    "structure 0 names the head 'a/b', whose name has the character '/'",
)
add(
    "refused",
    "a shared validation file of other heads",
    beside(two("", "", "--valid_file=@/v.xyz"), _named(*"abc"), "v.xyz"),
    "v.xyz: structure 2 is for the head 'c'",
)
add(
    "refused",
    "a shared validation file without one head",
    beside(two("", "", "--valid_file=@/v.xyz"), _named(*"aaa"), "v.xyz"),
    "v.xyz: no structure names the head b",
)
add(
    "refused",
    "two sets of one name",
    beside(two("", "'test_file': '@/t.xyz'"), sound(2, 5, info="config_type=train"), "t.xyz"),
    "t.xyz: these structures would have the same name in tables, train_b",
)

add(
    "noted",
    "a head whose file names another",
    two(files=(sound(), _named(*"aaaa"))),
    "structures name the heads a, but all",
)
add(
    "noted",
    "a shared file without names",
    shared("      ", "--heads=a,b"),
    "no structure names its head with head=, so all are for every",
)
add(
    "noted",
    "a shared validation file without names",
    beside(two("", "", "--valid_file=@/v.xyz"), sound(3, 7), "v.xyz"),
    "v.xyz: no structure names its head with head=, so all are for every head",
)
add(
    "noted",
    "a head without forces",
    two(files=(sound(), sound(seed=1).replace("REF_forces", "remark"))),
    "No training structure for the head b has a label 'forces'",
)
add(
    "noted",
    "elements of a head",
    two("", "'atomic_numbers': '[1, 8]'"),
    "Head b: --atomic_numbers=[1, 8] changes nothing",
)
add(
    "noted",
    "neighbors of a head",
    two("", "'avg_num_neighbors': 3"),
    "Head b: --avg_num_neighbors=3.0 changes nothing: one average number",
)
add(
    "noted",
    "a file for all that no head needs",
    two("", "", "--train_file=nowhere.xyz"),
    "--train_file has no effect: every head has its own",
)
add(
    "noted",
    "sampling of one head",
    lambda f: [f"--train_file={write(f, sound())}", E0S, "--head_sampling=balanced"],
    "has no effect on a model with one head",
)
add(
    "noted",
    "weights for a type that a head does not have",
    two("", "'config_type_weights': {'slab': 2}"),
    "names 'slab', which no structure has",
)
add(
    "noted",
    "a condition that the model does not have",
    two("", "'total_charge_key': 'q'"),
    "--total_charge_key=q has no effect",
)
