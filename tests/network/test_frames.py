import pytest

from fl_lightning.network.frames import MAX_HEADER, pack, unpack


@pytest.mark.parametrize("body", [b"", b"\0\xff", b"x" * 100_000])
def test_a_frame_comes_back_as_it_was(body):
    assert unpack(pack({"to": 2**63, "kind": "train"}, body)) == ({"to": 2**63, "kind": "train"}, body)


@pytest.mark.parametrize(
    ("frame", "problem"),
    [
        (b"", "whose header would end at byte 4"),
        (b"\x05\0\0\0{}", "would end at byte 9"),
        (b"\xff\xff\xff\xff{}", "would end"),
        (b"\x02\0\0\0{x", "expected JSON"),
        (b"\x02\0\0\0[]", "got list"),
        ((MAX_HEADER + 1).to_bytes(4, "little") + b" " * (MAX_HEADER + 2), "would end"),
    ],
)
def test_what_is_no_frame_is_refused(frame, problem):
    with pytest.raises(ValueError, match=problem):
        unpack(frame)
