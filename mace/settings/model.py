"""Settings of the model: what is built, and how large."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from mace.conditions import read_specs
from mace.settings.declaration import Settings, setting

_NOT_BUILT = "this model is not available yet; choose MACE or ScaleShiftMACE."
_DIELECTRIC = "models of polarizabilities are not available yet; choose AtomicDipolesMACE or EnergyDipolesMACE."
_LARGEST_CORRELATION = 4


class ModelSettings(Settings):
    """Shape of the network."""

    model: Literal[
        "BOTNet",
        "MACE",
        "ScaleShiftMACE",
        "PolarMACE",
        "MACELES",
        "ScaleShiftBOTNet",
        "AtomicDipolesMACE",
        "AtomicDielectricMACE",
        "EnergyDipolesMACE",
    ] = setting(
        "MACE",
        "MACE keeps isolated atoms at exactly E0; ScaleShiftMACE also learns around a shift per atom; "
        "AtomicDipolesMACE has dipoles only; EnergyDipolesMACE is MACE with dipoles",
        group="Model",
        unsupported_values={
            "BOTNet": _NOT_BUILT,
            "ScaleShiftBOTNet": _NOT_BUILT,
            "PolarMACE": _NOT_BUILT,
            "MACELES": _NOT_BUILT,
            "AtomicDielectricMACE": _DIELECTRIC,
        },
    )
    r_max: float = setting(5.0, "distance up to which atoms are neighbors", group="Model", unit="Angstrom", gt=0)
    num_interactions: int = setting(2, "layers of messages", group="Model", ge=1)
    hidden_irreps: str | None = setting(
        None,
        "channels and their symmetries, as in '128x0e + 128x1o'; the other way to say num_channels and max_L, which "
        "count if all three are given",
        group="Model",
        placeholder="IRREPS",
        default_words="128x0e + 128x1o",
    )
    num_channels: int | None = setting(
        None, "channels of each symmetry in hidden_irreps", group="Model", ge=1, default_words="128"
    )
    max_L: int | None = setting(None, "highest L in hidden_irreps", group="Model", ge=0, le=4, default_words="1")
    max_ell: int = setting(
        3, "highest l of the spherical harmonics of edges", group="Model", aliases=("l_max",), ge=0, le=4
    )
    correlation: (
        Annotated[int, Field(ge=1, le=_LARGEST_CORRELATION)]
        | Annotated[list[Annotated[int, Field(ge=1, le=_LARGEST_CORRELATION)]], Field(min_length=1)]
    ) = setting(
        3,
        "neighbors that act together (body order minus one), for all layers or as a list with one per layer",
        group="Model",
        placeholder="N|[N,...]",
        expects="a whole number from 1 to 4, or a list of them such as [3,2]",
    )
    radial_type: Literal["bessel", "gaussian", "chebyshev"] = setting(
        "bessel", "functions of the distance", group="Model"
    )
    num_radial_basis: int = setting(8, "number of these functions", group="Model", ge=1)
    num_cutoff_basis: int = setting(
        5, "order p of the polynomial that takes them smoothly to zero at r_max", group="Model", ge=2
    )
    apply_cutoff: bool = setting(
        True,
        "multiply the radial functions by that polynomial; if False, the radial weights that are made of them",
        group="Model",
    )
    distance_transform: Literal["None", "Agnesi", "Soft"] = setting(
        "None", "change of variable before the radial functions", group="Model"
    )
    radial_MLP: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)] = setting(
        [64, 64, 64],
        "widths of the hidden layers of the radial network",
        group="Model",
        placeholder="[N,...]",
        expects="a list of whole numbers of at least 1 such as [64,64,64]",
    )
    pair_repulsion: bool = setting(False, "add the ZBL repulsion between close atoms", group="Model", kind="switch")
    interaction: Literal[
        "RealAgnosticResidualInteractionBlock",
        "RealAgnosticAttResidualInteractionBlock",
        "RealAgnosticInteractionBlock",
        "RealAgnosticDensityInteractionBlock",
        "RealAgnosticDensityResidualInteractionBlock",
        "RealAgnosticResidualNonLinearInteractionBlock",
    ] = setting(
        "RealAgnosticResidualInteractionBlock",
        "kind of message in all layers but the first",
        group="Model",
    )
    interaction_first: Literal[
        "RealAgnosticResidualInteractionBlock",
        "RealAgnosticInteractionBlock",
        "RealAgnosticDensityInteractionBlock",
        "RealAgnosticDensityResidualInteractionBlock",
        "RealAgnosticResidualNonLinearInteractionBlock",
    ] = setting(
        "RealAgnosticResidualInteractionBlock",
        "kind of message in the first layer",
        group="Model",
    )
    edge_irreps: str | None = setting(
        None,
        "channels and symmetries of what neighbors send, where they are to be fewer than in hidden_irreps",
        group="Model",
        placeholder="IRREPS",
        default_words="as hidden_irreps",
    )
    use_edge_irreps_first: bool = setting(
        False,
        "let the first layer send as many channels as edge_irreps has scalars",
        group="Model",
        only_with="edge_irreps",
    )
    use_agnostic_product: bool = setting(
        False, "share the weights of the many-body products between elements", group="Model"
    )
    MLP_irreps: str = setting(
        "16x0e",
        "hidden layer of the last readout",
        group="Model",
        placeholder="IRREPS",
        default_words="16x0e, with as many 1o where dipoles are predicted",
    )
    use_last_readout_only: bool = setting(False, "read energies out of the last layer only", group="Model")
    gate: Literal["silu", "tanh", "abs", "None"] = setting("silu", "non-linearity of the last readout", group="Model")
    # they must be understood while the flag is at hand
    embedding_specs: Annotated[dict[str, Any], AfterValidator(lambda specs: read_specs(specs) and specs)] | None = (
        setting(
            None,
            "what energies depend on besides the atoms, such as total_charge and total_spin, and how it is embedded",
            group="Model",
            placeholder="{NAME: {...}}",
            expects="a dictionary such as {'total_charge': {'type': 'categorical', 'per': 'graph', 'num_classes': 21, "
            "'offset': 10, 'emb_dim': 64}}",
            default_words="none",
        )
    )
    use_embedding_readout: bool = setting(
        False,
        "add an energy read from the embedding of element and conditions",
        group="Model",
        only_with="embedding_specs or foundation_model",
    )
    compute_forces: bool = setting(True, "differentiate the energy with respect to positions", group="Model")
    compute_stress: bool = setting(False, "differentiate the energy with respect to strain", group="Model")
