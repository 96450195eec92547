"""Do defaults, the YAML file and the command line give way to each other, under every spelling?"""

import pytest

from mace.errors import UserError
from mace.settings import TrainingSettings, parse_training_settings, provided

BASE = ["--name=run", "--train_file=train.xyz"]


@pytest.fixture
def write(tmp_path):
    """Write a YAML file and return the argument that names it."""

    def write_yaml(text: str) -> str:
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return f"--config={path}"

    return write_yaml


def test_command_line_over_yaml_over_default(write):
    """The later layer wins, setting by setting."""
    config = write("lr: 0.5\nbatch_size: 3\n")
    settings = parse_training_settings([*BASE, config, "--lr=0.25"])
    assert (settings.lr, settings.batch_size, settings.valid_batch_size) == (0.25, 3, 10)
    assert provided(settings) == {"name", "train_file", "config", "lr", "batch_size"}


def test_order_of_flags_does_not_matter(write):
    """A file named last does not win over the flags before it."""
    assert parse_training_settings([*BASE, "--lr=0.25", write("lr: 0.5")]).lr == 0.25


@pytest.mark.parametrize("key", ["swa_lr", "swa-lr", "stage_two_lr", "stage-two-lr", "--swa_lr"])
def test_yaml_keys_take_every_spelling(write, key):
    """Dashes, underscores and aliases are the same key."""
    assert parse_training_settings([*BASE, write(f"{key}: 0.125")]).swa_lr == 0.125


@pytest.mark.parametrize(
    ("flag", "name", "value"),
    [
        ("--l_max=2", "max_ell", 2),
        ("--stage_two", "swa", True),
        ("--stage-two", "swa", True),
        ("--no_stage_two", "swa", False),
        ("--start_stage_two=7", "start_swa", 7),
        ("--stage_two_energy_weight=7", "swa_energy_weight", 7.0),
        ("--batch-size=7", "batch_size", 7),
    ],
)
def test_command_line_takes_every_spelling(flag, name, value):
    """So does the command line."""
    assert getattr(parse_training_settings([*BASE, flag]), name) == value


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("E0s: {1: -13.6, 8: -2.0e3}", "E0s", {1: -13.6, 8: -2000.0}),
        ("E0s: average", "E0s", "average"),
        ("config_type_weights: {Default: 1, bulk: 1e-1}", "config_type_weights", {"Default": 1.0, "bulk": 0.1}),
        ("radial_MLP: [16, 8]", "radial_MLP", [16, 8]),
        ("radial_MLP: '[16, 8]'", "radial_MLP", [16, 8]),
        ("atomic_numbers:\n  - 1\n  - 8", "atomic_numbers", [1, 8]),
        ("correlation: [3, 2]", "correlation", [3, 2]),
        ("train_file: [a.xyz, b.xyz]", "train_file", ["a.xyz", "b.xyz"]),
        ("lr: 1e-3", "lr", 0.001),
        ("clip_grad: null", "clip_grad", None),
        ("clip_grad: None", "clip_grad", None),
        ("gate: null", "gate", "None"),
        ("distance_transform: None", "distance_transform", "None"),
        ("name: 010", "name", "010"),
        ("valid_file:", "valid_file", None),
        ("stress_key:", "stress_key", ""),
        ("stress_key: null", "stress_key", ""),
        ("stress_key: None", "stress_key", ""),
        ("swa: true", "swa", True),
        ("swa: 'False'", "swa", False),
        ("plot: no", "plot", False),
        ("amsgrad: off", "amsgrad", False),
        ("no-amsgrad: true", "amsgrad", False),
        ("no_amsgrad: false", "amsgrad", True),
        ("lr_params_factors: {readouts_lr_factor: 2}", "lr_params_factors", None),
    ],
)
def test_yaml_values(write, text, name, value):
    """Values in YAML are native, and mean what they mean on the command line."""
    required = [flag for flag in BASE if not flag.startswith(f"--{name}=")]
    found = getattr(parse_training_settings([*required, write(text)]), name)
    if name == "lr_params_factors":
        assert found == {
            "embedding_lr_factor": 1,
            "interactions_lr_factor": 1,
            "products_lr_factor": 1,
            "readouts_lr_factor": 2,
        }
    else:
        assert found == value
        assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("batchsize: 3", ["run.yaml", "'batchsize' is not a setting", "did you mean batch_size?"]),
        ("lr: fast", ["run.yaml: lr must be a number above 0, not 'fast'."]),
        ("swa: maybe", ["run.yaml: swa must be True or False"]),
        ("no_amsgrad: maybe", ["run.yaml: no_amsgrad must be True or False"]),
        ("freeze: -1", ["run.yaml: freeze cannot be -1", "freezes nothing"]),
        ("heads: {a: {trainfile: a.xyz}}", ["run.yaml: heads has the unknown key", "did you mean train_file?"]),
        ("loss: dipole_polar", ["run.yaml: loss dipole_polar: "]),
        ("swa_lr: 1\nstage_two_lr: 2", ["swa_lr is given twice", "'stage_two_lr'"]),
        ("lr: 1\nlr: 2", ["run.yaml", "'lr' comes twice"]),
        ("E0s: {1: -13.6, 8: -2.0, 1: -13.5}", ["run.yaml", "'1' comes twice"]),
        ("[1, 2]: 3", ["run.yaml", "a list or a table cannot be a key"]),
        ("config: other.yaml", ["'config' cannot be given inside"]),
        ("- lr\n- 1", ["a table of 'setting: value' lines, not a list"]),
        ("just words", ["not a single text"]),
        ("lr: [1", ["run.yaml: this is not valid YAML"]),
        ("lr:", ["run.yaml: lr must be a number above 0, not None."]),
    ],
)
def test_mistakes_in_yaml_are_named(write, text, words):
    """An error says which file and key, and the way out."""
    with pytest.raises(UserError) as caught:
        parse_training_settings([*BASE, write(text)])
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("text", "name", "value", "words"),
    [
        ("lr: 0.5\nlr: 0.5", "lr", 0.5, "the key 'lr' comes twice, with the same value"),
        ("swa_lr: 0.5\nstage_two_lr: 0.5", "swa_lr", 0.5, "swa_lr is given twice, with the same value"),
        ("r_max: 4\nlr: 0.5\nr_max: 4", "r_max", 4.0, "the key 'r_max' comes twice"),
        ("radial_MLP: [8, 8]\nradial_MLP: [8, 8]", "radial_MLP", [8, 8], "the key 'radial_MLP' comes twice"),
        ("E0s: {1: -3.5, 8: -2.5, 1: -3.5}", "E0s", {1: -3.5, 8: -2.5}, "the key '1' comes twice"),
    ],
)
def test_the_same_twice_in_yaml_is_a_warning(write, caplog, text, name, value, words):
    """Nothing is lost by it."""
    assert getattr(parse_training_settings([*BASE, write(text)]), name) == value
    assert [record.levelname for record in caplog.records] == ["WARNING"] and words in caplog.text


def test_empty_yaml_gives_nothing(write):
    """An empty file is a table without lines."""
    assert provided(parse_training_settings([*BASE, write("# nothing\n")])) == {"name", "train_file", "config"}


def test_missing_yaml_is_named(tmp_path):
    """A file that does not exist is an error that names it."""
    with pytest.raises(UserError, match=r"--config .*absent\.yaml: the file cannot be read"):
        parse_training_settings([*BASE, f"--config={tmp_path / 'absent.yaml'}"])


def test_settings_survive_a_round_trip():
    """What is written into a checkpoint gives the same settings back."""
    settings = parse_training_settings([*BASE, "--E0s={1:-13.6}", "--correlation=[3,2]", "--valid_file", "a", "b"])
    assert TrainingSettings(**settings.model_dump()) == settings
    assert TrainingSettings.model_validate_json(settings.model_dump_json()) == settings


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("test_dir: ~/tests", "test_dir", "HOME/tests"),
        ("work_dir: ~/runs/a", "work_dir", "HOME/runs/a"),
        ("E0s: ~/E0s.json", "E0s", "HOME/E0s.json"),
        ("foundation_model: ~/old.model", "foundation_model", "HOME/old.model"),
        ("valid_file: [~/a.xyz, b~.xyz]", "valid_file", ["HOME/a.xyz", "b~.xyz"]),
        ("test_file: ~/*.xyz", "test_file", "HOME/*.xyz"),
        ("log_dir: ~nobody-of-this-name/logs", "log_dir", "~nobody-of-this-name/logs"),
        ("log_dir: ~", "log_dir", None),
        ("energy_key: ~/E", "energy_key", "~/E"),
    ],
)
def test_the_home_folder_in_paths(write, monkeypatch, tmp_path, text, name, value):
    """A shell writes it out, a YAML file does not."""
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = [item.replace("HOME", str(tmp_path)) for item in value] if isinstance(value, list) else value
    expected = expected.replace("HOME", str(tmp_path)) if isinstance(expected, str) else expected
    assert getattr(parse_training_settings([*BASE, write(text)]), name) == expected


def test_the_home_folder_in_tables_and_on_the_command_line(write, monkeypatch, tmp_path):
    """Shells leave --config=~/run.yaml and what stands in quotes alone."""
    monkeypatch.setenv("HOME", str(tmp_path))
    write("valid_file:\n  - file: ~/a.xyz\n    energy_key: E\n  - file: [~/b.xyz]\n")
    settings = parse_training_settings(["--name=run", "--config=~/run.yaml", "--train_file", "{'file': '~/c.xyz'}"])
    assert [table.file for table in settings.valid_file] == [f"{tmp_path}/a.xyz", [f"{tmp_path}/b.xyz"]]
    assert settings.train_file.file == f"{tmp_path}/c.xyz"
