"""Are models of mace-torch recovered completely, and is what cannot be converted named?"""

from __future__ import annotations

import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import original_files as files
import pytest
import torch

from mace.compat.couplings import CouplingError, map_to_ours
from mace.compat.importing import import_original, known_from, open_model
from mace.compat.interaction_weights import interaction_from_original, interaction_to_original
from mace.compat.reader import Known
from mace.compat.weights import weights_from_original, weights_to_original
from mace.errors import UserError
from mace.files.archives import is_torch_file
from mace.model.heads import with_one_head
from mace.model.mace import MACE
from mace.model.model_file import save_model
from mace.model.plan import InteractionPlan, ModelPlan
from mace.units import DEBYE_OF_MACE_TORCH

PLAIN, RESIDUAL = InteractionPlan(residual=False), InteractionPlan(residual=True)
ATTENTION = InteractionPlan(residual=True, messages="attention")
NONLINEAR = InteractionPlan(residual=True, normalization="density", messages="nonlinear")
DENSITY, DENSITY_RESIDUAL = (InteractionPlan(residual=r, normalization="density") for r in (False, True))
ENERGY = {
    "model": "EnergyDipolesMACE",
    "readout_vectors": 2,
    "scale": 1.0,
    "shift": 0.0,
    "dipole_scale": DEBYE_OF_MACE_TORCH,
}
ATOMIC = ENERGY | {"model": "AtomicDipolesMACE", "readout_channels": 0, "reference_energies": ()}
PLANS: dict[str, dict[str, Any]] = {
    "residual": {},
    "plain_first": {"model": "MACE", "interactions": (PLAIN, RESIDUAL), "shift": 0.0},
    "plain": {"interactions": (PLAIN, PLAIN)},
    "density": {"interactions": (DENSITY, DENSITY_RESIDUAL)},
    "scalars": {"hidden_l": (0,)},
    "tensors": {"hidden_l": (0, 1, 2), "l_max": 2},
    "three_layers": {"interactions": (RESIDUAL,) * 3, "correlation": (1, 2, 3)},
    "one_layer": {"interactions": (RESIDUAL,), "correlation": (2,), "hidden_l": (0,), "readout_channels": 16},
    "deep_radial": {"radial_mlp": (5, 6, 7)},
    "attention": {"interactions": (RESIDUAL, ATTENTION), "cutoff_after_network": True},
    "nonlinear": {"interactions": (NONLINEAR, NONLINEAR), "cutoff_after_network": True},
    "nonlinear_early": {"interactions": (PLAIN, NONLINEAR)},
    "narrow": {"interactions": (NONLINEAR, NONLINEAR), "message_channels": (1, 1)},
    "narrow_later": {"message_channels": (2, 1), "message_l": (0,)},
    "late_cutoff": {"cutoff_after_network": True},
    "product_of_all": {"product_of_all_elements": True},
    "last_readout": {"last_readout_only": True},
    "biases": {"readout_biases": True},
    "biases_of_last_readout": {"readout_biases": True, "last_readout_only": True},
    "conditions": {"conditions": (files.CHARGE, files.SPIN), "condition_readout": True},
    "conditions_of_atoms": {"conditions": (files.TEMPERATURE, files.SITE, files.MOMENTS)},
    "dipoles_nonlinear": ATOMIC | {"interactions": (PLAIN, NONLINEAR)},
    "dipoles": ATOMIC,
    "dipoles_plain": ATOMIC | {"interactions": (PLAIN, PLAIN), "hidden_l": (0, 1, 2), "l_max": 2},
    "dipoles_three_layers": ATOMIC | {"interactions": (PLAIN, RESIDUAL, RESIDUAL), "correlation": (2,) * 3},
    "dipoles_one_layer": ATOMIC | {"interactions": (PLAIN,), "correlation": (2,), "readout_vectors": 0},
    "energy_dipoles": ENERGY,
    "energy_dipoles_tensors": ENERGY | {"hidden_l": (0, 1, 2), "l_max": 2},
    "energy_dipoles_scalars": ENERGY | {"readout_vectors": 0},
    "energy_dipoles_one_layer": ENERGY
    | {"interactions": (PLAIN,), "correlation": (2,), "readout_channels": 16, "readout_vectors": 0},
}
"""Changes to the plan of the small model."""


def model_of(name: str) -> MACE:
    """Return a model; what the last layer does with scalars, which the original's dipoles do not have, is nothing."""
    model = files.model(plan_of(name))
    if "dipole" in model.plan.outputs and "energy" not in model.plan.outputs and model.plan.n_layers > 1:
        last = model.plan.n_layers - 1
        with torch.no_grad():
            model.dipole_readouts[last].gates.zero_()
            model.products[last].linear[0] = 0.0
            for key, value in model.products[last].named_parameters():
                if key.startswith("weights.l0"):
                    value.zero_()
            if model.plan.interactions[last].residual:
                interaction = model.interactions[last]
                skip = interaction.mixing.residual if hasattr(interaction, "mixing") else interaction.skip
                skip[0] = 0.0
    return model


def plan_of(name: str) -> ModelPlan:
    return ModelPlan.model_validate(files.PLAN.model_dump() | PLANS[name])


def assert_equal(found: MACE, expected: MACE) -> None:
    assert found.plan.model_dump() == expected.plan.model_dump()
    ours = dict(found.named_parameters())
    for name, value in expected.named_parameters():
        assert torch.equal(ours[name], value), name


@pytest.mark.parametrize("name", PLANS)
def test_plan_and_weights_are_recovered(name: str, tmp_path: Path) -> None:
    expected = model_of(name)
    imported = import_original(files.write_original(tmp_path / "old.model", files.tree_of(expected)))
    assert_equal(imported.model, expected)
    assert imported.n_checks >= 3
    assert imported.kind == (expected.plan.model if "dipole" in expected.plan.outputs else "ScaleShiftMACE")
    assert imported.head == "Default"
    assert "SHA-256" in (imported.metadata.comment or "")


@pytest.mark.parametrize("name", PLANS)
def test_weights_go_there_and_back(name: str) -> None:
    expected = model_of(name)
    arrays = {key: value.detach().numpy() for key, value in expected.named_parameters()}
    back = weights_from_original(weights_to_original(arrays, expected.plan), expected.plan)
    assert back.keys() == arrays.keys()
    assert all(np.array_equal(back[key], arrays[key]) for key in arrays)


def test_single_precision_stays(tmp_path: Path) -> None:
    expected = files.model(dtype=torch.float32)
    path = files.write_original(tmp_path / "old.model", files.tree_of(expected))
    assert open_model(path).stored_dtype == torch.float32
    assert open_model(path, dtype=torch.float64).model.dtype == torch.float64


def test_a_checkpoint_needs_what_it_does_not_tell(tmp_path: Path) -> None:
    plan = ModelPlan.model_validate(files.PLAN.model_dump() | {"l_max": 2})
    expected = files.model(plan)
    state = {name: value.detach() for name, value in files.state_of(expected).items()}
    path = files.write_original(tmp_path / "old.pt", {"model": state, "optimizer": {}, "lr_scheduler": {}})
    with pytest.raises(UserError, match="checkpoint does not tell .* --like"):
        import_original(path)
    told = import_original(path, known=Known(avg_num_neighbors=7.5, gate="silu"))
    assert_equal(told.model, expected)
    ours = save_model(tmp_path / "new.model", expected)
    theirs = files.write_original(tmp_path / "old.model", files.tree_of(expected))
    for like in (ours, theirs):
        assert_equal(import_original(path, known=known_from(like)).model, expected)


@pytest.mark.parametrize("kind", [RESIDUAL, NONLINEAR])
def test_degrees_that_nobody_has_are_left_out(kind: InteractionPlan) -> None:
    """A file may have room for vectors that scalars never fill; what they would be mixed with is rescaled."""
    changes = {"interactions": (kind, kind), "l_max": 1, "hidden_l": (0,), "correlation": (1, 1)}
    plan = ModelPlan.model_validate(files.PLAN.model_dump() | changes)
    expected = files.model(plan)
    arrays = {name: value.detach().numpy() for name, value in expected.named_parameters()}
    narrow = interaction_to_original(arrays, plan, 1, (0,))
    # paths 0-0-0 and 1-1-0 lead to scalars, 0-1-1 and 1-0-1 to vectors; n channels for each
    n, wide, rng = plan.n_channels, dict(narrow), np.random.default_rng(6)
    nonlinear = kind.messages == "nonlinear"
    last, mixing = ("conv_tp_weights.net.3", "linear_1") if nonlinear else ("conv_tp_weights.layer1", "linear")
    name = f"interactions.1.{last}.weight"
    columns = (narrow[name].T if nonlinear else narrow[name]).reshape(-1, 2, n)
    columns = np.concatenate([columns[:, :1], rng.normal(size=(len(columns), 2, n)), columns[:, 1:]], axis=1)
    # the degree of the sender rises first within a resulting degree
    columns = columns[:, [0, 1, 3, 2]].reshape(len(columns), -1)
    wide[name] = columns.T if nonlinear else columns
    if nonlinear:
        bias = narrow[f"interactions.1.{last}.bias"].reshape(2, n)
        wide[f"interactions.1.{last}.bias"] = np.stack([bias[0], bias[0], bias[1], bias[1]]).reshape(-1)
        wide["interactions.1.linear_res.weight"] = np.append(
            narrow["interactions.1.linear_res.weight"], rng.normal(size=n * n)
        )
    flat, widths = narrow[f"interactions.1.{mixing}.weight"], (2 * n if nonlinear else n, n)
    scalars, vectors = np.split(flat * 2**0.5, [n * widths[0]])
    dead = [rng.normal(size=n * width) for width in widths]
    wide[f"interactions.1.{mixing}.weight"] = np.concatenate([scalars, dead[0], vectors, dead[1]])
    for name, value in interaction_from_original(wide, plan, 1, (0, 1), True).items():
        assert np.allclose(value, arrays[name], atol=1e-14), name


def test_the_kind_of_ambiguous_layers_is_asked_for(tmp_path: Path) -> None:
    state = {name: value.detach() for name, value in files.state_of(files.model()).items()}
    path = files.write_original(tmp_path / "old.pt", {"model": {f"module.{n}": v for n, v in state.items()}})
    three = ModelPlan.model_validate(files.PLAN.model_dump() | PLANS["three_layers"])
    ambiguous = {name: value.detach() for name, value in files.state_of(files.model(three)).items()}
    known = Known(avg_num_neighbors=7.5, gate="silu")
    assert_equal(import_original(path, known=known).model, files.model())
    with pytest.raises(UserError, match="does not tell the kind of its layer 1"):
        import_original(files.write_original(tmp_path / "three.pt", {"model": ambiguous}), known=known)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("nonlinear", "does not tell apply_cutoff"), ("narrow_later", "does not tell what neighbors send in its layer 1")],
)
def test_a_checkpoint_of_newer_kinds_needs_its_model(name: str, reason: str, tmp_path: Path) -> None:
    expected = model_of(name)
    state = {key: value.detach() for key, value in files.state_of(expected).items()}
    path = files.write_original(tmp_path / "old.pt", {"model": state, "optimizer": {}, "lr_scheduler": {}})
    with pytest.raises(UserError, match=reason):
        import_original(path, known=Known(avg_num_neighbors=7.5, gate="silu"))
    like = files.write_original(tmp_path / "old.model", files.tree_of(expected))
    assert_equal(import_original(path, known=known_from(like)).model, expected)


@pytest.mark.parametrize("name", [name for name in PLANS if "dipoles" in name])
def test_a_checkpoint_tells_that_it_has_dipoles(name: str, tmp_path: Path) -> None:
    expected = model_of(name)
    state = {key: value.detach() for key, value in files.state_of(expected).items()}
    path = files.write_original(tmp_path / "old.pt", {"model": state, "optimizer": {}, "lr_scheduler": {}})
    like = files.write_original(tmp_path / "old.model", files.tree_of(expected))
    assert_equal(import_original(path, known=known_from(like)).model, expected)


def test_gates_of_newer_files(tmp_path: Path) -> None:
    """Their block has the activations as attributes."""
    expected = model_of("energy_dipoles")
    tree = files.tree_of(expected)
    last = tree._modules["readouts"]._modules["1"]._modules
    silu = {"_act_scalar": torch.nn.functional.silu, "_act_gate": torch.nn.functional.silu}
    for factor in (1.6791767923989418, 1.5):
        last["equivariant_nonlin"] = files.module(
            "mace.modules.gate.GatedEquivariantBlock", **silu, _scalar_cst=1.6791767923989418, _gate_cst=factor
        )
        path = files.write_original(tmp_path / "old.model", tree)
        if factor > 1.6:
            assert_equal(import_original(path).model, expected)
        else:
            with pytest.raises(UserError, match="the scale of the activation 'readouts.1.equivariant_nonlin'"):
                import_original(path)
    silu["_act_gate"] = torch.tanh
    last["equivariant_nonlin"] = files.module("mace.modules.gate.GatedEquivariantBlock", **silu)
    with pytest.raises(UserError, match="several activations"):
        import_original(files.write_original(tmp_path / "old.model", tree))


def heads(tmp_path: Path) -> Path:
    """Write a model of two heads, the second of which is the usual one."""
    original = files.model()
    state, n = files.state_of(original), original.plan.n_channels
    width = original.plan.readout_channels
    state["atomic_energies_fn.atomic_energies"] = torch.tensor(
        [(0.0, 0.0, 0.0), original.plan.reference_energies], dtype=torch.float64
    )
    for name in ("scale", "shift"):
        state[f"scale_shift.{name}"] = torch.tensor([9.0, float(state[f"scale_shift.{name}"])], dtype=torch.float64)
    first = state["readouts.0.linear.weight"].detach()
    state["readouts.0.linear.weight"] = torch.nn.Parameter(torch.stack([first * 5, first], dim=1).reshape(-1))
    hidden, last = (state[f"readouts.1.linear_{i}.weight"].detach() for i in (1, 2))
    hidden = hidden.reshape(n, width)
    state["readouts.1.linear_1.weight"] = torch.nn.Parameter(torch.cat([hidden * 3, hidden], dim=1).reshape(-1))
    whole = torch.zeros(2 * width, 2, dtype=torch.float64)
    whole[:width, 0], whole[width:, 1] = 7.0, last * 2**0.5
    whole[:width, 1] = 11.0  # never used: the mask of the head is zero there
    state["readouts.1.linear_2.weight"] = torch.nn.Parameter(whole.reshape(-1))
    return files.write_original(tmp_path / "heads.model", files.tree_of(original, state, heads=["one", "two"]))


def test_one_of_several_heads_is_taken(tmp_path: Path) -> None:
    path = heads(tmp_path)
    with pytest.raises(UserError, match="no head 'three'; its heads are one, two"):
        import_original(path, "three")
    imported = import_original(path, "two")
    expected = files.model()
    assert imported.model.plan == expected.plan
    assert "head two of one, two" in imported.summary() and imported.head == "two"
    for name, value in imported.model.named_parameters():
        assert torch.allclose(value, expected.get_parameter(name), rtol=1e-14), name
    assert import_original(path, "one").model.plan.scale == 9.0


def test_all_heads_are_kept(tmp_path: Path) -> None:
    path = heads(tmp_path)
    imported = import_original(path)
    assert imported.head is None and imported.model.plan.head_names == ("one", "two")
    assert "heads one, two" in imported.summary() and "heads one, two" in str(imported.metadata.comment)
    assert [head.scale for head in imported.model.plan.heads] == [9.0, files.PLAN.scale]
    for name in ("one", "two"):
        alone = import_original(path, name).model
        assert_equal(with_one_head(imported.model, name), alone)
        assert_equal(open_model(path, head=name).model, alone)
    assert open_model(path).heads == ("one", "two") and open_model(path, head="one").heads == ("one",)
    plan, arrays = imported.model.plan, {key: p.detach().numpy() for key, p in imported.model.named_parameters()}
    again = weights_from_original(weights_to_original(arrays, plan), plan)
    assert all(np.array_equal(again[key], value) for key, value in arrays.items())


def test_heads_of_a_model_of_dipoles_share_their_readouts(tmp_path: Path) -> None:
    original = files.model(ModelPlan.model_validate(files.PLAN.model_dump() | ENERGY))
    state = files.state_of(original, heads=2)
    state["atomic_energies_fn.atomic_energies"][1] += 0.5
    imported = import_original(files.write_original(tmp_path / "old.model", files.tree_of(original, state))).model
    assert imported.plan.head_names == ("0", "1")
    assert imported.plan.heads[1].reference_energies[0] == original.plan.reference_energies[0] + 0.5
    assert_equal(with_one_head(imported, "0"), original)


def test_a_file_of_too_many_heads_is_no_model(tmp_path: Path) -> None:
    original = files.model()
    state = files.state_of(original, heads=1001)
    with pytest.raises(UserError, match="it has 1001 heads, more than 1000"):
        import_original(files.write_original(tmp_path / "old.model", files.tree_of(original, state)))


def test_a_single_head_may_have_any_name_in_the_file(tmp_path: Path) -> None:
    path = files.write_original(tmp_path / "old.model", files.tree_of(files.model(), heads=["pbe"]))
    for head in (None, "pbe", "Default"):
        assert_equal(open_model(path, head=head).model, files.model())
    with pytest.raises(UserError, match="has one head, pbe, and no head 'pbesol'"):
        open_model(path, head="pbesol")


def legacy(root: Any) -> bytes:
    """Write the format of torch before 1.6."""
    data, storages = files.pickled(root)
    keys = [str(i) for i in range(len(storages))]
    raw = b"".join(struct.pack("<q", t.numel()) + t.numpy().tobytes() for t in storages)
    start = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    return start + data + pickle.dumps(keys, 2) + raw


def test_the_format_of_old_torch(tmp_path: Path) -> None:
    expected, path = files.model(), tmp_path / "old.model"
    whole = legacy(files.tree_of(expected))
    path.write_bytes(whole)
    assert_equal(import_original(path).model, expected)
    path.write_bytes(whole[:-100])
    with pytest.raises(UserError, match="cut off"):
        import_original(path)


def test_older_layouts_of_attributes(tmp_path: Path) -> None:
    """Scale and shift as numbers, reference energies of one axis, no list of heads."""
    expected = files.model()
    state = files.state_of(expected)
    scale, shift = (float(state.pop(f"scale_shift.{name}")) for name in ("scale", "shift"))
    state["atomic_energies_fn.atomic_energies"] = torch.tensor(expected.plan.reference_energies, dtype=torch.float64)
    tree = files.tree_of(expected, state)
    tree._modules["scale_shift"] = files.module("mace.modules.blocks.ScaleShiftBlock", scale=scale, shift=shift)
    assert_equal(import_original(files.write_original(tmp_path / "old.model", tree)).model, expected)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kind": "AtomicDipolesMACE"}, "its last layer has no vectors"),
        ({"kind": "EnergyDipolesMACE"}, "its last layer has no vectors"),
        ({"kind": "AtomicDielectricMACE"}, "AtomicDielectricMACE: models of polarizabilities"),
        ({"kind": "PolarMACE"}, "long-range electrostatics"),
        ({"kind": "SomethingElse"}, "its kind is SomethingElse: this class of models is not known"),
        ({"use_so3": True}, "use_so3=True"),
        ({"use_last_readout_only": True}, "it has 2 readouts for 2 layers"),
    ],
)
def test_what_does_not_exist_here_is_named(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    path = files.write_original(tmp_path / "old.model", files.tree_of(files.model(), **changes))
    with pytest.raises(UserError, match=reason):
        import_original(path)


def test_other_interactions_are_named(tmp_path: Path) -> None:
    tree = files.tree_of(files.model())
    layers = tree._modules["interactions"]._modules
    word = "mace.modules.blocks.AgnosticNonlinearInteractionBlock"
    layers["1"] = files.module(word, layers["1"]._modules, avg_num_neighbors=7.5)
    with pytest.raises(UserError, match="layer 1 is a AgnosticNonlinearInteractionBlock"):
        import_original(files.write_original(tmp_path / "old.model", tree))


def test_accelerated_copies_are_named(tmp_path: Path) -> None:
    tree = files.tree_of(files.model())
    tree._modules["interactions"]._modules["0"]._modules["conv_tp"] = files.module("cuequivariance_torch.Tensor")
    with pytest.raises(UserError, match="converted for cuEquivariance; convert it back"):
        import_original(files.write_original(tmp_path / "old.model", tree))


def test_another_order_of_paths_is_noticed(tmp_path: Path) -> None:
    tree = files.tree_of(files.model())
    convolution = tree._modules["interactions"]._modules["1"]._modules["conv_tp"]
    convolution.instructions = convolution.instructions[::-1]
    with pytest.raises(UserError, match="the order of paths in layer 1"):
        import_original(files.write_original(tmp_path / "old.model", tree))


def test_another_activation_is_noticed(tmp_path: Path) -> None:
    tree = files.tree_of(files.model())
    acts = tree._modules["readouts"]._modules["1"]._modules["non_linearity"]._modules["acts"]
    acts._modules["0"].cst = 1.5
    with pytest.raises(UserError, match="the scale of the activation"):
        import_original(files.write_original(tmp_path / "old.model", tree))


@pytest.mark.parametrize(("degree", "order"), [(0, 2), (1, 2), (0, 3), (1, 3)])
def test_weights_of_another_basis_give_the_same_polynomial(degree: int, order: int) -> None:
    coupling = files.coupling_tensor(files.PLAN, degree, order).numpy()
    rng = np.random.default_rng(4)
    n = coupling.shape[-1]
    mixing = rng.normal(size=(n, n))
    weights = rng.normal(size=(3, n, 2))
    found = map_to_ours(coupling @ mixing, weights, files.PLAN.l_max, degree, order)
    assert np.allclose(coupling @ found[0], coupling @ mixing @ weights[0], atol=1e-10)
    assert map_to_ours(coupling, weights, files.PLAN.l_max, degree, order) is weights
    with pytest.raises(CouplingError, match="not those of this program"):
        map_to_ours(coupling + 0.1, weights, files.PLAN.l_max, degree, order)


def test_own_files_are_opened_too(tmp_path: Path) -> None:
    path = save_model(tmp_path / "new.model", files.model())
    assert_equal(open_model(path).model, files.model())
    with pytest.raises(UserError, match="no head 'pt'"):
        open_model(path, head="pt")


def test_a_checkpoint_does_not_tell_its_conditions(tmp_path: Path) -> None:
    expected = model_of("conditions")
    state = {key: value.detach() for key, value in files.state_of(expected).items()}
    path = files.write_original(tmp_path / "old.pt", {"model": state, "optimizer": {}, "lr_scheduler": {}})
    with pytest.raises(UserError, match="checkpoint does not tell embedding_specs.*--like"):
        import_original(path, known=Known(7.5, "silu", (RESIDUAL, RESIDUAL)))
    like = files.write_original(tmp_path / "old.model", files.tree_of(expected))
    assert_equal(import_original(path, known=known_from(like)).model, expected)


CATEGORY = {"type": "categorical", "per": "graph", "num_classes": 7, "emb_dim": 3, "offset": 3}


@pytest.mark.parametrize(
    ("specs", "reason"),
    [
        (None, "no embedding_specs that describe it"),
        ({}, "no embedding_specs that describe it"),
        ({"total_charge": {"type": "categorical"}}, "describe 'total_charge' in an unknown way"),
        ({"total_charge": CATEGORY | {"per": "molecule"}}, "describe 'total_charge' in an unknown way"),
        ({"total_charge": CATEGORY | {"emb_dim": 0}}, "a 'total_charge': .*greater than or equal to 1"),
        ({"total_charge": CATEGORY | {"num_classes": 10**12}}, "a 'total_charge': .*less than or equal"),
        ({"total_charge": CATEGORY | {"num_classes": 8}, "total_spin": CATEGORY}, "total_spin.weight|has the shape"),
        ({"q; import os": CATEGORY}, "a 'q; import os': String should match"),
    ],
)
def test_conditions_that_do_not_fit_are_named(specs: Any, reason: str, tmp_path: Path) -> None:
    tree = files.tree_of(model_of("conditions"))
    tree.__dict__["embedding_specs"] = specs
    with pytest.raises(UserError, match=reason):
        import_original(files.write_original(tmp_path / "old.model", tree))


def test_what_the_original_does_not_look_at_is_no_obstacle(tmp_path: Path) -> None:
    expected = model_of("conditions")
    tree = files.tree_of(expected)
    tree.__dict__["embedding_specs"]["total_charge"] |= {"in_dim": 1, "note": "elementary charges"}
    assert_equal(import_original(files.write_original(tmp_path / "old.model", tree)).model, expected)


def test_a_folder_is_no_file_of_torch(tmp_path: Path) -> None:
    assert not is_torch_file(tmp_path) and not is_torch_file(tmp_path / "missing")
    with pytest.raises(UserError) as caught:
        open_model(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
