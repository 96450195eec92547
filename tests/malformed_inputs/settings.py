"""Settings that are misspelt, contradictory or badly written, on the command line and in YAML."""

from __future__ import annotations

from pathlib import Path

from malformed_inputs.cases import E0S, Build, add, flags_case, has_waters, sound, write


def _yaml(content: str | bytes) -> Build:
    """A run whose YAML file has this content, with the training file for ``@``."""

    def build(folder: Path) -> list[str]:
        name = write(folder, sound())
        text = content.replace("@", name) if isinstance(content, str) else content.replace(b"@", name.encode())
        return [f"--config={write(folder, text, 'run.yaml')}", E0S]

    return build


def refuse_yaml(name: str, content: str | bytes, *words: str) -> None:
    """Add a YAML file that is refused."""
    add("refused", f"YAML with {name}", _yaml(content), *words)


refuse_yaml("a bracket that does not close", "train_file: [@\n", "run.yaml: this is not valid YAML")
refuse_yaml("tabs", "train_file:\n\t- @\n", "run.yaml: this is not valid YAML")
refuse_yaml("a key that comes twice", "train_file: '@'\nlr: 0.1\nlr: 0.2\n", "'lr' comes twice")
refuse_yaml("two spellings of a key", "train_file: '@'\nswa: true\nstage_two: false\n", "swa is given twice")
refuse_yaml("a misspelt key", "train_file: '@'\nenrgy_weight: 2\n", "did you mean energy_weight?")
refuse_yaml("a misspelt value", "train_file: '@'\nloss: wieghted\n", "did you mean weighted?")
refuse_yaml("a list", "- train_file\n- '@'\n", "not a list")
refuse_yaml("a word", "train_file\n", "not a single text")
refuse_yaml("a table in place of a number", "train_file: '@'\nlr: {a: 1}\n", "run.yaml: lr must be a number")
refuse_yaml("another encoding", b"train_file: '@'\nname: M\xfcller\n", "not UTF-8")
refuse_yaml("itself", "train_file: '@'\nconfig: run.yaml\n", "cannot be given inside")
refuse_yaml("no files", "train_file: []\n", "train_file")
refuse_yaml("an empty file name", "train_file: ['']\n", "train_file")
refuse_yaml("a list in the list of files", "train_file: [['@']]\n", "train_file")
refuse_yaml(
    "a misspelt key of a file",
    "train_file: [{file: '@', enrgy_key: E}]\n",
    "unknown key 'enrgy_key'",
    "did you mean energy_key?",
)
refuse_yaml(
    "a key of a file that belongs elsewhere", "train_file: [{file: '@', batch_size: 3}]\n", "unknown key 'batch_size'"
)
refuse_yaml("a table without a file", "train_file: [{energy_key: E}]\n", "without the key 'file'")
refuse_yaml(
    "a misspelt unit of a file",
    "train_file: [{file: '@', energy_unit: Hartre}]\n",
    "energy_unit must be one of",
    "did you mean Hartree?",
)
refuse_yaml(
    "a negative weight of a file", "train_file: [{file: '@', config_type_weights: {a: -1}}]\n", "config_type_weights"
)
refuse_yaml("a key of a file that is nowhere", "train_file: [{file: '@', energy_key: dft}]\n", "under the key 'dft'")
refuse_yaml(
    "a table for a file that is missing", "train_file: [{file: 'nowhere.xyz'}]\n", "nowhere.xyz: there is no such file"
)
add("refused", "YAML that is missing", flags_case("--config=nowhere.yaml"), "nowhere.yaml")
add(
    "refused",
    "YAML that is a directory",
    lambda f: [f"--config={f}", f"--train_file={write(f, sound())}"],
    "cannot be read",
)
add(
    "read",
    "YAML with a table for a file",
    _yaml("train_file: [{file: '@', energy_key: REF_energy, config_type_weights: {Default: 2}}]\n"),
    check=has_waters(),
)
add(
    "read",
    "YAML that is empty",
    lambda f: [f"--config={write(f, '', 'run.yaml')}", f"--train_file={write(f, sound())}", E0S],
    check=has_waters(),
)
add(
    "read",
    "a table on the command line",
    lambda f: ["--train_file={'file': '" + write(f, sound()) + "', 'forces_key': 'REF_forces'}", E0S],
    check=has_waters(),
)

for _flag, _words in (
    ("--energy_unit=Hartre", "did you mean Hartree?"),
    ("--length_unit=feet", "--length_unit must be one of Angstrom, bohr, nm"),
    ("--stress_unit=Pa", "--stress_unit must be one of"),
    ("--foundation_model=", "--foundation_model is empty"),
    ("--valid_fraction=0", "--valid_fraction"),
    ("--valid_fraction=1.0", "--valid_fraction"),
    ("--valid_fraction=ten", "--valid_fraction"),
    ("--batch_size=0", "--batch_size"),
    ("--batch_size=2.5", "--batch_size"),
    ("--valid_batch_size=-1", "--valid_batch_size"),
    ("--lr=nan", "--lr"),
    ("--lr=1,0", "--lr"),
    ("--energy_weight=-1", "--energy_weight"),
    ("--forces_weight=inf", "--forces_weight"),
    ("--huber_delta=0", "--huber_delta"),
    ("--loss=wheighted", "--loss"),
    ("--r_max=0", "--r_max"),
    ("--atomic_numbers=[1]", "contains O, which --atomic_numbers does not"),
    ("--atomic_numbers=[1, 1, 8]", "--atomic_numbers"),
    ("--atomic_numbers=[0, 1, 8]", "--atomic_numbers"),
    ("--std=0", "--std"),
    ("--amsgrad=maybe", "--amsgrad"),
    ("--train_fiel=x", "did you mean --train_file?"),
    ("--correlation=[3, 3, 3]", "--correlation has 3 entries"),
    ("--compute_forces=False", "needs --forces_weight=0"),
    ("--test_dir=nowhere", "--test_dir"),
    ("{'file': 3}", "belongs to no setting"),
    ("--freeze=-1", "--freeze cannot be -1: mace-torch accepts a negative number and freezes nothing"),
    ("--freeze=embedding readouts", "give names of parts separated by commas"),
    ("--freeze=readout", "no part 'readout'; did you mean readouts?"),
    ("--freeze=interactions.9", "no part 'interactions.9'"),
    ("--freeze=7", "--freeze=7 freezes all that the model has"),
    ("--freeze=embedding,interactions,products,readouts", "freezes all that the model has"),
    ("--lora=maybe", "--lora must be True or False"),
    ("--batch_edges=0", "--batch_edges must be a whole number of at least 1"),
    ("--batch_atoms=many", "--batch_atoms must be a whole number of at least 1"),
):
    add("refused", f"the flag {_flag}", flags_case(_flag), _words)
for _flags, _words in (
    (("--lora=True", "--lora_rank=0"), "--lora_rank must be"),
    (("--lora=True", "--lora_alpha=-1"), "--lora_alpha must be"),
    (("--batch_edges=100", "--batch_size=10"), "--batch_size and --batch_edges say how large batches of training are"),
    (
        ("--batch_edges=100", "--batch_atoms=10"),
        "--batch_edges and --batch_atoms say how large batches of training are",
    ),
    (("--valid_batch_edges=9", "--valid_batch_size=10"), "--valid_batch_size and --valid_batch_edges say how large"),
    (("--lora=True", "--lora_rank=1000"), "--lora_rank=1000 is above the width of embedding"),
    (("--lora=True", "--freeze=embedding,interactions,readouts,products.0.linear,products.1.linear"), "leaves no lin"),
):
    add("refused", f"the flags {' '.join(_flags)}", flags_case(*_flags), _words)
add("noted", "a rank of no corrections", flags_case("--lora_rank=8"), "--lora_rank=8 has no effect without --lora")
add("refused", "all weights zero", flags_case("--energy_weight=0", "--forces_weight=0"), "all its weights are zero")
