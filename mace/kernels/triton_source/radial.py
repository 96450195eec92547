"""Triton text for functions of the distance: envelope, bases, distance transforms and repulsion, with derivatives.

The same functions as in `mace.kernels.c_source.radial`, in double precision. Each builder returns lines of a kernel in
which every name stands for one number per pair.
"""

from __future__ import annotations

from mace.kernels.c_source.radial import (
    AGNESI_A,
    AGNESI_P,
    AGNESI_Q,
    COULOMB,
    SOFT_STEEPNESS,
    ZBL_BOHR,
    ZBL_COEFFICIENTS,
    ZBL_EXPONENTS,
    ZBL_LENGTH,
    ZBL_POWER,
)


def envelope(p: int, last: str, within: str) -> list[str]:
    """Return lines for the envelope ``e`` of ``r`` and its derivative ``e_slope``.

    Args:
        p: Order of contact at the origin.
        last: Where it ends.
        within: Condition for it not to be zero.
    """
    a, b, c = (p + 1) * (p + 2) / 2, float(p * (p + 2)), p * (p + 1) / 2
    return [
        f"share = r / {last}",
        f"power = {' * '.join(['share'] * (p - 1)) or '1.0'}",
        f"e_slope = tl.where({within}, {-p * a!r} * power * (1.0 - share) * (1.0 - share) / {last}, 0.0)",
        f"e = tl.where({within}, 1.0 - power * share * ({a!r} - {b!r} * share + {c!r} * share * share), 0.0)",
    ]


def named_number(name: str, value: str) -> str:
    """Return a line that gives a name to a constant; without its type, Triton would round it to single precision."""
    return f"{name} = tl.full([], {value}, tl.float64)"


def transform(kind: str) -> list[str]:
    """Return lines for the transformed distance ``t`` of ``r`` and its derivative ``stretch``.

    Args:
        kind: The transform; ``s`` is the sum of the radii.
    """
    exponent = AGNESI_Q - AGNESI_P
    return {
        "None": ["t = r", "stretch = 1.0"],
        "Agnesi": [
            "logarithm = tl.log(r / (0.5 * s))",
            f"near, far = tl.exp({AGNESI_Q} * logarithm), tl.exp({exponent!r} * logarithm)",
            f"weight = {AGNESI_A} * near / (1.0 + far)",
            "t = 1.0 / (1.0 + weight)",
            f"stretch = -t * t * weight / r * ({AGNESI_Q} - {exponent!r} * far / (1.0 + far))",
        ],
        "Soft": [
            "near, far = 0.75 * s, (4.0 / 3.0) * s",
            f"steepness = {SOFT_STEEPNESS} / (far - near)",
            # half of one plus the hyperbolic tangent
            "on = 1.0 / (1.0 + tl.exp(-2.0 * steepness * (r - 0.5 * (near + far))))",
            "stretch = on + (r - near) * 2.0 * steepness * on * (1.0 - on)",
            "t = near + (r - near) * on",
        ],
    }[kind]


def basis_start(radial_type: str, n: int) -> list[str]:
    """Return lines that prepare the functions of a basis of ``n`` at ``t``."""
    return {
        "bessel": [
            named_number("step", "3.14159265358979323846 / r_max"),
            "sine_1, cosine_1, inverse = tl.sin(step * t), tl.cos(step * t), 1.0 / t",
            "scale = (2.0 / r_max) ** 0.5 * inverse",
            "sine, cosine = sine_1, cosine_1",
        ],
        "gaussian": [named_number("per_width", f"{max(n - 1, 1)} / r_max")],
        "chebyshev": [
            "before, before_slope = tl.full([PAIRS], 1.0, tl.float64), tl.zeros([PAIRS], tl.float64)",
            "now, now_slope = t, tl.full([PAIRS], 1.0, tl.float64)",
        ],
    }[radial_type]


def basis_function(radial_type: str, which: str, place: int, last: bool) -> list[str]:
    """Return lines for one function ``b<place>`` and its derivative ``d<place>`` by ``t``, and a step to the next.

    Args:
        radial_type: Kind of basis.
        which: Expression for its number, from zero.
        place: Its place in the names.
        last: Whether no other follows.
    """
    here, following = {
        # sine and cosine of multiples of an angle by rotation, whose error grows only with the number of steps
        "bessel": (
            [
                f"b{place} = scale * sine",
                f"d{place} = scale * (({which} + 1) * step * cosine - sine * inverse)",
            ],
            [
                "sine, cosine = sine * cosine_1 + cosine * sine_1, cosine * cosine_1 - sine * sine_1",
            ],
        ),
        "gaussian": (
            [
                f"at{place} = t * per_width - {which}",
                f"b{place} = tl.exp(-0.5 * at{place} * at{place})",
                f"d{place} = -at{place} * per_width * b{place}",
            ],
            [],
        ),
        "chebyshev": (
            [f"b{place} = now", f"d{place} = now_slope"],
            [
                "after, after_slope = 2.0 * t * now - before, 2.0 * now + 2.0 * t * now_slope - before_slope",
                "before, before_slope, now, now_slope = now, now_slope, after, after_slope",
            ],
        ),
    }[radial_type]
    return here if last else here + following


def repulsion(p: int) -> list[str]:
    """Return lines for half the repulsion ``energy`` at ``r`` and its derivative ``slope``.

    Args:
        p: Order of contact of the envelope at the origin; ``charge_a`` and ``charge_b`` are the charges, ``s`` is the
            sum of the radii, and ``near`` says that the pair is within the cutoff.
    """
    terms = [(c, a, f"tl.exp({-a!r} * x)") for c, a in zip(ZBL_COEFFICIENTS, ZBL_EXPONENTS, strict=True)]
    powers = (f"tl.exp({ZBL_POWER!r} * tl.log({charge}))" for charge in ("charge_a", "charge_b"))
    return [
        f"per_length = ({' + '.join(powers)}) * {1.0 / (ZBL_LENGTH * ZBL_BOHR)!r}",
        "x = r * per_length",
        *(f"screened_{place} = {term}" for place, (_, _, term) in enumerate(terms)),
        f"phi = {' + '.join(f'{c!r} * screened_{place}' for place, (c, _, _) in enumerate(terms))}",
        f"phi_slope = ({' + '.join(f'{-c * a!r} * screened_{place}' for place, (c, a, _) in enumerate(terms))})"
        " * per_length",
        f"scale = {0.5 * COULOMB!r} * charge_a * charge_b / r",
        # two large atoms may touch beyond the cutoff
        *envelope(p, "s", "(r < s) & near"),
        "slope = scale * (phi_slope * e + phi * e_slope - phi * e / r)",
        "energy = scale * phi * e",
    ]
