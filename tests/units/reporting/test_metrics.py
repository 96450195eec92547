"""Are the accumulated errors those of plain numpy on all values at once?"""

import numpy as np
import pytest
import torch

from mace.reporting.metrics import ErrorAccumulator


def _rms(values):
    return np.sqrt(np.mean(values**2))


def _batches(shape_of_structure, seed, sizes=(3, 1, 4)):
    rng = np.random.default_rng(seed)
    for size in sizes:
        reference = rng.normal(size=(size, *shape_of_structure))
        yield reference, reference + 0.1 * rng.normal(size=reference.shape), rng.integers(1, 9, size=size)


def _gather(property, shape, seed):
    accumulator = ErrorAccumulator()
    batches = list(_batches(shape, seed))
    for reference, prediction, n_atoms in batches:
        accumulator.add(property, reference, prediction, n_atoms)
    return accumulator.result(), *(np.concatenate(parts) for parts in zip(*batches, strict=True))


def test_energy_errors_are_those_of_numpy():
    metrics, reference, prediction, n_atoms = _gather("energy", (), 0)
    error = prediction - reference
    expected = {
        "mae_e": np.mean(np.abs(error)),
        "mae_e_per_atom": np.mean(np.abs(error / n_atoms)),
        "rmse_e": _rms(error),
        "rmse_e_per_atom": _rms(error / n_atoms),
        "q95_e": np.percentile(np.abs(error), 95),
    }
    assert list(metrics) == list(expected)
    assert metrics == pytest.approx(expected, rel=1e-12)
    assert all(type(value) is float for value in metrics.values())


def test_force_errors_average_over_components_and_relate_to_the_labels_in_percent():
    metrics, reference, prediction, _ = _gather("forces", (3,), 1)
    error = prediction - reference
    expected = {
        "mae_f": np.mean(np.abs(error)),
        "rel_mae_f": 100 * np.mean(np.abs(error)) / np.mean(np.abs(reference)),
        "rmse_f": _rms(error),
        "rel_rmse_f": 100 * _rms(error) / _rms(reference),
        "q95_f": np.percentile(np.abs(error), 95),
    }
    assert list(metrics) == list(expected)
    assert metrics == pytest.approx(expected, rel=1e-8)


def test_stress_and_virials_count_all_nine_components():
    metrics, reference, prediction, _ = _gather("stress", (3, 3), 2)
    error = prediction - reference
    expected = {"mae_stress": np.mean(np.abs(error)), "rmse_stress": _rms(error)}
    expected["q95_stress"] = np.percentile(np.abs(error), 95)
    assert metrics == pytest.approx(expected, rel=1e-12)

    metrics, reference, prediction, n_atoms = _gather("virials", (3, 3), 3)
    error = prediction - reference
    assert set(metrics) == {
        "mae_virials", "rmse_virials", "mae_virials_per_atom", "rmse_virials_per_atom", "q95_virials",
    }  # fmt: skip
    per_atom = error / n_atoms[:, None, None]
    assert metrics["rmse_virials_per_atom"] == pytest.approx(_rms(per_atom), rel=1e-12)
    assert metrics["mae_virials_per_atom"] == pytest.approx(np.mean(np.abs(per_atom)), rel=1e-12)


def test_dipole_errors_have_every_variant():
    metrics, reference, prediction, n_atoms = _gather("dipole", (3,), 4)
    error = prediction - reference
    assert list(metrics) == [
        "mae_mu", "mae_mu_per_atom", "rel_mae_mu", "rmse_mu", "rmse_mu_per_atom", "rel_rmse_mu", "q95_mu",
    ]  # fmt: skip
    assert metrics["rmse_mu_per_atom"] == pytest.approx(_rms(error / n_atoms[:, None]), rel=1e-12)
    assert metrics["rel_rmse_mu"] == pytest.approx(100 * _rms(error) / _rms(reference), rel=1e-8)


def test_what_is_not_labeled_is_absent():
    accumulator = ErrorAccumulator()
    assert accumulator.result() == {}
    accumulator.add("stress", np.zeros((0, 3, 3)), np.zeros((0, 3, 3)))
    accumulator.add("forces", np.ones((2, 3)), np.zeros((2, 3)))
    assert set(accumulator.result()) == {"mae_f", "rel_mae_f", "rmse_f", "rel_rmse_f", "q95_f"}


def test_labels_that_are_all_zero_give_a_finite_relative_error():
    accumulator = ErrorAccumulator()
    accumulator.add("forces", np.zeros((2, 3)), np.full((2, 3), 0.5))
    assert accumulator.result()["rel_rmse_f"] == pytest.approx(100 * 0.5 / 1e-9)


def test_tensors_of_single_precision_are_summed_in_double():
    accumulator = ErrorAccumulator()
    count = 200_000
    reference = torch.zeros(count, 3)
    prediction = torch.full((count, 3), 0.1, requires_grad=True)
    for _ in range(3):
        accumulator.add("forces", reference, prediction)
    assert accumulator.result()["mae_f"] == pytest.approx(float(np.float32(0.1)), rel=1e-13)


def test_large_energies_in_single_precision_keep_their_difference():
    accumulator = ErrorAccumulator()
    reference = np.array([-50000.25])
    accumulator.add("energy", reference, np.array([-50000.0], dtype=np.float32), np.array([10]))
    assert accumulator.result()["rmse_e"] == 0.25


def test_merging_equals_seeing_everything():
    one, other, both = ErrorAccumulator(), ErrorAccumulator(), ErrorAccumulator()
    for part, seed in ((one, 5), (other, 6)):
        for reference, prediction, n_atoms in _batches((), seed):
            part.add("energy", reference, prediction, n_atoms)
            both.add("energy", reference, prediction, n_atoms)
    other.add("forces", np.ones((2, 3)), np.zeros((2, 3)))
    both.add("forces", np.ones((2, 3)), np.zeros((2, 3)))
    one.merge(other)
    assert one.result() == pytest.approx(both.result(), rel=1e-14)


@pytest.mark.parametrize(
    ("property", "reference", "prediction", "n_atoms", "complaint"),
    [
        ("charges", np.zeros(2), np.zeros(2), None, "No metrics are defined for 'charges'"),
        ("energy", np.zeros(2), np.zeros((2, 1)), np.ones(2), r"shape \(2,\), predictions \(2, 1\)"),
        ("energy", np.zeros(2), np.zeros(2), None, "number of atoms is needed"),
        ("energy", np.zeros(2), np.zeros(2), np.ones(3), "do not fit"),
    ],
)
def test_what_does_not_fit_is_refused(property, reference, prediction, n_atoms, complaint):
    with pytest.raises(ValueError, match=complaint):
        ErrorAccumulator().add(property, reference, prediction, n_atoms)


def test_a_refused_batch_leaves_no_trace():
    accumulator = ErrorAccumulator()
    accumulator.add("energy", np.zeros(2), np.ones(2), np.ones(2))
    before = accumulator.result()
    with pytest.raises(ValueError, match="number of atoms"):
        accumulator.add("energy", np.zeros(2), np.full(2, 5.0), None)
    assert accumulator.result() == before
