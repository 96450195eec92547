"""What records of products have on a device behind `mace.kernels.c_source.matrices.FIELDS`."""

from __future__ import annotations

from mace.kernels.c_source.matrices import FIELDS

ACTIVATION = ("activation", "z", "sigmoid", "first", "second", "given")
"""What a record has behind `FIELDS` for an activation of its result; all zero for none. Which pass it is, and addresses
of what belongs to the number at ``c``, all laid out as there. With ``x`` for the result, which is written to ``c``,

* `VALUE` writes the sigmoid of ``x``, and to ``first`` the activation of ``x``;
* `GRADIENT` writes to ``first`` the gradient by ``z``, where ``x`` is that by the activation; `ADJOINT` adds it;
* `TANGENT` writes to ``first`` the change of the activation where ``x`` is that of ``z``, and to ``second`` the change
  of the gradient by ``z`` where ``given`` is the gradient by the activation.
"""

PLANNED = ("first_tile", "first_sum", "part", "partial")
"""What a record has in the end: its first tile, its first piece of work of the second launch, the number of terms in
each part of its sum, and where among partial results its own begin."""

RECORD = (*FIELDS, *ACTIVATION, *PLANNED)
"""All words of a record."""

NO_ACTIVATION, VALUE, GRADIENT, TANGENT, ADJOINT = range(5)
