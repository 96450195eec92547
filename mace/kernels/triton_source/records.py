"""What records of products have on a device behind `mace.kernels.c_source.matrices.FIELDS`."""

from __future__ import annotations

from mace.kernels.c_source.matrices import FIELDS

PLANNED = ("first_tile", "first_sum", "part", "partial")
"""What a record has behind its `FIELDS`: its first tile, its first piece of work of the second launch, the number of
terms in each part of its sum, and where among partial results its own begin."""

ACTIVATION = ("activation", "z", "sigmoid", "first", "second", "given")
"""What a record has behind those for an activation of its result: which pass, and addresses of the numbers that belong
to the first one at ``c``, all laid out like ``c``. With a result ``x``, it writes besides (if ``c`` is not null) ``x``

* `VALUE`: the sigmoid, and to ``first`` the activation of ``x``;
* `GRADIENT`: to ``first`` the gradient by ``z`` of what has the gradient ``x`` by the activation; `ADJOINT` adds it;
* `TANGENT`: to ``first`` the change of the activation where ``z`` changes by ``x``, and to ``second`` the change of the
  gradient by ``z``, with the gradient ``given`` by the activation.
"""

NO_ACTIVATION, VALUE, GRADIENT, TANGENT, ADJOINT = range(5)

RECORD = (*FIELDS, *PLANNED, *ACTIVATION)
"""The words of a record."""
