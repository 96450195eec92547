"""Do the commands keep, pick and describe the heads of a model that has several?"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import original_files as files
import pytest

from mace.cli import export, import_model, info
from mace.model.model_file import load_model, save_model

NAMES = ("low", "high")
MODEL = files.model(files.with_heads(*NAMES))


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A file of mace-torch."""
    tree = files.tree_of(MODEL, files.state_of(MODEL), heads=list(NAMES))
    return files.write_original(tmp_path / "old.model", tree)


def test_importing_keeps_all_heads_or_takes_one(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = old.with_name("new.model")
    import_model.run([str(old), str(new)])
    assert ", heads low, high)" in capsys.readouterr().out
    assert load_model(new).model.plan == MODEL.plan
    import_model.run([str(old), str(new), "--head=high", "--overwrite"])
    assert ", head high of low, high)" in capsys.readouterr().out
    loaded = load_model(new)
    assert loaded.model.plan == MODEL.plan.of_head(1) and "head high of low, high" in str(loaded.metadata.comment)


def test_description(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert info.run([str(old)]) == 0
    table = capsys.readouterr().out
    assert "low, high" in table and "head high" in table and "NO" not in table
    assert f"{MODEL.plan.heads[1].reference_energies[0]:.6f}" in table and f"{MODEL.plan.heads[1].scale:.6g}" in table
    assert info.run([str(old), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {name: head["scale"] for name, head in told["heads"].items()} == {
        "low": 0.8,
        "high": MODEL.plan.heads[1].scale,
    }
    assert told["reference_energies"] == {} and all(told["checks"].values())
    assert info.run([str(old), "--json", "--head=low"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["heads"] == {} and told["plan"]["scale"] == 0.8


def test_export_hands_over_all_heads(tmp_path: Path) -> None:
    """Arguments and weights of all heads, and the numbers that each has to give."""
    own = save_model(tmp_path / "own.model", MODEL)
    script = tmp_path / "python"
    answer = json.dumps({"version": "0.3.16", "deviations": {"energy": 1e-12}})
    script.write_text(
        f"#!/bin/sh\ncat > /dev/null\ncp $2/plan.json $2/arrays.npz {tmp_path}\necho x > $3\necho '{answer}'\n"
    )
    script.chmod(0o755)
    export.run([str(own), str(tmp_path / "out.model"), "--format=mace-torch", f"--python={script}"])
    plan, arrays = json.loads((tmp_path / "plan.json").read_text()), np.load(tmp_path / "arrays.npz")
    assert plan["options"]["heads"] == [list(NAMES), None] and plan["head_names"] == list(NAMES)
    assert plan["scale"] == [head.scale for head in MODEL.plan.heads] and len(plan["shift"]) == 2
    assert plan["reference_energies"] == [list(head.reference_energies) for head in MODEL.plan.heads]
    assert plan["n_structures"] == 4
    assert [str(arrays[f"structure/{i}/head"]) for i in range(4)] == ["low", "low", "high", "high"]
    assert arrays["structure/0/energy"] != arrays["structure/2/energy"]
    n, width = MODEL.plan.n_channels, MODEL.plan.readout_channels
    assert arrays["weight/readouts.0.linear.weight"].shape == (2 * n,)
    last = arrays["weight/readouts.1.linear_2.weight"].reshape(2 * width, 2)
    assert not last[:width, 1].any() and not last[width:, 0].any() and last[:width, 0].all()
    export.run([str(own), str(tmp_path / "one.model"), "--format=mace-torch", f"--python={script}", "--head=low"])
    assert json.loads((tmp_path / "plan.json").read_text())["options"]["heads"] == [None, None]
