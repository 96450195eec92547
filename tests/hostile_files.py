"""Hostile and broken files that look like models of mace-torch, by name, and what must be said of each."""

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


def _tensor_text(n: int) -> bytes:
    """Return a checkpoint of a tensor with a dimension that no integer of four bytes holds."""
    written = _tensor(0, (7,), (0,), 4)
    with zipfile.ZipFile(io.BytesIO(written)) as read:
        data = read.read("archive/data.pkl").replace(b"J\x07\x00\x00\x00", b"\x8a\x05" + n.to_bytes(5, "little"))
    return _zipped(data)


def _many_views(count: int) -> bytes:
    """Return a checkpoint of tensors that all are the same storage of a megabyte."""
    one = (
        b"ctorch._utils\n_rebuild_tensor_v2\n((Vstorage\nctorch\nDoubleStorage\nV0\nVcpu\nJ"
        + struct.pack("<i", 1 << 17)
        + b"tQK\x00J"
        + struct.pack("<i", 1 << 17)
        + b"\x85K\x01\x85\x89NtRq\x01"
    )
    entries = b"".join(f"Vinteractions.{i}.weight\n".encode() + (one if i == 0 else b"h\x01") for i in range(count))
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
    "tensor_one_beyond_storage": lambda _: _tensor(1, (4,), (1,), 4),
    "tensor_two_wide_one_beyond": lambda _: _tensor(0, (2, 2), (3, 2), 4),
    "tensor_of_more_than_its_storage": lambda _: _tensor(0, (8,), (0,), 4),
    "tensor_of_no_dimension_beyond": lambda _: _tensor(4, (), (), 4),
    "tensor_with_a_shape_too_long": lambda _: _tensor(0, (1,) * 33, (1,) * 33, 4),
    "storage_of_more_than_the_file": lambda _: _tensor(0, (5,), (1,), 5),
    "many_views": lambda _: _many_views(10_000),
    "four_views": lambda _: _many_views(4),
    "integer_of_17_bytes": lambda _: _zipped(b"\x80\x02\x8a\x11" + b"\xff" * 16 + b"\x7f."),
    "integer_of_claimed_gigabyte": lambda _: _zipped(b"\x80\x02\x8b" + struct.pack("<i", 1 << 30) + b"\x01."),
    "shape_of_2_to_the_34": lambda _: _tensor_text(1 << 34),
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

_DAMAGED = r"this is no complete file of mace-torch \(%s\); copy or download it again"
_NO_MODEL = "this file holds something else, not a model"
_CALLS = r"the file is hostile \(it asks to call %s, which no model does\) and was refused; nothing of it was run"
_NOT_HERE = "this model of mace-torch cannot be converted: %s"

SAID: dict[str, str] = {
    **dict.fromkeys(ATTACKS, _CALLS % "os.system"),
    "posix_system": _CALLS % "posix.system",
    "eval": _CALLS % "builtins.eval",
    "exec": _CALLS % "__builtin__.exec",
    "popen": _CALLS % "subprocess.getoutput",
    "nested_names": _CALLS % "os.path",
    "dotted_name": _CALLS % "builtins.eval.__call__.__self__",
    "new_object": _CALLS % "subprocess.Popen",
    "new_object_keywords": _CALLS % "subprocess.Popen",
    "extension": _DAMAGED % r"the instruction '.x82' at byte 2 is not known",
    "foreign_storage": _DAMAGED % "it refers to something that is no storage",
    "empty": "the file is empty; copy or download it again",
    "html": "this is a web page, not a model",
    "html_with_space": "this is a web page, not a model",
    "git_lfs": "only a pointer to the model in Git LFS",
    **dict.fromkeys(["random_bytes", "elf", "text", "gzip"], "this is neither a model of this program nor a file"),
    **dict.fromkeys([f"truncated_{part}" for part in (10, 50, 90, 99)], _DAMAGED % "File is not a zip file"),
    "zip_start_only": _DAMAGED % "File is not a zip file",
    "pickle_start_only": _DAMAGED % "it is cut off",
    "torchscript": "this is a TorchScript archive",
    "torchscript_constants": "this is a TorchScript archive",
    "other_zip": "this is a zip archive, but none of torch",
    "zip_bomb": "the archive is compressed, which torch never does",
    "claims_more": "the archive claims to hold more bytes than it has",
    "many_entries": "this is a zip archive, but none of torch",
    "huge_integer": _DAMAGED % "an integer has 1048576 bytes",
    "integer_of_17_bytes": _DAMAGED % "an integer has 17 bytes",
    "integer_of_claimed_gigabyte": _DAMAGED % "an integer has 1073741824 bytes",
    "huge_written_integer": _DAMAGED % "a number has 900 digits",
    "line_without_end": _DAMAGED % "a line at byte 1 does not end",
    "negative_length": _DAMAGED % "it is cut off",
    "length_beyond_the_end": _DAMAGED % "it is cut off",
    **dict.fromkeys(["nested_lists", "nested_tuples", "laughs", "a_number", "a_list"], _NO_MODEL),
    **dict.fromkeys(["nested_tuple_as_key", "a_dictionary"], "this file holds no weights of a MACE model"),
    "too_many_instructions": _DAMAGED % "it has more than 200000 instructions",
    "cycle": "modules lie in each other more deeply than in any model",
    "stack_underflow": _DAMAGED % "nothing is left on its stack at byte 3",
    "no_mark": _DAMAGED % "a mark is missing at byte 3",
    "missing_memo": _DAMAGED % "it refers to 7, which was not stored, at byte 4",
    "unknown_instruction": _DAMAGED % "the instruction '.' at byte 2 is not known",
    "no_stop": _DAMAGED % "it is cut off",
    **dict.fromkeys(
        [
            "tensor_beyond_storage", "tensor_one_beyond_storage", "tensor_two_wide_one_beyond",
            "tensor_of_more_than_its_storage", "tensor_of_no_dimension_beyond",
        ],
        _DAMAGED % "a tensor reaches beyond its storage",
    ),
    **dict.fromkeys(["tensor_repeated", "many_views", "four_views"], _DAMAGED % "its tensors are larger than the file"),
    **dict.fromkeys(["tensor_negative", "shape_of_2_to_the_34"], _DAMAGED % "a tensor has no sensible shape"),
    "tensor_with_a_shape_too_long": _DAMAGED % "a tensor has no storage or no shape",
    **dict.fromkeys(
        ["storage_too_short", "storage_of_more_than_the_file"], _DAMAGED % "a storage is shorter than its tensor"
    ),
    "another_class": _NOT_HERE % "its kind is ResNet: this class of models is not known",
    "model_without_weights": _NOT_HERE % "it has no 'atomic_energies_fn.atomic_energies'",
    "botnet": _NOT_HERE % "its kind is BOTNet",
    "late_cutoff": _NOT_HERE % "it says of itself that apply_cutoff is both",
    "no_cutoff": _NOT_HERE % "it has no 'r_max'",
    "not_finite": _NOT_HERE % "the weights of embedding are NaN or infinite",
    "wrong_size": _NOT_HERE % "the 7 weights of node_embedding do not fit",
    "huge_atomic_number": _NOT_HERE % ".*atomic_numbers.2' is not valid .*118, not 500",
    "negative_atomic_number": _NOT_HERE % ".*atomic_numbers.0' is not valid .*1, not -1",
    "other_radial_functions": _NOT_HERE % "'radial_embedding.bessel_fn.bessel_weights' differs",
    "other_couplings": _NOT_HERE % "its polynomials of degree 0 and order 2 are not those",
    "claims_high_order": _NOT_HERE % r".*U_matrix_3' has the shape \[4, 1\]",
}  # fmt: skip
"""Patterns of what is said of each, so that none is refused by accident."""

assert PLAN.l_max == 1, "the shapes above are those of this plan"
