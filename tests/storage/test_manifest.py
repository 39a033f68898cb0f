import pytest

from fl_lightning.errors import InputError
from fl_lightning.storage.files import read_json
from fl_lightning.storage.manifest import check_manifest, with_digest, without_digest, write_manifest


def damaged(folder, how):
    path = folder / "personal" / "hr.bin"
    if how == "gone":
        path.unlink()
    elif how == "shorter":
        path.write_bytes(b"12")
    elif how == "other bytes":
        path.write_bytes(b"132")
    elif how == "list":
        (folder / "manifest.json").write_text("[]")
    elif how == "outside":
        (folder / "manifest.json").write_text('{"../x": {}}')
    else:
        (folder / "manifest.json").unlink()


@pytest.mark.parametrize("how", ["gone", "shorter", "other bytes", "list", "outside", "no manifest"])
def test_a_manifest_tells_what_has_changed(tmp_path, how):
    (tmp_path / "personal").mkdir()
    (tmp_path / "personal" / "hr.bin").write_bytes(b"123")
    write_manifest(tmp_path)
    assert read_json(tmp_path / "manifest.json") == {
        "personal/hr.bin": {
            "bytes": 3,
            "sha256": "a665a45920422f9d417e4867efdc4fb8a04a1f3fff1fa07e998e86f7f7a27ae3",
        }
    }
    check_manifest(tmp_path)
    damaged(tmp_path, how)
    with pytest.raises(InputError, match="hr.bin" if how in ("gone", "shorter", "other bytes") else "manifest.json"):
        check_manifest(tmp_path)


def test_a_digest_in_front_of_bytes_shows_every_change():
    assert with_digest(b"abc").hex().startswith("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
    assert without_digest(with_digest(b"abc")) == b"abc"
    assert without_digest(with_digest(b"")) == b""
    for torn in (b"", b"abc", with_digest(b"abc")[:-1], with_digest(b"abc") + b"d"):
        with pytest.raises(ValueError, match="SHA-256"):
            without_digest(torn)
