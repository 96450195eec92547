"""Hostile and broken files that look like models of mace-torch, by name, and a program that tries to open them.

Run as a program, with a folder, it opens every file there and prints what came of it as lines of JSON.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from original_files import PLAN, archive, model, module, original_bytes, pickled, state_of, tree_of

Files = dict[str, Callable[[Path], bytes]]


def _call(name: str, argument: str) -> bytes:
    """Return a pickle that calls a function with a text, in protocol 0."""
    package, _, word = name.rpartition(".")
    return f"c{package}\n{word}\n(V{argument}\ntR.".encode()


def _command(canary: Path) -> str:
    return f"touch {canary}"


def _python(canary: Path) -> str:
    return f"open({str(canary)!r}, 'w')"


def _zipped(data: bytes) -> bytes:
    return archive(data, [])


ATTACKS: Files = {
    "os_system": lambda c: _zipped(_call("os.system", _command(c))),
    "posix_system": lambda c: _zipped(_call("posix.system", _command(c))),
    "eval": lambda c: _zipped(_call("builtins.eval", _python(c))),
    "exec": lambda c: _zipped(_call("__builtin__.exec", _python(c))),
    "popen": lambda c: _zipped(_call("subprocess.getoutput", _command(c))),
    "raw_pickle": lambda c: b"\x80\x02" + _call("os.system", _command(c)),
    "nested_names": lambda c: _zipped(
        b"cbuiltins\ngetattr\n(cos\npath\nVsystem\ntR(V" + _command(c).encode() + b"\ntR."
    ),
    "dotted_name": lambda c: _zipped(b"\x80\x04\x8c\x08builtins\x8c\x16eval.__call__.__self__\x93."),
    "stack_global": lambda c: _zipped(
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c" + bytes([len(_command(c))]) + _command(c).encode() + b"\x85R."
    ),
    "instance": lambda c: _zipped(b"(V" + _command(c).encode() + b"\nios\nsystem\n."),
    "object": lambda c: _zipped(b"(cos\nsystem\nV" + _command(c).encode() + b"\no."),
    "new_object": lambda c: _zipped(b"\x80\x02csubprocess\nPopen\n(V" + _command(c).encode() + b"\nt\x81."),
    "new_object_keywords": lambda c: _zipped(
        b"\x80\x04csubprocess\nPopen\n(V" + _command(c).encode() + b"\nt}Vshell\n\x88s\x92."
    ),
    "state_of_a_record": lambda c: _zipped(
        b"cmace.modules.models\nMACE\n)\x81}(V__class__\ncos\nsystem\nV__reduce__\ncos\nsystem\nub."
    ),
    "extension": lambda c: _zipped(b"\x80\x02\x82\x01."),
    "persistent_name": lambda c: _zipped(b"\x80\x02(cos\nsystem\nV" + _command(c).encode() + b"\ntQ."),
    "foreign_storage": lambda c: _zipped(b"\x80\x02(Vstorage\ncmymodule\nDoubleStorage\nV0\nVcpu\nK\x01tQ."),
    "inside_a_model": lambda c: _inside_a_model(c),
    "in_a_checkpoint": lambda c: _zipped(
        b"\x80\x02}(X\x05\x00\x00\x00model}X\x09\x00\x00\x00optimizer" + _call("os.system", _command(c))[:-1] + b"u."
    ),
    "legacy": lambda c: (
        pickle.dumps(0x1950A86A20F9469CFC6C, 2)
        + pickle.dumps(1001, 2)
        + pickle.dumps({}, 2)
        + _call("os.system", _command(c))
    ),
}
"""Files that would run something if they were unpickled; the argument is the file that it would make."""


def _inside_a_model(canary: Path) -> bytes:
    """Hide a call among the attributes of a sound model."""
    data, storages = pickled(tree_of(model()))
    return archive(data[:-1] + b"0" + _call("os.system", _command(canary)), storages)


def _truncated(part: float) -> Callable[[Path], bytes]:
    return lambda _: original_bytes()[: int(len(original_bytes()) * part)]


def _of_zip(names: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as made:
        for name, content in names.items():
            made.writestr(name, content)
    return stream.getvalue()


def _claims_more() -> bytes:
    """Multiply the sizes in the table of contents, and say that everything lies at the same place."""
    data = bytearray(original_bytes())
    place = data.find(b"PK\x01\x02")
    while place >= 0:
        struct.pack_into("<II", data, place + 20, 1 << 31, 1 << 31)
        place = data.find(b"PK\x01\x02", place + 4)
    return bytes(data)


def _with_state(**changes: Any) -> Callable[[Path], bytes]:
    """Return a model in which some weights or buffers are others; None takes one away."""

    def build(_: Path) -> bytes:
        original = model()
        state = state_of(original) | {name.replace("__", "."): value for name, value in changes.items()}
        return archive(*pickled(tree_of(original, {n: v for n, v in state.items() if v is not None})))

    return build


def _tensor(offset: int, shape: tuple[int, ...], strides: tuple[int, ...], count: int) -> bytes:
    """Return a checkpoint of one tensor that is described badly."""
    numbers = b"".join(b"(" + b"".join(b"J" + struct.pack("<i", n) for n in group) + b"t" for group in (shape, strides))
    pickled_tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n((Vstorage\nctorch\nDoubleStorage\nV0\nVcpu\nJ"
        + struct.pack("<i", count)
        + b"tQJ"
        + struct.pack("<i", offset)
        + numbers
        + b"\x89Ntr\x00\x00\x00\x00R"
    )
    pickled_tensor = pickled_tensor.replace(b"tr\x00\x00\x00\x00R", b"tR")
    return archive(b"\x80\x02}Vinteractions.0.weight\n" + pickled_tensor + b"s.", [torch.zeros(4, dtype=torch.float64)])


def _many_views() -> bytes:
    """Ten thousand tensors that all are the same storage of a megabyte."""
    one = (
        b"ctorch._utils\n_rebuild_tensor_v2\n((Vstorage\nctorch\nDoubleStorage\nV0\nVcpu\nJ"
        + struct.pack("<i", 1 << 17)
        + b"tQK\x00J"
        + struct.pack("<i", 1 << 17)
        + b"\x85K\x01\x85\x89NtRq\x01"
    )
    entries = b"".join(f"Vinteractions.{i}.weight\n".encode() + (one if i == 0 else b"h\x01") for i in range(10_000))
    return archive(b"\x80\x02}(" + entries + b"u.", [torch.zeros(1 << 17, dtype=torch.float64)])


def _cycle() -> bytes:
    """Return modules that lie in each other."""
    first, second = module("mace.modules.models.MACE"), module("mace.modules.models.MACE")
    first._modules["a"], second._modules["a"] = second, first
    return archive(*pickled(first))


BROKEN: Files = {
    "empty": lambda _: b"",
    "html": lambda _: b"<!DOCTYPE html><html><body>Not Found</body></html>",
    "html_with_space": lambda _: b"\n\n  <html><head></head></html>",
    "git_lfs": lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    "random_bytes": lambda _: np.random.default_rng(0).bytes(4096),
    "elf": lambda _: b"\x7fELF" + bytes(1000),
    "text": lambda _: b"Lattice=...\n",
    "gzip": lambda _: b"\x1f\x8b\x08" + bytes(100),
    "truncated_10": _truncated(0.1),
    "truncated_50": _truncated(0.5),
    "truncated_90": _truncated(0.9),
    "truncated_99": _truncated(0.999),
    "zip_start_only": lambda _: b"PK\x03\x04",
    "pickle_start_only": lambda _: b"\x80\x02",
    "torchscript": lambda _: archive(b"\x80\x02N.", [], code__model=b"def forward(self): pass"),
    "torchscript_constants": lambda _: _of_zip({"m/data.pkl": b"N.", "m/constants.pkl": b"N."}),
    "other_zip": lambda _: _of_zip({"word/document.xml": b"<xml/>"}),
    "zip_bomb": lambda _: _of_zip({"a/data.pkl": b"N.", "a/data/0": bytes(50_000_000)}, zipfile.ZIP_DEFLATED),
    "claims_more": lambda _: _claims_more(),
    "many_entries": lambda _: _of_zip({f"a/data/{i}": b"" for i in range(70_000)}),
    "huge_integer": lambda _: _zipped(b"\x80\x02\x8b" + struct.pack("<i", 1 << 20) + bytes(1 << 20) + b"."),
    "huge_written_integer": lambda _: _zipped(b"I" + b"9" * 900 + b"\n."),
    "line_without_end": lambda _: _zipped(b"I" + b"9" * 100_000),
    "negative_length": lambda _: _zipped(b"\x80\x02T\xff\xff\xff\xff."),
    "length_beyond_the_end": lambda _: _zipped(b"\x80\x02X\xff\xff\xff\x7fa."),
    "nested_lists": lambda _: _zipped(b"\x80\x02" + b"]" * 90_000 + b"a" * 89_999 + b"."),
    "nested_tuples": lambda _: _zipped(b"\x80\x02)" + b"\x85" * 190_000 + b"."),
    "nested_tuple_as_key": lambda _: _zipped(b"\x80\x02})" + b"\x85" * 190_000 + b"Ns."),
    "laughs": lambda _: _zipped(
        b"\x80\x02]" + b"q\x00" + b"".join(b"]q%c(h%ch%ce" % (i, i - 1, i - 1) for i in range(1, 40)) + b"."
    ),
    "too_many_instructions": lambda _: _zipped(b"\x80\x02" + b"N0" * 100_000 + b"N."),
    "cycle": lambda _: _cycle(),
    "stack_underflow": lambda _: _zipped(b"\x80\x02R."),
    "no_mark": lambda _: _zipped(b"\x80\x02t."),
    "missing_memo": lambda _: _zipped(b"\x80\x02h\x07."),
    "unknown_instruction": lambda _: _zipped(b"\x80\x02\xff."),
    "no_stop": lambda _: _zipped(b"\x80\x02N"),
    "tensor_beyond_storage": lambda _: _tensor(2, (4,), (1,), 4),
    "tensor_repeated": lambda _: _tensor(0, (1 << 30,), (0,), 4),
    "tensor_negative": lambda _: _tensor(0, (4,), (-1,), 4),
    "storage_too_short": lambda _: _tensor(0, (1000,), (1,), 1000),
    "many_views": lambda _: _many_views(),
    "a_number": lambda _: archive(*pickled(7)),
    "a_list": lambda _: archive(*pickled([1, 2])),
    "a_dictionary": lambda _: archive(*pickled({"weights": 1})),
    "another_class": lambda _: archive(*pickled(module("torchvision.models.resnet.ResNet"))),
    "model_without_weights": lambda _: archive(*pickled(module("mace.modules.models.MACE"))),
    "botnet": lambda _: archive(*pickled(tree_of(model(), kind="BOTNet"))),
    "late_cutoff": lambda _: archive(*pickled(tree_of(model(), apply_cutoff=False))),
    "no_cutoff": _with_state(r_max=None),
    "not_finite": _with_state(node_embedding__linear__weight=torch.nn.Parameter(torch.full((6,), torch.nan).double())),
    "wrong_size": _with_state(node_embedding__linear__weight=torch.nn.Parameter(torch.ones(7).double())),
    "huge_atomic_number": _with_state(atomic_numbers=torch.tensor([1, 6, 500])),
    "negative_atomic_number": _with_state(atomic_numbers=torch.tensor([-1, 6, 8])),
    "other_radial_functions": _with_state(
        radial_embedding__bessel_fn__bessel_weights=torch.tensor([1.0, 2.0, 3.0, 4.0]).double()
    ),
    "other_couplings": _with_state(
        products__0__symmetric_contractions__contractions__0__U_matrix_2=torch.ones(4, 4, 2).double()
    ),
    "claims_high_order": _with_state(
        **{
            f"products__{layer}__symmetric_contractions__contractions__0__U_matrix_{order}": torch.zeros(4, 1).double()
            for layer in (0, 1)
            for order in range(3, 9)
        }
    ),
}
"""Files that are damaged, something else, or hold what cannot be."""

assert PLAN.l_max == 1, "the shapes above are those of this plan"


def main(folder: Path) -> None:
    """Try to open every file of a folder."""
    import json
    import resource
    import time

    from mace.compat.importing import import_original
    from mace.errors import UserError

    (folder / "warm").write_bytes(original_bytes())
    import_original(folder / "warm")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for path in sorted(folder.glob("*.model")):
        start = time.process_time()
        try:
            said = import_original(path).summary()
            kind = "opened"
        except UserError as error:
            said, kind = str(error), "refused"
        seconds = time.process_time() - start
        peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3
        print(json.dumps({"name": path.stem, "kind": kind, "said": said, "seconds": seconds, "megabytes": peak}))


if __name__ == "__main__":
    import sys

    main(Path(sys.argv[1]))
