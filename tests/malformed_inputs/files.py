"""Files that are not what they seem, before any structure is read."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import zipfile
from pathlib import Path

import numpy as np

from malformed_inputs.cases import E0S, add, flags_case, has_waters, read, refused, sound, text_case, trained_on, write

GARBAGE = np.random.default_rng(3).bytes(4096)


def _named(name: str) -> list[str]:
    return [f"--train_file={name}", E0S]


add("refused", "a file that is missing", lambda f: _named(str(f / "nowhere.xyz")), "there is no such file")
add("refused", "a directory", lambda f: _named(str(f)), "this folder holds no file")
add("refused", "a name of blanks", lambda f: _named("  "), "empty")
add("refused", "no name", lambda f: _named(""), "--train_file")
add("refused", "a pattern that fits nothing", lambda f: _named(str(f / "*.xyz")), "no file matches this pattern")
add("refused", "a device without content", lambda f: _named("/dev/null"), "not a regular file")
add("refused", "an empty file", text_case(""), "the file is empty")
add("refused", "blank lines only", text_case("\n\n  \n"), "train.xyz")
for _suffix in ("h5", "traj", "db", "json", "xyz.gz"):
    add("refused", f"an empty .{_suffix}", text_case("", name=f"train.{_suffix}"), "the file is empty")
for _suffix in ("xyz", "extxyz", "traj", "h5", "db", "json", "xyz.gz", "npz", "cif", "dat"):
    add("refused", f"random bytes as .{_suffix}", text_case(GARBAGE, name=f"train.{_suffix}"), f"train.{_suffix}")
for _suffix in ("traj", "h5", "db", "json", "cif", "dat"):
    add(
        "refused",
        f"prose as .{_suffix}",
        text_case("These are not atoms.\n" * 9, name=f"train.{_suffix}"),
        f"train.{_suffix}",
    )
add(
    "refused",
    "a page of a server",
    text_case("<!DOCTYPE html>\n<html><body>404 Not Found</body></html>\n"),
    "train.xyz",
)
add(
    "refused",
    "a pointer to a large file",
    text_case("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 12345\n"),
    "structure 0 cannot be read",
)
add("refused", "a name that is not compressed but says so", text_case(sound(), name="train.xyz.gz"), "train.xyz.gz")
add(
    "refused",
    "a compressed file that is cut off",
    text_case(gzip.compress(sound(60).encode())[:-900], name="train.xyz.gz"),
    "train.xyz.gz",
)
add(
    "refused",
    "an xz file that is cut off",
    text_case(lzma.compress(sound(60).encode())[:-60], name="train.xyz.xz"),
    "train.xyz.xz",
)
add("read", "a gzip file", text_case(gzip.compress(sound().encode()), name="train.xyz.gz"), check=has_waters())
add("read", "a bz2 file", text_case(bz2.compress(sound().encode()), name="train.xyz.bz2"), check=has_waters())
add("read", "an xz file", text_case(lzma.compress(sound().encode()), name="train.xyz.xz"), check=has_waters())
add("refused", "a file of another element for validation", flags_case("--valid_file=/dev/null"), "not a regular file")


@refused("a link to nothing", "there is no such file")
def _link_to_nothing(folder: Path) -> list[str]:
    os.symlink(folder / "gone.xyz", folder / "link.xyz")
    return _named(str(folder / "link.xyz"))


@refused("a link to itself", "there is no such file")
def _link_to_itself(folder: Path) -> list[str]:
    os.symlink(folder / "link.xyz", folder / "link.xyz")
    return _named(str(folder / "link.xyz"))


@refused("a pipe", "not a regular file")
def _pipe(folder: Path) -> list[str]:
    os.mkfifo(folder / "pipe.xyz")
    return _named(str(folder / "pipe.xyz"))


@refused("a file given twice", "the same file is given twice")
def _twice(folder: Path) -> list[str]:
    name = write(folder, sound())
    return ["--train_file", name, name, E0S]


@refused("a file given by name and by a link", "the same file is given twice")
def _twice_by_link(folder: Path) -> list[str]:
    name = write(folder, sound())
    os.symlink(name, folder / "link.xyz")
    return ["--train_file", name, str(folder / "link.xyz"), E0S]


@refused("a file given by name and by a pattern", "the same file is given twice")
def _twice_by_pattern(folder: Path) -> list[str]:
    return ["--train_file", write(folder, sound()), str(folder / "*.xyz"), E0S]


@refused("a file in two tables", "the same file is given twice")
def _twice_in_tables(folder: Path) -> list[str]:
    name = write(folder, sound())
    config = write(folder, f"train_file: [{{file: '{name}', energy_key: REF_energy}}, '{name}']\n", "run.yaml")
    return [f"--config={config}", E0S]


@refused("an archive", "train.zip")
def _archive(folder: Path) -> list[str]:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("train.xyz", sound())
    return trained_on(folder, buffer.getvalue(), name="train.zip")


@refused("an array of numbers", "train.npy")
def _array(folder: Path) -> list[str]:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((4, 3)))
    return trained_on(folder, buffer.getvalue(), name="train.npy")


@refused("a trajectory that is cut off", "train.traj")
def _cut_trajectory(folder: Path) -> list[str]:
    from ase.build import molecule
    from ase.io import write as write_structures

    write_structures(folder / "whole.traj", [molecule("H2O")] * 3)
    return trained_on(folder, (folder / "whole.traj").read_bytes()[:-500], name="train.traj")


@read("a name with blanks, brackets and letters beyond ASCII", has_waters())
def _odd_name(folder: Path) -> list[str]:
    return trained_on(folder, sound(), name="my [best] data, µ.xyz")


@read("several files", has_waters())
def _several(folder: Path) -> list[str]:
    text = sound().split("\n3\n")
    first, second = text[0] + "\n", "3\n" + "\n3\n".join(text[1:])
    return ["--train_file", write(folder, first, "a.xyz"), write(folder, second, "b.xyz"), E0S]
