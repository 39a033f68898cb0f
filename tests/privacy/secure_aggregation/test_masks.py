import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from fl_lightning.privacy.secure_aggregation.masks import add_mask


def test_a_long_mask_is_the_stream_of_chacha20():
    count = 200_001
    stream = Cipher(algorithms.ChaCha20(b"k" * 32, bytes(16)), mode=None).encryptor().update(bytes(4 * count))
    total = np.zeros(count, dtype=np.uint32)
    add_mask(total, b"k" * 32)
    np.testing.assert_array_equal(total, np.frombuffer(stream, dtype="<u4"))


def test_adding_and_taking_away_is_exact_modulo_2_to_the_32():
    before = np.random.default_rng(0).integers(0, 2**32, size=70_000, dtype=np.uint32)
    total = before.copy()
    add_mask(total, b"1" * 32)
    add_mask(total, b"2" * 32, sign=-1)
    assert (total != before).mean() > 0.999
    add_mask(total, b"2" * 32)
    add_mask(total, b"1" * 32, sign=-1)
    np.testing.assert_array_equal(total, before)
