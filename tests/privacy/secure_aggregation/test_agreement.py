import pytest

from fl_lightning.privacy.secure_aggregation.agreement import (
    common_secret,
    decrypt,
    encrypt,
    identity_key,
    is_signed,
    public_key,
    sign,
)
from fl_lightning.privacy.secure_aggregation.terms import SecureAggregationError

# RFC 7748, 6.1
ALICE = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
BOB = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")


def test_public_keys_of_the_rfc():
    assert public_key(ALICE).hex() == "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    assert public_key(BOB).hex() == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"


def test_two_have_a_secret_for_each_purpose():
    assert common_secret(ALICE, public_key(BOB), b"x") == common_secret(BOB, public_key(ALICE), b"x")
    assert common_secret(ALICE, public_key(BOB), b"x") != common_secret(ALICE, public_key(BOB), b"y")
    assert common_secret(ALICE, public_key(BOB), b"x") != common_secret(ALICE, public_key(ALICE), b"x")


@pytest.mark.parametrize("public", [bytes(32), b"\x01" + bytes(31), b"short"])
def test_keys_that_give_no_secret_are_refused(public):
    with pytest.raises(SecureAggregationError, match="no common secret"):
        common_secret(ALICE, public, b"x")


def test_signatures():
    signature = sign(ALICE, b"text")
    assert is_signed(identity_key(ALICE), signature, b"text")
    assert not is_signed(identity_key(ALICE), signature, b"other text")
    assert not is_signed(identity_key(BOB), signature, b"text")
    assert not is_signed(identity_key(ALICE), b"", b"text")
    assert not is_signed(b"", signature, b"text")


def test_encryption_is_bound_to_its_context():
    message = encrypt(ALICE, b"share", b"a to b")
    assert decrypt(ALICE, message, b"a to b") == b"share"
    assert encrypt(ALICE, b"share", b"a to b") != message
    for key, text, context in (
        (BOB, message, b"a to b"),
        (ALICE, message, b"a to c"),
        (ALICE, message[:-1], b"a to b"),
    ):
        with pytest.raises(SecureAggregationError, match="changed on its way"):
            decrypt(key, text, context)
    with pytest.raises(SecureAggregationError, match="changed on its way"):
        decrypt(ALICE, b"", b"a to b")
