"""Is every wrong value refused in one sentence that names the flag and what would be right?"""

import pytest
from pydantic import ValidationError

from mace.errors import UserError
from mace.settings import TrainingSettings, parse_E0s_literal, parse_training_settings
from mace.settings.command_line import Given
from mace.settings.reading import build_settings

BASE = ["--name=run", "--train_file=train.xyz"]


def parse(*arguments: str) -> TrainingSettings:
    """Parse with the required settings given."""
    return parse_training_settings([*BASE, *arguments])


def sentence_of(*arguments: str) -> str:
    """Parse and return the sentence of the error."""
    with pytest.raises(UserError) as caught:
        parse(*arguments)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "wrong", "right", "words"),
    [
        ("r_max", "0", "4.5", "a number above 0 (Angstrom)"),
        ("valid_fraction", "0", "0.5", "above 0 and below 1"),
        ("valid_fraction", "1", "0.99", "above 0 and below 1"),
        ("batch_size", "0", "1", "a whole number of at least 1"),
        ("batch_size", "2.5", "2", "a whole number of at least 1"),
        ("valid_batch_size", "0", "1", "at least 1"),
        ("max_num_epochs", "-1", "0", "at least 0"),
        ("eval_interval", "0", "1", "at least 1"),
        ("patience", "0", "1", "at least 1"),
        ("lr", "0", "1e-3", "a number above 0"),
        ("lr", "nan", "1", "a number above 0"),
        ("lr", "inf", "1", "a number above 0"),
        ("swa_lr", "-1e-3", "1e-3", "a number above 0"),
        ("weight_decay", "-1", "0", "at least 0"),
        ("ema_decay", "1", "0.999", "above 0 and below 1"),
        ("num_interactions", "0", "1", "at least 1"),
        ("max_ell", "5", "4", "from 0 to 4"),
        ("max_ell", "-1", "0", "from 0 to 4"),
        ("correlation", "0", "1", "from 1 to 4"),
        ("correlation", "[3,5]", "[3,4]", "from 1 to 4"),
        ("correlation", "[]", "4", "from 1 to 4"),
        ("num_radial_basis", "0", "1", "at least 1"),
        ("num_cutoff_basis", "1", "2", "at least 2"),
        ("num_channels", "0", "1", "at least 1"),
        ("num_threads", "0", "1", "at least 1"),
        ("forces_weight", "-1", "0", "at least 0"),
        ("swa_stress_weight", "-1", "0", "at least 0"),
        ("config_type_weights", "{'a': -1}", "{'a': 0}", "weights of at least 0"),
        ("config_type_weights", "surface", "{'a': 1}", "a dictionary"),
        ("radial_MLP", "[64, 0]", "[64, 1]", "whole numbers of at least 1"),
        ("radial_MLP", "[64, x]", "[64]", "whole numbers of at least 1"),
        ("atomic_numbers", "[1, 1]", "[1, 118]", "different atomic numbers"),
        ("atomic_numbers", "[0]", "[1]", "different atomic numbers"),
        ("scheduler", "StepLR", "ExponentialLR", "one of ReduceLROnPlateau, ExponentialLR"),
        ("device", "gpu", "cuda:0", "cpu, cuda, mps or xpu"),
        ("device", "cuda:", "cuda", "cpu, cuda, mps or xpu"),
        ("default_dtype", "float16", "float32", "one of float32, float64"),
        ("optimizer", "sgd", "adamw", "one of adam, adamw, schedulefree"),
        ("kernels", "fortran", "torch", "one of auto, torch, c"),
        ("progress", "spinner", "bar", "one of auto, bar, lines, off"),
        ("plot", "maybe", "Y", "True or False"),
        ("clip_grad", "0", "None", "a number above 0 or None"),
        ("lr_factor", "1", "0.5", "above 0 and below 1"),
        ("seed", "-1", "0", "from 0 to"),
        ("seed", "1" + 26 * "0", str(2**63 - 1), "from 0 to"),
        ("std", "0", "1", "a number above 0"),
    ],
)
def test_value_outside_its_range(name, wrong, right, words):
    """The sentence says what the value must be and what it is; the nearest right value passes."""
    sentence = sentence_of(f"--{name}={wrong}")
    assert sentence.startswith(f"--{name} must be ")
    assert words in sentence
    assert f"not {wrong!r}" in sentence
    assert "\n" not in sentence
    assert name in parse(f"--{name}={right}").model_fields_set


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--batchsize=5"], "--batchsize is not a setting; did you mean --batch_size?"),
        (["--max_num_epchs", "5"], "--max_num_epchs is not a setting; did you mean --max_num_epochs?"),
        (
            ["--swa_e=5", "--ema_=1", "--checkpoint=5"],
            "--checkpoint is not a setting, but begins several: --checkpoint_minutes, --checkpoints_dir.",
        ),
        (
            ["--swa_"],
            "--swa_ is not a setting, but begins several: --swa_dipole_weight, --swa_energy_weight, "
            "--swa_forces_weight, --swa_lr, --swa_polarizability_weight and 2 more.",
        ),
        (["--start_stage_too=5"], "--start_stage_too is not a setting; did you mean --start_stage_two?"),
        (["--qqqqqq"], "--qqqqqq is not a setting; --help lists all settings."),
        (["--swa", "True"], "--swa is a bare flag: write it without a value; --no_swa turns it off."),
        (["--swa=True"], "--swa is a bare flag: write it without a value; --no_swa turns it off."),
        (["--lr"], "--lr needs a value: a number above 0."),
        (["--plot"], "--plot needs a value: True or False."),
        (["--lr=1", "5"], "'5' belongs to no setting; every setting is written as --name=value, see --help."),
        (["--foundation_model="], "--foundation_model is empty; give a value or remove it."),
        (
            ["--radial_type=besel"],
            "--radial_type must be one of bessel, gaussian, chebyshev, not 'besel'; did you mean bessel?",
        ),
        (
            ["--correlation=[3,3]", "--num_interactions=3"],
            "--correlation has 2 entries for 3 layers; give one number, or as many as --num_interactions.",
        ),
        (
            ["--lr_params_factors={'embeding_lr_factor': 2}"],
            "--lr_params_factors has the unknown part 'embeding_lr_factor'; the nearest known is embedding_lr_factor.",
        ),
    ],
)
def test_sentence(arguments, sentence):
    """Mistyped flags, bare flags and missing values are told from one another."""
    assert sentence_of(*arguments) == sentence


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (["--batch_siz=5"], "batch_size", 5),
        (["--max-num-ep", "3"], "max_num_epochs", 3),
        (["--stage_two_l=0.5"], "swa_lr", 0.5),
        (["--no_ams"], "amsgrad", False),
        (["--start_st", "7"], "start_swa", 7),
        (["--mea", "-1.5"], "mean", -1.5),
        (["--test_f", "a.xyz", "b.xyz"], "test_file", ["a.xyz", "b.xyz"]),
        (["--swa"], "swa", True),
    ],
)
def test_flags_may_be_cut_short(arguments, name, value):
    """As in argparse, where only one setting begins so; a whole flag is itself."""
    settings = parse(*arguments)
    assert getattr(settings, name) == value and name in settings.model_fields_set


@pytest.mark.parametrize("text", ["", "None", "none", "null"])
@pytest.mark.parametrize("name", ["energy_key", "stress_key", "charges_key", "elec_temp_key", "head_key"])
def test_an_empty_key_says_that_there_is_no_such_label(name, text):
    """It is not the same as no key, also after a round trip."""
    settings = parse(f"--{name}={text}")
    assert getattr(settings, name) == "" and getattr(parse(), name) is None
    assert getattr(TrainingSettings.model_validate_json(settings.model_dump_json()), name) == ""


def test_required_settings():
    """Nothing runs without a name and something to train on."""
    with pytest.raises(UserError, match="^--name is required: "):
        parse_training_settings([])
    with pytest.raises(UserError, match="^--train_file is required: "):
        parse_training_settings(["--name=a"])
    with pytest.raises(UserError, match="^--train_file is required for the head b, "):
        parse_training_settings(["--name=a", "--heads={'a': {'train_file': 'a.xyz'}, 'b': {}}"])


def test_every_mistake_is_told_at_once():
    """One sentence per line."""
    assert sentence_of("--lr=0", "--batch_size=0").count("\n") == 1


@pytest.mark.parametrize("flag", ["--no-amsgrad", "--no_amsgrad"])
def test_amsgrad_can_be_turned_off(flag):
    """Unlike in the original."""
    assert parse(flag).amsgrad is False
    assert parse("--amsgrad").amsgrad is True
    assert parse("--amsgrad", flag).amsgrad is False


@pytest.mark.parametrize("text", ["True", "true", "1", "yes", "y", "t", "T"])
def test_true(text):
    """Booleans that take a value take the words people use."""
    assert parse(f"--compute_stress={text}").compute_stress is True


@pytest.mark.parametrize("text", ["False", "false", "0", "no", "n", "f"])
def test_false(text):
    """And their opposites."""
    assert parse(f"--plot={text}").plot is False


@pytest.mark.parametrize(
    ("text", "value"),
    [("-3.5", -3.5), ("-1e-3", -0.001), ("-1.5E+2", -150.0), ("-.5", -0.5)],
)
def test_negative_numbers_are_values(text, value):
    """A number in any notation may follow its flag after a blank."""
    assert parse("--mean", text).mean == value


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        (["a.xyz"], "a.xyz"),
        (["a.xyz", "b.xyz"], ["a.xyz", "b.xyz"]),
        (["data/*.xyz"], "data/*.xyz"),
    ],
)
def test_files(arguments, value):
    """One file stays text, as does a pattern; what a shell expanded is a list."""
    assert parse("--valid_file", *arguments).valid_file == value


@pytest.mark.parametrize(
    ("text", "energies"),
    [
        ("{1:-13.6, 6:-1029}", {1: -13.6, 6: -1029.0}),
        ('{"1": -13.6, "8": "-2e3"}', {1: -13.6, 8: -2000.0}),
        ("{118: 0}", {118: 0.0}),
        ("{'H': -13.6, 8: -2}", {1: -13.6, 8: -2.0}),
    ],
)
def test_E0s_dictionary(text, energies):
    """Dictionaries as Python and as JSON write them."""
    assert parse_E0s_literal(text) == energies
    found = parse(f"--E0s={text}").E0s
    assert found == energies
    assert all(type(number) is int for number in found)


@pytest.mark.parametrize(
    "text", ["{H: -13.6}", "{'Hx': -13.6}", "{1.5: -13.6}", "{1: 'x'}", "{0: 1}", "{119: 1}", "{1: 1e999}", "{}"]
)
def test_wrong_E0s_dictionary(text):
    """Keys are elements and values finite energies."""
    with pytest.raises(ValueError, match="energies in eV"):
        parse_E0s_literal(text)
    assert sentence_of(f"--E0s={text}").startswith("--E0s ")


def test_E0s_dictionary_with_one_element_twice():
    """Two spellings of one element are not merged silently."""
    with pytest.raises(ValueError, match="atomic number 1 twice"):
        parse_E0s_literal("{1: -13.6, '1': -13.7}")


@pytest.mark.parametrize(
    ("text", "value"),
    [("average", "average"), ("Average", "average"), ("Estimated", "estimated"), ("e0.json", "e0.json")],
)
def test_E0s_words(text, value):
    """Anything else stays as it is for whoever reads it."""
    assert parse(f"--E0s={text}").E0s == value


def test_settings_are_frozen_and_closed():
    """Nobody assigns to settings, and nobody adds any."""
    settings = parse()
    with pytest.raises(ValidationError, match="frozen"):
        settings.lr = 1.0
    with pytest.raises(ValidationError, match="extra"):
        TrainingSettings(name="run", train_file="train.xyz", lerning_rate=1.0)


def test_defaults_are_not_shared():
    """Lists and dictionaries of two runs are different objects."""
    parse().radial_MLP.append(1)
    assert parse().radial_MLP == [64, 64, 64]


def test_unsupported_values_are_refused_in_python_too():
    """Whoever builds settings without a command line gets the same answer."""
    with pytest.raises(ValidationError, match="reflection|mirror"):
        TrainingSettings(name="run", train_file="train.xyz", use_so3=True)


ODD_VALUES = [
    *("", " ", "[", "{", "[]", "{}", "nan", "1e999", "-1e999", "1j", "b'x'", "(1,2)", "{1,2}", "...", "1+2", "@", "\n"),
    *("9" * 5000, "[" * 5000, "{1:" * 3000, "[[1]]", "[None]", "{[1]: 2}", "{(1,): 2}", "{None: 1}", "{'D': 1}"),
    *("{1: [2]}", "{'a': {'a': {}}}", "{'x': 1e999}", "{'file': {}}", "{'file': [['a']]}", "\udc80", "\N{INFINITY}"),
    "{'q': {'type': 'categorical', 'per': [1], 'emb_dim': 3, 'num_classes': 1}}",
    "{'q': {'type': [1], 'per': 'graph', 'emb_dim': 3}}",
]


@pytest.mark.parametrize("name", sorted(set(TrainingSettings.model_fields) - {"config"}))
def test_odd_values_are_obeyed_or_refused_in_short_sentences(name):
    """No error of Python or of a library comes through."""
    required = {"name": Given("run", "--name"), "train_file": Given("train.xyz", "--train_file")}
    for text in ODD_VALUES:
        try:
            build_settings(TrainingSettings, required | {name: Given(text, f"--{name}")})
        except UserError as error:
            assert len(str(error)) < 800 and str(error).startswith("--") and str(error).endswith((".", "?")), str(error)
