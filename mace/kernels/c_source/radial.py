"""C functions of the distance: envelope, bases, distance transforms and repulsion, each with its derivative.

`mace.model.radial` defines the numbers. The constants are here, where both can read them.
"""

from __future__ import annotations

AGNESI_Q, AGNESI_P, AGNESI_A = 0.9183, 4.5791, 1.0805
SOFT_STEEPNESS = 4.0
ZBL_COEFFICIENTS = (0.1818, 0.5099, 0.2802, 0.02817)
ZBL_EXPONENTS = (3.2, 0.9423, 0.4028, 0.2016)
ZBL_LENGTH, ZBL_POWER, ZBL_BOHR = 0.4543, 0.300, 0.529
COULOMB = 14.3996
"""Energy of two unit charges at a distance of one Angstrom in eV, rounded as in the original."""


def radial_functions(
    radial_type: str, num_cutoff_basis: int, distance_transform: str, cutoff_after_network: bool
) -> str:
    """Return the C functions for the settings of a plan, see `mace.model.plan.ModelPlan`.

    They are ``radial``, which gives basis and envelope of a pair, and ``repulsion``. The type ``T`` and the number of
    functions ``BASIS`` must be defined before.
    """
    return "\n".join(
        [
            _envelope(num_cutoff_basis),
            _transform(distance_transform),
            _BASES[radial_type],
            _radial(cutoff_after_network),
            _repulsion(),
        ]
    )


def _envelope(p: int) -> str:
    """Return the function of `mace.model.radial.polynomial_envelope`, with its derivative."""
    a, b, c = (p + 1) * (p + 2) / 2, float(p * (p + 2)), p * (p + 1) / 2
    return f"""\
static inline double envelope(double r, double last, int within, double *slope) {{
  const double x = r / last;
  double power = 1.0;
  for (int k = 1; k < {p}; k++) power *= x;
  *slope = within * (-{p * (p + 1) * (p + 2) / 2} * power * (1.0 - x) * (1.0 - x) / last);
  return within * (1.0 - power * x * ({a} - {b} * x + {c} * x * x));
}}
"""


def _transform(kind: str) -> str:
    """Return the function that transforms a distance, with its derivative; ``s`` is the sum of the radii."""
    code = {
        "None": "  *slope = 1.0;\n  return r;\n",
        "Agnesi": f"""\
  const double x = r / (0.5 * s), a = pow(x, {AGNESI_Q}), b = pow(x, {AGNESI_Q - AGNESI_P!r});
  const double w = {AGNESI_A} * a / (1.0 + b), t = 1.0 / (1.0 + w);
  *slope = -t * t * w / r * ({AGNESI_Q} - {AGNESI_Q - AGNESI_P!r} * b / (1.0 + b));
  return t;
""",
        "Soft": f"""\
  const double near = 0.75 * s, far = 4.0 / 3.0 * s, k = {SOFT_STEEPNESS} / (far - near);
  const double t = tanh(k * (r - 0.5 * (near + far))), on = 0.5 * (1.0 + t);
  *slope = on + (r - near) * 0.5 * k * (1.0 - t * t);
  return near + (r - near) * on;
""",
    }[kind]
    return f"static inline double transformed(double r, double s, double *slope) {{\n{code}}}\n"


_BASES = {
    # sine and cosine of multiples of an angle by rotation, whose error grows only with the number of steps
    "bessel": """\
static inline void basis(double r, double r_max, double *b, double *slope) {
  const double w = 3.14159265358979323846 / r_max, s1 = sin(w * r), c1 = cos(w * r), scale = sqrt(2.0 / r_max) / r;
  double s = s1, c = c1;
  for (int k = 0; k < BASIS; k++) {
    b[k] = scale * s;
    slope[k] = scale * ((k + 1) * w * c - s / r);
    const double next = s * c1 + c * s1;
    c = c * c1 - s * s1;
    s = next;
  }
}
""",
    "gaussian": """\
static inline void basis(double r, double r_max, double *b, double *slope) {
  const double width = r_max / (BASIS > 1 ? BASIS - 1 : 1);
  for (int k = 0; k < BASIS; k++) {
    const double x = r / width - k;
    b[k] = exp(-0.5 * x * x);
    slope[k] = -x / width * b[k];
  }
}
""",
    "chebyshev": """\
static inline void basis(double r, double r_max, double *b, double *slope) {
  double before = 1.0, before_slope = 0.0, now = r, now_slope = 1.0;
  for (int k = 0; k < BASIS; k++) {
    b[k] = now;
    slope[k] = now_slope;
    const double next = 2.0 * r * now - before, next_slope = 2.0 * now + 2.0 * r * now_slope - before_slope;
    before = now, before_slope = now_slope;
    now = next, now_slope = next_slope;
  }
}
""",
}
"""Functions of the radial bases in `mace.model.radial`, with their derivatives."""


def _radial(cutoff_after_network: bool) -> str:
    """Return the function that evaluates basis and envelope of a pair, with their derivatives by its length."""
    product = "" if cutoff_after_network else "slope[k] = slope[k] * *e + b[k] * *e_slope, b[k] *= *e;"
    return f"""\
static inline void radial(double r, double r_max, double s, double *b, double *slope, double *e, double *e_slope) {{
  double by_length;
  // compared as rounded, so that the padding, as long as the cutoff, lies outside
  *e = envelope(r, r_max, (T)r < (T)r_max, e_slope);
  basis(transformed(r, s, &by_length), r_max, b, slope);
  for (int k = 0; k < BASIS; k++) {{
    slope[k] *= by_length;
    {product}
  }}
}}
"""


def _repulsion() -> str:
    """Return the function of `mace.model.radial.NuclearRepulsion`, with its derivative; ``a`` and ``b`` are charges."""
    terms = list(zip(ZBL_COEFFICIENTS, ZBL_EXPONENTS, strict=True))
    phi = " + ".join(f"{c} * exp(-{a} * x)" for c, a in terms)
    slope = " - ".join(f"{c * a!r} * exp(-{a} * x)" for c, a in terms)
    return f"""\
static inline double repulsion(double r, double r_max, double a, double b, double sum_of_radii, double *slope) {{
  const double per_length = (pow(a, {ZBL_POWER}) + pow(b, {ZBL_POWER})) / {ZBL_LENGTH * ZBL_BOHR!r};
  const double x = r * per_length, phi = {phi}, phi_slope = (-{slope}) * per_length;
  const double scale = {0.5 * COULOMB!r} * a * b / r;
  // two large atoms may touch beyond the cutoff
  double e_slope, e = envelope(r, sum_of_radii, r < sum_of_radii && (T)r < (T)r_max, &e_slope);
  *slope = scale * (phi_slope * e + phi * e_slope - phi * e / r);
  return scale * phi * e;
}}
"""
