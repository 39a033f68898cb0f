import os

import pytest

from fl_lightning.storage.block_file import BlockFile

KEYS = [bytes([k]) * 16 for k in range(4)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache" / "blocks.bin"


def test_every_process_finds_what_any_has_put_and_the_newest_block_of_a_key(path):
    first, second = BlockFile(path), BlockFile(path)
    first.put(KEYS[0], b"one")
    second.put(KEYS[1], b"two")
    assert [first.get(key) for key in KEYS[:3]] == [b"one", b"two", None]
    second.put(KEYS[0], b"three")
    assert BlockFile(path).get(KEYS[0]) == b"three"


def test_only_the_owner_may_read_it(path):
    BlockFile(path).put(KEYS[0], b"private")
    assert [oct(p.stat().st_mode & 0o777) for p in (path, path.parent)] == ["0o600", "0o700"]


def test_a_block_that_a_kill_has_torn_is_cut_off(path):
    BlockFile(path).put(KEYS[0], b"one")
    size = path.stat().st_size
    BlockFile(path).put(KEYS[1], b"two" * 100)
    os.truncate(path, size + 50)
    blocks = BlockFile(path)
    assert (blocks.get(KEYS[1]), blocks.get(KEYS[0])) == (None, b"one")
    blocks.put(KEYS[2], b"after")
    assert [BlockFile(path).get(key) for key in KEYS[:3]] == [b"one", None, b"after"]


def test_a_damaged_block_is_missing_and_can_be_put_again(path, caplog):
    BlockFile(path).put(KEYS[0], b"abcdef")
    BlockFile(path).put(KEYS[1], b"other")
    data = bytearray(path.read_bytes())
    data[data.index(b"abcdef")] ^= 1
    path.write_bytes(data)
    blocks = BlockFile(path)
    assert (blocks.get(KEYS[0]), blocks.get(KEYS[1])) == (None, b"other")
    assert "a block is damaged and is made again" in caplog.text
    blocks.put(KEYS[0], b"abcdef")
    assert BlockFile(path).get(KEYS[0]) == b"abcdef"


@pytest.mark.parametrize("content", [b"not of ours at all, and long enough for a header", bytes(100)])
def test_a_file_with_damaged_headers_is_begun_anew(path, content, caplog):
    path.parent.mkdir()
    path.write_bytes(content)
    blocks = BlockFile(path)
    assert blocks.get(KEYS[0]) is None
    blocks.put(KEYS[0], b"one")
    assert "begun anew" in caplog.text
    assert BlockFile(path).get(KEYS[0]) == b"one"


def test_processes_that_write_at_once_lose_nothing(path):
    def write(number):
        blocks = BlockFile(path)
        for k in range(30):
            blocks.put(bytes([number, k]) * 8, bytes([number, k]) * 50)

    children = []
    for number in range(3):
        child = os.fork()
        if not child:
            write(number)
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    blocks = BlockFile(path)
    assert all(blocks.get(bytes([n, k]) * 8) == bytes([n, k]) * 50 for n in range(3) for k in range(30))
