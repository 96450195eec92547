"""Read ``torch.save`` files without torch's unpickler: names stay names, tensors become NumPy arrays."""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from mace.errors import UserError
from mace.files.pickles import MAX_TEXT, HostileError, Machine, Name, PickleError, Record

ZIP_START = b"PK\x03\x04"
PICKLE_START = b"\x80"
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
MAX_DIRECTORY = 1 << 22
"""Bytes of the table of contents of an archive; that of a model has some ten thousand."""
MAX_PICKLE = 1 << 27
MAX_FILE = 1 << 33
MAX_DIMENSIONS = 32
_CHUNK = 1 << 20

STORAGES = {
    "DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2", "LongStorage": "<i8", "IntStorage": "<i4",
    "ShortStorage": "<i2", "CharStorage": "<i1", "ByteStorage": "<u1", "BoolStorage": "?",
    "BFloat16Storage": "<u2", "ComplexFloatStorage": "<c8", "ComplexDoubleStorage": "<c16",
}  # fmt: skip
"""NumPy's words for the types of torch; bfloat16 has none, its bits are kept."""


@dataclass(frozen=True)
class Storage:
    """The memory of a tensor, not yet read: a key of `STORAGES`, its name in the file and its number of values."""

    kind: str
    key: str
    n_values: int

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy data type of the values."""
        return np.dtype(STORAGES[self.kind])


ReadStorage = Callable[[Storage], bytes]


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that has not been read yet; `TorchFile.arrays` reads it.

    Attributes:
        storage: The storage that holds its values.
        offset: Index of the first value in the storage.
        shape: Its shape.
        strides: Strides in the storage, in number of values.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def read(self, read_storage: ReadStorage) -> np.ndarray:
        """Read the values of the tensor from the bytes of its storage.

        Raises:
            PickleError: If the tensor does not lie within its storage.
        """
        storage, size, dtype = self.storage, math.prod(self.shape), self.storage.dtype
        if size == 0:
            return np.zeros(self.shape, dtype)
        last = self.offset + sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
        if last >= storage.n_values or size > storage.n_values:
            raise PickleError("a tensor reaches beyond its storage")
        data = read_storage(storage)
        if len(data) < storage.n_values * dtype.itemsize:
            raise PickleError("a storage is shorter than its tensor")
        values = np.frombuffer(data, dtype, count=storage.n_values)[self.offset :]
        steps = tuple(step * dtype.itemsize for step in self.strides)
        return np.lib.stride_tricks.as_strided(values, self.shape, steps, writeable=False).copy()


@dataclass(frozen=True)
class TorchFile:
    """The content of a file written by ``torch.save``.

    Attributes:
        path: The file.
        size: Its size in bytes.
        root: The saved object as `mace.files.pickles.Machine` describes it, with a `StoredTensor` for every tensor.
        open_storages: Opens the file again and returns a function that gives the bytes of a storage.
    """

    path: Path
    size: int
    root: Any
    open_storages: Callable[[], AbstractContextManager[ReadStorage]]

    def arrays(self, tensors: Mapping[str, StoredTensor]) -> dict[str, np.ndarray]:
        """Read tensors into NumPy arrays.

        Raises:
            UserError: If a tensor does not lie within its storage, or all together are larger than the file.
        """
        with _explaining(self.path), self.open_storages() as read_storage:
            total = sum(math.prod(t.shape) * t.storage.dtype.itemsize for t in tensors.values())
            if total > 2 * self.size + MAX_TEXT:
                raise PickleError("its tensors are larger than the file")
            return {name: tensor.read(read_storage) for name, tensor in tensors.items()}


def is_torch_file(path: str | Path) -> bool:
    """Return whether a file begins like those of ``torch.save``; False if it cannot be read."""
    try:
        with Path(path).open("rb") as stream:
            start = stream.read(9)
    except OSError:
        return False
    # safetensors files begin with the length of their header, which may look like the beginning of a pickle
    return start.startswith((ZIP_START, PICKLE_START)) and start[8:] != b"{"


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    digest = sha256()
    with path.open("rb") as stream:
        while block := stream.read(_CHUNK):
            digest.update(block)
    return digest.hexdigest()


def read_torch_file(path: str | Path) -> TorchFile:
    """Read a file written by ``torch.save``.

    Args:
        path: The file.

    Returns:
        Its content. Nothing that the file names is imported or called.

    Raises:
        UserError: If it is not such a file, is damaged, or is larger than any model.
    """
    path = Path(path)
    with _explaining(path):
        size = path.stat().st_size
        if size > MAX_FILE:
            raise UserError(f"{path}: the file has {size / 1e9:.0f} GB, more than any model; name the model file.")
        with path.open("rb") as stream:
            start = stream.read(512)
        if not start:
            raise UserError(f"{path}: the file is empty; copy or download it again.")
        text = start.lstrip().lower()
        if text.startswith((b"<!doctype", b"<html", b"<?xml")):
            raise UserError(
                f"{path}: this is a web page, not a model; download the file itself (the raw or release link)."
            )
        if text.startswith(b"version https://git-lfs"):
            raise UserError(
                f"{path}: this is only a pointer to the model in Git LFS; fetch the file with 'git lfs pull'."
            )
        if not start.startswith((ZIP_START, PICKLE_START)):
            raise UserError(f"{path}: this is neither a model of this program nor a file that torch.save wrote.")
        return (_read_archive if start.startswith(ZIP_START) else _read_legacy)(path, size)


@contextmanager
def _explaining(path: Path) -> Iterator[None]:
    """Turn the errors that a damaged file causes into a `UserError` of one sentence."""
    try:
        yield
    except UserError:
        raise  # a ValueError that already explains what is wrong
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file, seen from {Path.cwd()}.") from error
    except IsADirectoryError as error:
        raise UserError(f"{path}: this is a directory; name the model file in it.") from error
    except HostileError as error:
        raise UserError(f"{path}: the file is hostile ({error}) and was refused; nothing of it was run.") from error
    except (
        PickleError, zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, RuntimeError,
        ValueError, KeyError, IndexError, OverflowError, OSError,
    ) as error:  # fmt: skip
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise UserError(
            f"{path}: this is no complete file of mace-torch ({reason}); copy or download it again."
        ) from error


class _BoundedFile(io.FileIO):
    """A file that is never read in large pieces, so that a wrong size in an archive costs no memory."""

    def read(self, size: int | None = -1) -> bytes:
        """Read at most `MAX_DIRECTORY` bytes at once."""
        wanted = MAX_DIRECTORY + 1 if size is None or size < 0 else size
        found = super().read(wanted) or b"" if wanted <= MAX_DIRECTORY + 1 else b""
        if len(found) > MAX_DIRECTORY or wanted > MAX_DIRECTORY + 1:
            raise PickleError("its table of contents is larger than that of any model")
        return found


def _read_archive(path: Path, size: int) -> TorchFile:
    """Read a zip archive, the format of torch 1.6 and later."""
    with _BoundedFile(path) as stream, zipfile.ZipFile(stream) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        names = {name.partition("/")[2]: entry for name, entry in entries.items()}
        if "constants.pkl" in names or any(name.startswith("code/") for name in names):
            raise UserError(
                f"{path}: this is a TorchScript archive, compiled for other programs; name the .model file it was made "
                "from, without _compiled or -lammps in its name."
            )
        if "data.pkl" not in names:
            raise UserError(f"{path}: this is a zip archive, but none of torch; name a .model file.")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
            raise UserError(f"{path}: the archive is compressed, which torch never does; it is refused.")
        if sum(entry.file_size for entry in entries.values()) > size:
            raise UserError(f"{path}: the archive claims to hold more bytes than it has; it is refused.")
        if "byteorder" in names and _entry(archive, names["byteorder"], 16) != b"little":
            raise UserError(f"{path}: the file was written on a big-endian machine, which is not supported.")
        data = _entry(archive, names["data.pkl"], MAX_PICKLE)
    wanted = {name.removeprefix("data/"): entry for name, entry in names.items() if name.startswith("data/")}

    @contextmanager
    def open_storages() -> Iterator[ReadStorage]:
        with _BoundedFile(path) as again, zipfile.ZipFile(again) as opened:

            def read_storage(storage: Storage) -> bytes:
                if storage.key not in wanted:
                    raise PickleError(f"the storage '{storage.key[:20]}' is missing")
                return _entry(opened, wanted[storage.key], size)

            yield read_storage

    return TorchFile(path, size, Machine(data, 0, CONSTRUCTORS, _storage).read(), open_storages)


def _entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, limit: int) -> bytes:
    if entry.file_size > limit:
        raise PickleError(f"'{entry.filename[:40]}' has {entry.file_size} bytes")
    with archive.open(entry) as stream:
        return b"".join(iter(lambda: stream.read(_CHUNK), b""))


def _read_legacy(path: Path, size: int) -> TorchFile:
    """Read a file in the format used before torch 1.6: several pickles, followed by the raw storages."""
    if size > MAX_PICKLE:
        raise PickleError(f"it has {size} bytes")
    data, place = path.read_bytes(), 0
    storages: dict[str, Storage] = {}

    def storage(identifier: Any) -> Storage:
        found = _storage(identifier)
        storages[found.key] = found
        return found

    pickles: list[Any] = []  # magic number, version of the format, description of the machine, the object, storages
    while len(pickles) < 5:
        machine = Machine(data, place, CONSTRUCTORS, storage)
        pickles.append(machine.read())
        place = machine.place
        if pickles[0] != LEGACY_MAGIC:
            raise UserError(f"{path}: this is a pickle, but none that torch.save wrote; name a .model file.")
    *_, root, keys = pickles
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise PickleError("the list of its storages is missing")
    places: dict[str, tuple[int, int]] = {}
    for key in keys:
        (count,) = struct.unpack_from("<q", data, place)
        # the type of a storage that nothing refers to is not known; torch writes none
        length = count * (storages[key].dtype.itemsize if key in storages else 1)
        if not 0 <= length <= len(data) - place - 8:
            raise PickleError("it is cut off")
        places[key] = (place + 8, length)
        place += 8 + length

    def read_storage(storage: Storage) -> bytes:
        if storage.key not in places:
            raise PickleError(f"the storage '{storage.key[:20]}' is missing")
        start, length = places[storage.key]
        return data[start : start + length]

    return TorchFile(path, size, root, lambda: nullcontext(read_storage))


def _storage(identifier: Any) -> Storage:
    """Read torch's description of a storage: the word storage, its type, key, device and number of values."""
    word, kind, key, _, count, *_ = identifier
    if word != "storage" or not isinstance(kind, Name) or kind.module not in ("torch", "torch.storage", "torch.cuda"):
        raise PickleError("it refers to something that is no storage")
    if kind.name not in STORAGES:
        raise PickleError(f"tensors of the type {kind.name[:40]} are not known")
    if not isinstance(key, str) or not isinstance(count, int) or not 0 <= count <= MAX_FILE:
        raise PickleError("a storage has no sensible key or size")
    return Storage(kind.name, key, count)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> StoredTensor:
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, Storage) or len(shape) != len(strides) or len(shape) > MAX_DIMENSIONS:
        raise PickleError("a tensor has no storage or no shape")
    if not all(type(n) is int and 0 <= n <= MAX_FILE for n in numbers):
        raise PickleError("a tensor has no sensible shape")
    return StoredTensor(storage, offset, tuple(shape), tuple(strides))


def _ordered(*arguments: Any) -> dict[Any, Any]:
    """Build an ordered dictionary from the arguments that any version of Python pickles for it."""
    pairs = arguments[0] if arguments else []
    if not isinstance(pairs, list):
        raise PickleError("an ordered dictionary is not made from pairs")
    return {key: value for key, value in pairs if isinstance(key, (str, int))}


def _numpy_scalar(dtype: Any, data: Any = b"") -> Any:
    """Return a number that was saved as a NumPy scalar."""
    kind = dtype.arguments[0] if isinstance(dtype, Record) and dtype.arguments else None
    forms = {"f8": "<d", "f4": "<f", "i8": "<q", "i4": "<i", "b1": "?"}
    if kind not in forms or not isinstance(data, bytes):
        raise PickleError("a number of NumPy is of an unknown type")
    return struct.unpack(forms[kind], data)[0]


CONSTRUCTORS: dict[Name, Callable[..., Any]] = {
    Name("collections", "OrderedDict"): _ordered,
    Name("torch._utils", "_rebuild_tensor_v2"): _tensor,
    Name("torch._utils", "_rebuild_tensor"): _tensor,
    Name("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    Name("torch._utils", "_rebuild_parameter_with_state"): lambda tensor, *_: tensor,
    Name("torch._tensor", "_rebuild_from_type_v2"): lambda function, kind, arguments, *_: (
        _tensor(*arguments) if isinstance(arguments, tuple) and arguments else Record(None)
    ),
    Name("torch", "Size"): lambda values=(): tuple(values) if isinstance(values, (list, tuple)) else (),
    # bytes that Python pickles as text; what was not read stays unread
    Name("_codecs", "encode"): lambda text, *_: text.encode("latin-1") if isinstance(text, str) else text,
    Name("__builtin__", "bytes"): lambda: b"",
    Name("numpy.core.multiarray", "scalar"): _numpy_scalar,
    Name("numpy._core.multiarray", "scalar"): _numpy_scalar,
}
"""All that is built rather than written down; none of it does anything but keep its arguments."""
