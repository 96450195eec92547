"""Does ``mace_plot_train`` draw what records hold, of any program, and say in a sentence what it cannot?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mace.cli.plot_train import run
from mace.errors import UserError


def write_records(path: Path, epochs: int, own: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [{"loss": 9.0, "mode": "eval", "epoch": None, "head": "Default", "rmse_f": 2.0, "time": 0.1}]
    for epoch in range(epochs):
        more = {"lr": 0.01, "grad_norm": 1.0, "atoms": 9, "time_data": 0.1} if own else {}
        stage = {"stage": "two"} if own and epoch > 2 else {}
        lines.append({"loss": 1.0 / (epoch + 1), "mode": "opt", "epoch": epoch, "time": 0.2, **more, **stage})
        errors = {"rmse_f": 0.1 / (epoch + 1), "mae_f": 0.05, "rmse_e_per_atom": 0.01}
        lines.append(
            {"loss": 1.5 / (epoch + 1), "mode": "eval", "epoch": epoch, "head": "Default", "time": 0.1, **errors}
        )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def panels(page: Path) -> list[dict]:
    text = page.read_text(encoding="utf-8").split('id="curves-data">')[1].split("</script>")[0]
    return json.loads(text)["panels"]


def test_a_run_gets_a_page_and_a_picture_beside_its_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = write_records(tmp_path / "results" / "a_run-1_train.txt", 5)
    run([str(records)])
    page = records.with_suffix(".html")
    assert records.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.splitlines() == [f"Wrote {page}", f"Wrote {records.with_suffix('.png')}"]
    forces = next(panel for panel in panels(page) if panel["title"].startswith("RMSE of forces"))
    assert forces["series"][0]["y"] == [2000.0, 100.0, 50.0, 33.333, 25.0, 20.0]
    assert [3.0, "stage two"] in forces["marks"]


def test_runs_of_a_folder_lie_over_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_records(tmp_path / "results" / "a_run-1_train.txt", 5)
    write_records(tmp_path / "results" / "b_run-1_train.txt", 3, own=False)
    run([".", "--output=both.html", "--output_format=svg", "--keys=loss,rmse_f", "--linear"])
    labels = [series["label"] for series in panels(tmp_path / "both.html")[0]["series"]]
    assert labels == [f"{n}_run-1: {w}" for n in "ab" for w in ("training, as it went", "validation")]
    assert "<svg" in (tmp_path / "both.svg").read_text(encoding="utf-8")


def test_the_beginning_can_be_left_out(tmp_path: Path) -> None:
    records = write_records(tmp_path / "a_train.txt", 5)
    run(["--path", str(records), "--min_epoch=2", "--output_format=none", "--start_swa=4"])
    assert panels(tmp_path / "a_train.html")[1]["series"][0]["x"] == [3.0, 4.0, 5.0]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "Name the records"),
        (["nowhere.txt"], "nowhere.txt: there is no such file or folder"),
        (["."], "there is no file of records"),
        (["empty.txt"], "no record of an epoch"),
        (["binary.txt"], "binary.txt: "),
        (["a_train.txt", "--keys=speed"], "no panel 'speed'"),
        (["a_train.txt", "--min_epoch=9"], "from epoch 9 on"),
        (["a_train.txt", "--heads=other"], "a_train.txt has no evaluation of a head 'other'; it has Default."),
        (["a_train.txt", "--keys=rmse_stress"], "the records have none of rmse_stress"),
        (["a_train.txt", "--error_bars"], "--error_bars"),
        (["a_train.txt", "--output=/proc/no/page"], "cannot be written"),
        (["a_train.txt", "--nope"], "--nope is not a setting"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_records(tmp_path / "a_train.txt", 2)
    (tmp_path / "empty.txt").touch()
    (tmp_path / "sub").mkdir()
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00{}\n" * 3)
    with pytest.raises(UserError, match=sentence):
        run([*(word.replace(".", "sub") if word == "." else word for word in arguments)])


@pytest.mark.parametrize("epochs", [5, 40])
def test_runs_keep_their_colors_in_every_panel(tmp_path: Path, epochs: int) -> None:
    """Also where the gradient is drawn by epochs, because there are many."""
    files = [str(write_records(tmp_path / f"{name}_train.txt", epochs)) for name in "abc"]
    run([*files, f"--output={tmp_path / 'all'}", "--output_format=none"])
    for panel in panels(tmp_path / "all.html"):
        if panel["title"] != "Loss":
            assert [series["color"] for series in panel["series"]] == [0, 1, 2], panel["title"]


def test_heads_of_several_runs_have_patterns_and_those_of_one_have_colors(tmp_path: Path) -> None:
    heads = [f"h{number}" for number in range(5)]
    for name in "ab":
        lines = [{"loss": 1.0, "mode": "opt", "epoch": 0, "time": 0.2}]
        lines += [{"loss": 1.0, "rmse_f": 0.1, "mode": "eval", "epoch": 0, "head": head} for head in heads]
        (tmp_path / f"{name}_train.txt").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run([str(tmp_path), f"--output={tmp_path / 'both'}"])
    both, training = (panels(tmp_path / "both.html")[k]["series"] for k in (1, 0))
    assert [(series["color"], series["pattern"]) for series in both] == [
        (r, p) for r in (0, 1) for p in (0, 1, 2, 3, 0)
    ]
    assert [series["head"] for series in both] == 2 * heads
    assert [series["label"] for series in training if not series["head"]] == [
        f"{n}: training, as it went" for n in "ab"
    ]
    run([str(tmp_path / "a_train.txt"), "--output_format=none"])
    alone = panels(tmp_path / "a_train.html")[0]["series"]
    assert len({series["color"] for series in alone}) == 6 and not any(series["pattern"] for series in alone)
