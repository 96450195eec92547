"""Are the pictures drawn, of the size asked for, from the records that count?"""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from mace.errors import UserError
from mace.pages import plots
from mace.reporting.records import RecordWriter

METRICS = {"rmse_e_per_atom": 0.01, "rmse_f": 0.05}


def _write_run(path, n_epochs, heads=("Default",), metrics=METRICS, learning_rate=None, first_epoch=0, loss=1.0):
    with RecordWriter(path) as writer:
        writer.evaluation(loss=100.0, metrics=metrics, seconds=0.1, epoch=None, head=heads[0])
        for epoch in range(first_epoch, first_epoch + n_epochs):
            for factor in (1.0, 3.0):
                writer.step(loss=factor * loss / (epoch + 1), seconds=0.1, epoch=epoch, learning_rate=learning_rate)
            for head in heads:
                errors = {name: value / (epoch + 1) for name, value in metrics.items()}
                writer.evaluation(loss=loss / (epoch + 1), metrics=errors, seconds=0.1, epoch=epoch, head=head)


def _pixels(path):
    """Height and width of a PNG that is not blank."""
    picture = imread(path)
    assert picture.std() > 0.01
    return picture.shape[:2]


@pytest.mark.parametrize(
    ("metrics", "learning_rate", "size"),
    [
        (METRICS, None, (495, 2070)),
        (METRICS, 0.01, (990, 1380)),
        ({**METRICS, "rmse_stress": 0.001}, 0.01, (990, 2070)),
        ({}, None, (495, 690)),
    ],
)
def test_learning_curves_have_a_panel_per_error(tmp_path, metrics, learning_rate, size):
    _write_run(tmp_path / "run.txt", 5, ("dft", "pt_head"), metrics, learning_rate)
    plots.plot_learning_curves(tmp_path / "run.txt", tmp_path / "plots" / "run.png", stage_two_epoch=3)
    assert _pixels(tmp_path / "plots" / "run.png") == size


def test_stage_two_changes_the_picture(tmp_path):
    _write_run(tmp_path / "run.txt", 5)
    pictures = []
    for stage_two_epoch in (None, 3, 400):
        plots.plot_learning_curves(tmp_path / "run.txt", tmp_path / "run.png", stage_two_epoch)
        pictures.append((tmp_path / "run.png").read_bytes())
    assert pictures[0] != pictures[1]
    assert pictures[0] == pictures[2]


def test_losses_that_were_not_finite_do_not_stop_the_plot(tmp_path):
    with RecordWriter(tmp_path / "run.txt") as writer:
        for epoch in range(3):
            writer.step(loss=float("nan"), seconds=0.1, epoch=epoch)
            writer.evaluation(
                loss=float("nan"), metrics={"rmse_f": float("nan")}, seconds=0.1, epoch=epoch, head="Default"
            )
    plots.plot_learning_curves(tmp_path / "run.txt", tmp_path / "run.png")
    assert _pixels(tmp_path / "run.png") == (495, 690)


def test_a_run_without_epochs_is_refused(tmp_path):
    _write_run(tmp_path / "run.txt", 0)
    with pytest.raises(UserError, match=r"run\.txt has no record of an epoch"):
        plots.plot_learning_curves(tmp_path / "run.txt", tmp_path / "run.png")
    assert not (tmp_path / "run.png").exists()


def _pairs(size, columns=1, seed=0):
    rng = np.random.default_rng(seed)
    reference = rng.normal(size=(size, columns))
    return reference, reference + 0.01 * rng.normal(size=reference.shape)


def test_parity_has_a_column_per_property(tmp_path):
    data = {
        "train": {"interaction_energy": _pairs(20), "forces": _pairs(100, 3)},
        "valid": {"interaction_energy": _pairs(5), "forces": _pairs(30, 3), "stress": _pairs(5, 9)},
        "test_300K": {"interaction_energy": _pairs(1), "forces": _pairs(0, 3)},
    }
    plots.plot_parity(data, tmp_path / "parity.png", "stage one")
    assert _pixels(tmp_path / "parity.png") == (990, 2010)
    plots.plot_parity({"train": {"energy": _pairs(8)}}, tmp_path / "one.png", "one")
    assert _pixels(tmp_path / "one.png") == (990, 690)


def test_of_many_points_the_worst_are_kept():
    errors = np.arange(100_000.0)
    chosen = plots._points_to_draw(errors)
    assert len(chosen) == len(set(chosen)) == 20_000
    assert set(range(99_000, 100_000)) <= set(chosen)
    assert len(plots._points_to_draw(errors[:500])) == 500


def test_legend_says_the_error_over_all_values(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: figures.append(figure))
    reference = np.zeros((30_000, 1))
    plots.plot_parity({"test": {"forces": (reference, reference + 0.02)}}, tmp_path / "x.png", "x")
    labels = [text.get_text() for text in figures[0].axes[0].get_legend().get_texts()]
    assert labels == ["test: RMSE 20 meV / Å (20000 of 30000 drawn)"]


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ({"train": {"charge": _pairs(3)}}, "no parity plot of 'charge'"),
        ({"train": {"forces": (np.zeros((3, 3)), np.zeros((4, 3)))}}, "train: labels and predictions of forces"),
        ({"train": {}}, "no labels and predictions"),
    ],
)
def test_what_cannot_be_drawn_is_refused(tmp_path, data, complaint):
    with pytest.raises(ValueError, match=complaint):
        plots.plot_parity(data, tmp_path / "x.png", "x")


def test_plotting_touches_no_global_state_of_matplotlib(tmp_path):
    code = (
        "import sys\n"
        "from mace.pages import plots\n"
        "assert 'matplotlib' not in sys.modules\n"
        "import numpy as np\n"
        "plots.plot_parity({'train': {'energy': (np.arange(3.0), np.arange(3.0))}}, sys.argv[1], 'title')\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "x.png")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


LARGE = -13652.334


def ticks_and_labels(monkeypatch: pytest.MonkeyPatch, data: object) -> list[Any]:
    """Draw and return the figure instead of its file."""
    kept: list[Any] = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: kept.append(figure))
    plots.plot_parity(data, "unused.png", "title")
    kept[0].canvas.draw()
    return list(kept[0].axes)


@pytest.mark.parametrize(
    "energies",
    [np.linspace(LARGE, LARGE + 0.2, 30), np.array([LARGE]), np.linspace(-3.0, 4.0, 9), np.array([-1.0e5, 2.0e5])],
    ids=["large", "one structure", "small", "wide"],
)
def test_tick_labels_of_energies_do_not_overlap(energies, monkeypatch):
    axes = ticks_and_labels(monkeypatch, {"train": {"energy": (energies, energies + 1e-3)}})
    for axis in (axes[0], axes[1]):
        assert axis.xaxis.get_offset_text().get_text() == axis.yaxis.get_offset_text().get_text() == ""
    shown = [label for label in axes[1].get_xticklabels() if label.get_text()]
    low, high = axes[1].get_xlim()
    boxes = sorted((l.get_window_extent() for l in shown if low <= l.get_position()[0] <= high), key=lambda b: b.x0)
    assert all(left.x1 < right.x0 for left, right in zip(boxes, boxes[1:], strict=False))
    if len(energies) != 9 and abs(energies[0]) < 2.0e4:
        assert "+ 1365" in axes[1].get_xlabel()


def test_many_sets_with_long_names_leave_room_for_the_points(monkeypatch):
    values = np.arange(3.0)
    data = {f"a_very_long_name_of_a_type_{number}": {"energy": (values, values)} for number in range(15)}
    texts = [text.get_text() for text in ticks_and_labels(monkeypatch, data)[0].get_legend().get_texts()]
    assert len(texts) == 7 and texts[-1] == "and 9 more" and max(map(len, texts)) < 60
