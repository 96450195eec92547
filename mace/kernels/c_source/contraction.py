r"""C source of the symmetric contraction, its derivative, and the derivative of that.

For every component of the result, the monomials form a tree: a node is a product of components, and its children have
one more factor. Horner's rule evaluates the tree from the leaves, :math:`s = W + \sum_c A_c\, s_c`. Reverse
differentiation traverses the same tree and passes the adjoint down, :math:`\sigma_c = \sigma A_c`; so does the second
derivative, with the tangent :math:`s' = \sum_c (u_c s_c + A_c s'_c)` in addition to the value.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from mace.equivariant.symmetric_basis import symmetric_basis
from mace.kernels.c_source.parts import entry, prelude

LARGEST_NUMBER_OF_TERMS = 6000
"""Beyond this number, the source takes too long to compile, and the torch implementation is used."""

CHUNKS_OF_ROWS = 128
"""Into how many chunks kernels on a device may cut the rows, each with its sums; see `mace.kernels.triton_source`."""


@dataclass
class Node:
    """A product of components of the atomic basis.

    Attributes:
        weight: Index of its weight, or None if it is only a factor of longer products.
        children: Products with one more factor, by the component of that factor.
    """

    weight: int | None = None
    children: dict[int, Node] = field(default_factory=dict)


@dataclass(frozen=True)
class ContractionTerms:
    """The terms of a contraction: each weight multiplies one monomial in one component of the result.

    Attributes:
        l_max: Highest degree of the atomic basis.
        l_out: Degrees of the result, each in a separate array.
        correlation: Highest number of factors.
    """

    l_max: int
    l_out: tuple[int, ...]
    correlation: int

    @property
    def n_components(self) -> int:
        """Number of components of the atomic basis."""
        return (self.l_max + 1) ** 2

    def _parts(self) -> Iterator[tuple[int, int, list[tuple[int, tuple[int, ...]]], np.ndarray]]:
        """Yield degree, order, terms ``(component of the result, monomial)`` and the paths' coefficients on them."""
        for degree in self.l_out:
            for order in range(1, self.correlation + 1):
                basis = symmetric_basis(self.l_max, degree, order)
                used = np.argwhere(np.any(basis.coefficients != 0.0, axis=0))
                terms = [(int(m), tuple(basis.monomials[q].tolist())) for m, q in used]
                yield degree, order, terms, basis.coefficients[:, used[:, 0], used[:, 1]]

    def tables(self) -> dict[tuple[int, int], np.ndarray]:
        """Return, by degree and order, the coefficients of its paths on its terms, ``[terms, paths]``."""
        return {(degree, order): table.T.copy() for degree, order, terms, table in self._parts() if terms}

    def n_terms(self) -> int:
        """Return the number of terms."""
        return sum(len(terms) for _, _, terms, _ in self._parts())

    def trees(self) -> dict[tuple[int, int], Node]:
        """Return the tree of every component of every degree."""
        trees = {(degree, m): Node() for degree in self.l_out for m in range(2 * degree + 1)}
        number = 0
        for degree, _, terms, _ in self._parts():
            for m, monomial in terms:
                node = trees[degree, m]
                for component in monomial:
                    node = node.children.setdefault(component, Node())
                node.weight = number
                number += 1
        return trees


def _weight(node: Node) -> str:
    return f"LOAD(W + {node.weight} * L)" if node.weight is not None else "(V){0}"


def _value(node: Node, depth: int) -> list[str]:
    """Return code that computes the value of a node in ``s<depth>``, which must be declared."""
    code = [f"s{depth} = {_weight(node)};"]
    for component, child in node.children.items():
        if not child.children:
            code.append(f"s{depth} += A[{component}] * {_weight(child)};")
        else:
            code += [
                f"{{ V s{depth + 1};",
                *_value(child, depth + 1),
                f"s{depth} += A[{component}] * s{depth + 1}; }}",
            ]
    return code


def _reverse(node: Node, depth: int, weights: bool) -> list[str]:
    """Return code for the value ``s<depth>`` and the gradients below a node, given the adjoint ``t<depth>``."""
    code = [f"s{depth} = {_weight(node)};"]
    if weights and node.weight is not None:
        code.append(f"ADD(G + {node.weight} * L, t{depth});")
    for c, child in node.children.items():
        if not child.children:
            code.append(f"{{ const V w = {_weight(child)}; s{depth} += A[{c}] * w; a[{c}] += t{depth} * w;")
            code.append(f"ADD(G + {child.weight} * L, t{depth} * A[{c}]); }}" if weights else "}")
            continue
        code.append(f"{{ V s{depth + 1}; const V t{depth + 1} = t{depth} * A[{c}];")
        code += _reverse(child, depth + 1, weights)
        code.append(f"a[{c}] += t{depth} * s{depth + 1}; s{depth} += A[{c}] * s{depth + 1}; }}")
    return code


def _second(node: Node, depth: int) -> list[str]:
    """Return code for value ``s<depth>`` and tangent ``d<depth>``, given adjoints ``t<depth>`` and ``e<depth>``."""
    n = depth + 1
    code = [f"s{depth} = {_weight(node)}; d{depth} = (V){{0}};"]
    if node.weight is not None:
        code.append(f"ADD(G + {node.weight} * L, t{depth});")
    for c, child in node.children.items():
        if not child.children:
            code.append(f"{{ const V w = {_weight(child)}; s{depth} += A[{c}] * w; d{depth} += u[{c}] * w;")
            code.append(
                f"a[{c}] += t{depth} * w; ADD(G + {child.weight} * L, t{depth} * A[{c}] + e{depth} * u[{c}]); }}"
            )
            continue
        code.append(f"{{ V s{n}, d{n}; const V t{n} = t{depth} * A[{c}] + e{depth} * u[{c}], e{n} = e{depth} * A[{c}];")
        code += _second(child, n)
        code.append(f"a[{c}] += t{depth} * s{n} + e{depth} * d{n};")
        code.append(f"s{depth} += A[{c}] * s{n}; d{depth} += u[{c}] * s{n} + A[{c}] * d{n}; }}")
    return code


_SIGNATURES = {
    "forward": "const V *restrict A, const T *restrict W",
    "backward": "const V *restrict A, const T *restrict W, T *restrict G, V *restrict a, V t0",
    "second": "const V *restrict A, const V *restrict u, const T *restrict W, T *restrict G, V *restrict a, V e0",
}


def _function(kind: str, name: str, tree: Node) -> str:
    """Return the C function for one component of the result."""
    if kind == "forward":
        lines = ["V s0;", *_value(tree, 0), "return s0;"]
        signature, result = _SIGNATURES["forward"], "V"
    elif kind == "second":
        lines = ["V s0, d0; const V t0 = {0};", *_second(tree, 0), "return d0;"]
        signature, result = _SIGNATURES["second"], "V"
    else:
        lines = ["V s0;", *_reverse(tree, 0, weights=kind == "backward_full")]
        signature, result = _SIGNATURES["backward"], "void"
    body = "\n  ".join(lines)
    return f"static __attribute__((noinline)) {result} {name}({signature}) {{\n  {body}\n}}"


def _kernel(kind: str, terms: ContractionTerms) -> str:
    """Return one kernel: for each block of channels and each atom, load, call the components' functions, store.

    Pointers: place of each atom's element among those present, features, weights, then by kind
    forward: results; backward: cotangents of results, gradients of features and of weights;
    second: cotangents of results, tangent of features, gradients of the cotangents, of features, of weights.
    Weights lie ``[elements, blocks of channels, terms, lanes]``. Dimensions: atoms, channels, blocks of channels,
    whether gradients of features are added to what is there, and whether those of weights replace what is there.
    Otherwise they are added to it. What programs append for kernels on a device is not read: memory for sums, and the
    number of elements.
    """
    n, n_terms, n_out = terms.n_components, terms.n_terms(), len(terms.l_out)
    call, functions = [], []
    for (degree, m), tree in terms.trees().items():
        slot = terms.l_out.index(degree)
        name = f"{kind}_{degree}_{m}"
        functions.append(_function(kind, name, tree))
        at = f"(i * {2 * degree + 1} + {m}) * C + b * L"
        if kind == "forward":
            call.append(f"STORE(p[{3 + slot}] + {at}, {name}(A, W));")
        elif kind == "second":
            cotangent = f"LOAD(p[{3 + slot}] + {at})"
            call.append(f"STORE(p[{4 + n_out + slot}] + {at}, {name}(A, u, W, G, a, {cotangent}));")
        else:
            call.append(f"{name}(A, W, G, a, LOAD(p[{3 + slot}] + {at}));")
    gradient = {"forward": None, "second": 4 + 2 * n_out}.get(kind, 3 + n_out)
    lines = [f"    V A[{n}]; for (int k = 0; k < {n}; k++) A[k] = LOAD(p[1] + (i * {n} + k) * C + b * L);"]
    lines.append(f"    const T *W = p[2] + (element[i] * B + b) * {n_terms} * L;")
    if kind == "second":
        lines.append(
            f"    V u[{n}]; for (int k = 0; k < {n}; k++) u[k] = LOAD(p[{3 + n_out}] + (i * {n} + k) * C + b * L);"
        )
    if gradient is not None:
        old = f"LOAD(p[{gradient}] + (i * {n} + k) * C + b * L)"
        lines.append(f"    V a[{n}]; for (int k = 0; k < {n}; k++) a[k] = d[3] ? {old} : (V){{0}};")
        weights = f"p[{gradient + 1}] + (element[i] * B + b) * {n_terms} * L" if kind != "backward_features" else "0"
        lines.append(f"    T *G = {weights};")
        if kind != "backward_features":
            # atoms of an element follow each other, and cleared where it is needed next, it stays in the cache
            clear = f"memset(G, 0, {n_terms} * L * sizeof(T))"
            lines.append(f"    if (d[4] && (i == 0 || element[i] != element[i - 1])) {clear};")
    lines += [f"    {line}" for line in call]
    if gradient is not None:
        lines.append(f"    for (int k = 0; k < {n}; k++) STORE(p[{gradient}] + (i * {n} + k) * C + b * L, a[k]);")
    body = "\n".join(lines)
    return (
        "\n".join(functions)
        + f"""
void contraction_{kind}_blocks(T *const *p, const int64_t *d, int64_t begin, int64_t end, int64_t thread) {{
  const int64_t N = d[0], C = d[1], B = d[2];
  const int64_t *element = (const int64_t *)p[0];
  for (int64_t b = begin; b < end; b++)
  for (int64_t i = 0; i < N; i++) {{
{body}
  }}
}}
{entry(f"contraction_{kind}")}"""
    )


def contraction_source(terms: ContractionTerms, dtype: torch.dtype) -> str:
    """Return the C file of a symmetric contraction."""
    add = "#define ADD(p, v) STORE(p, LOAD(p) + (v))"
    kinds = ("forward", "backward_features", "backward_full", "second")
    return "\n".join([prelude(dtype), add, *(_kernel(kind, terms) for kind in kinds)])
