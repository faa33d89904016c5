"""Readers of npz and JSON files from others: plain arrays and plain values, however damaged or hostile the file is.

Nothing is unpickled or imported, no file but the one asked for is opened, and sizes are checked before memory is taken.
What is written stands there as a whole or not at all.
"""

import json
import math
import os
import reprlib
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "UnreadableFile",
    "json_value",
    "numbers",
    "parse_json",
    "read_arrays",
    "read_json",
    "replacing",
    "shortened",
    "write_json",
]

MAX_TEXT = 1 << 28  # bytes of a JSON file
MAX_BYTES = 1 << 33  # of all arrays of a file
MAX_ARRAYS = 10_000  # of a file
KINDS = "biufU"  # booleans, numbers and text

_short = reprlib.Repr()
_short.maxlevel, _short.maxstring, _short.maxother = 3, 80, 80


class UnreadableFile(ValueError):  # noqa: N818  # in the manner of zipfile.BadZipFile
    """A file is missing, damaged, or not of the kind that it should be."""


def shortened(value: Any) -> str:
    """A value as it stands in an error message: its ``repr``, cut to some hundred characters."""
    try:
        text = _short.repr(value)
    except ValueError:  # a whole number of more than 4300 digits
        return f"a {type(value).__name__} that is too long to show"
    return text if len(text) <= 300 else f"{text[:297]}..."


def parse_json(text: str, source: str) -> Any:
    """The value of a JSON text; ``source`` names it in errors.

    Raises
    ------
    UnreadableFile
        If it is not JSON, is nested too deeply, or names a key twice in one object.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"the key {shortened(twice)} is there twice")
        return content

    try:
        return json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:  # numbers of more than 4300 digits are a ValueError
        raise UnreadableFile(f"{source} is not readable JSON: {error}") from error


def _require_regular(path: Path) -> int:
    """The size of a regular file: pipes and devices, which may never end, are refused."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is not a regular file")
    return status.st_size


def read_json(path: Path) -> Any:
    """The value of a JSON file.

    Raises
    ------
    UnreadableFile
        As `parse_json`, and if the file cannot be read or has more than 256 MiB.
    """
    try:
        if _require_regular(path) > MAX_TEXT:
            raise ValueError(f"it has more than {MAX_TEXT >> 20} MiB")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UnreadableFile(f"{path}: there is no such file") from error
    except (OSError, ValueError) as error:
        raise UnreadableFile(f"{path} is not readable JSON: {error}") from error
    return parse_json(text, str(path))


def _read_member(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> NDArray[Any]:
    """One array: its header is checked against the size of the member before memory is taken."""
    with archive.open(entry) as stream:
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{entry.filename} has the npy format {version}; 1.0 and 2.0 can be read")
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_columns, dtype = read_header(stream)
        if dtype.kind not in KINDS or dtype.names is not None:
            raise ValueError(f"{entry.filename} has the type {dtype}, but plain numbers, booleans or text are allowed")
        if any(type(length) is not int or length < 0 for length in shape) or len(shape) > 32:
            raise ValueError(f"{entry.filename} has the shape {shortened(shape)}")
        size, rest = math.prod(shape) * dtype.itemsize, entry.file_size - stream.tell()
        if size != rest:
            raise ValueError(f"{entry.filename} has {rest} bytes, but its shape {shortened(shape)} needs {size}")
        content = stream.read(size + 1)  # to the end of the member, whose checksum is then compared
    if len(content) != size:
        raise ValueError(f"{entry.filename} has {len(content)} bytes, but needs {size}")
    array: NDArray[Any] = np.frombuffer(content, dtype=dtype).reshape(shape, order="F" if by_columns else "C")
    array = array.astype(dtype.newbyteorder("="), order="C")  # numbers of either byte order
    if dtype.kind == "b" and size and int(array.view(np.uint8).max()) > 1:
        raise ValueError(f"{entry.filename} has booleans other than 0 and 1")
    if dtype.kind == "U":
        array.tolist()  # refuses what is no character
    return array


def read_arrays(source: str | Path | IO[bytes]) -> dict[str, NDArray[Any]]:
    """The arrays of an npz file by name, in native byte order and writable.

    Parameters
    ----------
    source : path or binary stream

    Raises
    ------
    UnreadableFile
        If it is missing, truncated, damaged, holds anything but plain arrays, or more than 8 GiB.
    """
    name = str(source) if isinstance(source, str | Path) else str(getattr(source, "name", "the file"))
    try:
        if isinstance(source, str | Path):
            _require_regular(Path(source))
        with zipfile.ZipFile(source) as archive:
            entries = archive.infolist()
            if len(entries) > MAX_ARRAYS or sum(entry.file_size for entry in entries) > MAX_BYTES:
                raise ValueError(f"it has more than {MAX_ARRAYS} arrays, or more than {MAX_BYTES >> 30} GiB")
            arrays = {entry.filename.removesuffix(".npy"): _read_member(archive, entry) for entry in entries}
            if len(arrays) < len(entries):
                raise ValueError("an array is there twice")
            return arrays
    except Exception as error:  # zipfile, its decompressors and numpy raise a dozen types for damaged bytes
        reason = str(error) or type(error).__name__
        raise UnreadableFile(f"{name} is not a readable npz file of plain arrays: {shortened(reason)}") from error


def numbers(array: NDArray[Any], name: str, shape: tuple[int, ...], kinds: str = "fiu") -> NDArray[Any]:
    """An array of that shape with finite numbers of these kinds ("f", "i", "u", "b"); ``name`` names it in errors.

    Raises
    ------
    UnreadableFile
        If it is anything else.
    """
    words = {"f": "real numbers", "i": "whole numbers", "u": "whole numbers >= 0", "b": "booleans"}
    allowed = f"{' or '.join(words[kind] for kind in kinds)}, shape {shape}"
    if array.dtype.kind not in kinds or array.shape != shape:
        raise UnreadableFile(f"{name} of type {array.dtype}, shape {array.shape} is not allowed: it must be {allowed}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise UnreadableFile(f"{name} is not allowed: it must be finite {allowed}")
    return array


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The name of a temporary file beside ``path``, with its ending, to be written in the block.

    Missing folders are made. The file takes the place of ``path`` at the end of the block; if that fails, or the block
    does, it is removed, and what was there stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{os.getpid()}.part.{path.name}")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def json_value(value: Any) -> Any:
    """The value with NaN and infinities, also inside lists and dicts, replaced by None."""
    if isinstance(value, dict):
        return {name: json_value(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [json_value(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, content: Any) -> None:
    """Write JSON, as a whole or not at all (see `replacing`)."""
    with replacing(path) as part:
        part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
