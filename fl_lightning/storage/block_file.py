"""A file of blocks that are found by key, written by several processes: a cache that may be lost at any time.

Blocks are appended under the system's lock of the file. Each has a header (its key, length and checksums), so a block
that a kill has torn is cut off by the next writer, a damaged block counts as missing, and a file whose headers are
damaged is begun anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from fl_lightning.storage.files import SECRET_FILE_MODE, SECRET_FOLDER_MODE

log = logging.getLogger(__name__)

KEY_BYTES = 16
_FIELDS = struct.Struct("<4s16sII")  # magic, key, length and CRC of the content
_CHECK = struct.Struct("<I")  # CRC of the fields
_HEADER_BYTES = _FIELDS.size + _CHECK.size
_MAGIC = b"FLB1"


class BlockFile:
    """Blocks of bytes by key, in one file that only its owner may read.

    Args:
        path: of the file; missing folders are made, for the owner only.

    Raises:
        OSError: if it cannot be opened for reading and writing.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "blocks.bin"
        >>> BlockFile(path).put(bytes(16), b"hello")
        >>> BlockFile(path).get(bytes(16))
        b'hello'
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=SECRET_FOLDER_MODE)
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, SECRET_FILE_MODE)
        self._starts: dict[bytes, int] = {}
        self._end = 0

    def get(self, key: bytes) -> bytes | None:
        """The block that was put last under a key; None if there is none, or if it is damaged."""
        if key not in self._starts:
            self._scan()  # another process may have written it
        start = self._starts.get(key)
        if start is None:
            return None
        header = self._header(start)
        if header is not None and header[0] == key:
            content = os.pread(self._file, header[1], start + _HEADER_BYTES)
            if zlib.crc32(content) == header[2]:
                return content
        log.warning("%s: a block is damaged and is made again", self.path)
        self._starts.pop(key)
        return None

    def put(self, key: bytes, content: bytes) -> None:
        """Append a block."""
        with self._locked():
            if not self._scan():
                log.warning("%s is damaged and is begun anew", self.path)
                self._end, self._starts = 0, {}
            os.ftruncate(self._file, self._end)  # what a killed process has left unfinished
            fields = _FIELDS.pack(_MAGIC, key, len(content), zlib.crc32(content))
            block = fields + _CHECK.pack(zlib.crc32(fields)) + content
            written = 0
            while written < len(block):
                written += os.pwrite(self._file, block[written:], self._end + written)
            self._starts[key], self._end = self._end, self._end + len(block)

    def __len__(self) -> int:
        """Number of keys found so far."""
        return len(self._starts)

    def _scan(self) -> bool:
        """Find the blocks behind those known; whether all headers are sound."""
        size = os.fstat(self._file).st_size
        if size < self._end:  # another process has begun the file anew
            self._end, self._starts = 0, {}
        while self._end + _HEADER_BYTES <= size:
            header = self._header(self._end)
            if header is None:
                return False
            end = self._end + _HEADER_BYTES + header[1]
            if end > size:
                break
            self._starts[header[0]], self._end = self._end, end
        return True

    def _header(self, start: int) -> tuple[bytes, int, int] | None:
        """(key, length, CRC) of the block there; None if there is no sound header."""
        header = os.pread(self._file, _HEADER_BYTES, start)
        if len(header) < _HEADER_BYTES:
            return None
        fields = header[: _FIELDS.size]
        magic, key, length, checksum = _FIELDS.unpack(fields)
        is_sound = magic == _MAGIC and _CHECK.unpack(header[_FIELDS.size :])[0] == zlib.crc32(fields)
        return (key, length, checksum) if is_sound else None

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def __del__(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            os.close(self._file)
