"""The index and the manifest of a prepared set, written once all its shards are there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mace.errors import UserError
from mace.structures.collection import ListedStructures
from mace.structures.configuration import Configuration
from mace.structures.prepared import FORMAT, INDEX, ISOLATED, LEFT_OUT, MANIFEST, VERSION, Manifest, digest_of_manifest
from mace.structures.shards import (
    NAMED,
    OF_ATOMS,
    OF_STRUCTURES,
    PAIRS,
    FileEntry,
    Layout,
    ShardFile,
    index_content,
    shard_content,
    unpacked,
    write_file,
)


def finish_set(
    folder: Path,
    shards: Sequence[FileEntry],
    isolated_atoms: Sequence[Configuration] = (),
    left_out: np.ndarray | None = None,
    **facts: Any,
) -> Manifest:
    """Write the index and the manifest of a set whose shards are there.

    Args:
        folder: The folder of the set.
        shards: Its shards, in order.
        isolated_atoms: Frames of isolated atoms.
        left_out: Structures of the shards that are not in the set.
        **facts: The entries of the manifest that are not found in the shards.

    Raises:
        UserError: If a shard is damaged, or something cannot be written.
    """
    parts = [_Part.of(ShardFile(folder / entry.file, entry)) for entry in shards]
    layout: Layout = {
        tensor: sorted(dict.fromkeys(column for part in parts for column in part.layout[tensor]))
        for tensor in (OF_ATOMS, OF_STRUCTURES)
    }
    kinds: dict[str, Any] = {}
    for part in parts:
        for name, kind in part.kinds.items():
            kinds[name] = np.promote_types(kind, kinds.get(name, kind))
    names = {name: tuple(dict.fromkeys(each for part in parts for each in part.names[name])) for name in NAMED}
    columns = sorted({name for part in parts for name in part.columns})
    index = {name: np.concatenate([part.column(name, names) for part in parts]) for name in columns}
    index = {name: values for name, values in index.items() if not (name.startswith("labeled/") and values.all())}
    elements = np.unique(np.concatenate([part.elements for part in parts]))
    entry = write_file(folder / INDEX, index_content(index, names), len(index["n_atoms"]))
    apart = dict[str, Any]()
    if isolated_atoms:
        content = shard_content(ListedStructures(isolated_atoms))
        apart["isolated"] = write_file(folder / ISOLATED, content, len(isolated_atoms))
    if left_out is not None and len(left_out):
        content = index_content({"structures": np.sort(left_out).astype(np.int64)}, {})
        apart["left_out"] = write_file(folder / LEFT_OUT, content, len(left_out))
    manifest = Manifest(
        structures=len(index["n_atoms"]),
        atoms=int(index["n_atoms"].sum()),
        pairs=int(index["n_pairs"].sum()) if "n_pairs" in index else None,
        elements=elements.tolist(),
        layout=layout,
        kinds={name: kind.str.lstrip("|<") for name, kind in sorted(kinds.items())},
        shards=list(shards),
        index=entry,
        **apart,
        **facts,
    )
    document = {"format": FORMAT, "version": VERSION, **vars(manifest)}
    text = json.dumps(document, default=vars)  # entries of files are the only other objects
    document["sha256"] = digest_of_manifest(json.loads(text))
    write_file(folder / MANIFEST, (json.dumps(document, indent=1, default=vars) + "\n").encode(), manifest.structures)
    return manifest


@dataclass(frozen=True)
class _Part:
    """What the index and the manifest of a set say of one of its shards.

    Attributes:
        file: The shard.
        layout: Its columns of float64.
        kinds: Kind of numbers in its tensors.
        names: Names of its codes.
        columns: Its columns with a small number per structure.
        elements: Atomic numbers that occur.
    """

    file: Path
    layout: Layout
    kinds: dict[str, np.dtype[Any]]
    names: dict[str, list[str]]
    columns: dict[str, np.ndarray]
    elements: np.ndarray

    @classmethod
    def of(cls, shard: ShardFile) -> _Part:
        kinds = {name: tensor.kind for name, tensor in shard.tensors.items()}
        large = (OF_ATOMS, OF_STRUCTURES, PAIRS, "numbers")
        columns = {name: shard.tensor(name) for name in kinds if name not in large}
        n_atoms = columns["n_atoms"]
        of_floats = [name for columns_of in shard.layout.values() for name, _ in columns_of]
        if any(name.partition("/")[0] == "weight" for name in of_floats):
            found = unpacked(shard.tensor(OF_STRUCTURES), shard.layout[OF_STRUCTURES])
            columns |= {name: values for name, values in found.items() if name.partition("/")[0] == "weight"}
        if any(name.startswith("atom_weight/") for name in of_floats):
            for name, values in unpacked(shard.tensor(OF_ATOMS), shard.layout[OF_ATOMS]).items():
                kind, _, label = name.partition("/")
                if kind == "atom_weight":  # whether any atom of a structure has weight
                    has_weight = np.logical_or.reduceat(values > 0.0, np.cumsum(n_atoms) - n_atoms)
                    columns[f"any_weight/{label}"] = has_weight
        for name in of_floats:
            kind, _, label = name.partition("/")
            if kind == "label":
                columns.setdefault(f"labeled/{label}", np.ones(len(n_atoms), dtype=bool))
        return cls(shard.path, shard.layout, kinds, shard.names, columns, np.unique(shard.tensor("numbers")))

    def column(self, name: str, names: Mapping[str, tuple[str, ...]]) -> np.ndarray:
        """Return a column with the values that the shard leaves out, and with the codes of some names."""
        if name in names:
            return np.array([names[name].index(each) for each in self.names[name]], dtype=np.int32)[self.columns[name]]
        if name in self.columns:
            return self.columns[name]
        left_out = {"labeled": False, "weight": 1.0, "any_weight": True}.get(name.partition("/")[0])
        if left_out is None:
            raise UserError(f"{self.file}: this part lacks '{name}', which others have; prepare the set again.")
        return np.full(len(self.columns["n_atoms"]), left_out)
