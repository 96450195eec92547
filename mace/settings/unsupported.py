"""Settings without a feature behind them: accepted with a line in the log, or refused."""

from __future__ import annotations

from typing import Any

from mace.settings.declaration import Settings, setting

_POLAR = "only PolarMACE has these numbers, which does not exist here yet"
_POLARIZABILITIES = "no model here predicts polarizabilities yet"
_KERNELS = "this library is not used, --kernels=auto takes the fastest kernels at hand"
_MIRROR = "energies are the same for mirror images here; remove the flag."


class UnsupportedSettings(Settings):
    """What mace-torch has and this package has not, or not yet."""

    # folders, devices and data loading
    downloads_dir: str | None = setting(
        None, "folder for downloads", inert="published models are kept in the cache folder of the user"
    )
    enable_cueq: bool = setting(False, "use cuEquivariance", inert=_KERNELS)
    only_cueq: bool = setting(False, "use cuEquivariance throughout", inert=_KERNELS)
    enable_oeq: bool = setting(False, "use OpenEquivariance", inert=_KERNELS)
    multi_processed_test: bool = setting(
        False, "preprocessed test data come in several parts", inert="a folder in --test_dir is one test set"
    )

    # variants of the model to come
    use_reduced_cg: bool = setting(
        False,
        "use the reduced coupling coefficients",
        unsupported="the reduced coupling coefficients are not available yet; use False.",
    )
    use_so3: bool = setting(False, "give up the reflection symmetry", unsupported=_MIRROR)
    compute_polarizability: bool = setting(False, "predict polarizabilities", inert=_POLARIZABILITIES)
    compute_atomic_dipole: bool = setting(
        False,
        "predict dipoles",
        inert="--model decides it, AtomicDipolesMACE and EnergyDipolesMACE predict dipoles",
    )
    les_arguments: str | dict[str, Any] | None = setting(
        None,
        "arguments of latent Ewald summation",
        inert="only MACELES has them, which does not exist here yet",
    )
    kspace_cutoff_factor: float = setting(1.5, "cutoff in reciprocal space", inert=_POLAR)
    atomic_multipoles_max_l: int = setting(0, "highest l of atomic multipoles", inert=_POLAR)
    atomic_multipoles_smearing_width: float = setting(1.0, "width of atomic multipoles", inert=_POLAR)
    field_feature_max_l: int = setting(0, "highest l of field features", inert=_POLAR)
    field_feature_widths: str | list[float] = setting("[1.0]", "widths of field features", inert=_POLAR)
    field_feature_norms: str | list[float] | None = setting(None, "norms of field features", inert=_POLAR)
    num_recursion_steps: int = setting(1, "steps to self-consistency", inert=_POLAR)
    field_si: bool = setting(False, "self-interaction of fields", inert=_POLAR)
    include_electrostatic_self_interaction: bool = setting(False, "electrostatic self-interaction", inert=_POLAR)
    add_local_electron_energy: bool = setting(False, "local electron energy", inert=_POLAR)
    quadrupole_feature_corrections: bool = setting(False, "quadrupole corrections", inert=_POLAR)
    return_electrostatic_potentials: bool = setting(False, "return potentials", inert=_POLAR)
    field_norm_factor: float = setting(0.02, "norm of field features", inert=_POLAR)
    fixedpoint_update_config: str | dict[str, Any] | None = setting(
        None, "options of the fixed-point update", inert=_POLAR
    )
    field_readout_config: str | dict[str, Any] | None = setting(None, "options of the field readout", inert=_POLAR)

    # labels and weights of properties to come
    polarizability_weight: float = setting(1.0, "weight of the polarizabilities", inert=_POLARIZABILITIES)
    swa_polarizability_weight: float = setting(
        1.0,
        "weight of the polarizabilities in stage two",
        aliases=("stage_two_polarizability_weight",),
        inert=_POLARIZABILITIES,
    )
