"""Keys: signed public keys of a round, and secrets that only two clients know.

X25519 (RFC 7748) gives two clients a common secret, Ed25519 (RFC 8032) binds a round's public keys to a client's
identity, HKDF-SHA256 (RFC 5869) derives keys for one purpose of one round, ChaCha20-Poly1305 (RFC 8439) encrypts
shares. Signatures and derived keys contain `Terms.digest`, so keys of another round are refused.
"""

from __future__ import annotations

import os

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fl_lightning.privacy.secure_aggregation.terms import SecureAggregationError

_NONCE = 12


def public_key(private: bytes) -> bytes:
    """X25519: the public key of a private one, 32 bytes each.

    Example:
        >>> alice = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
        >>> public_key(alice).hex()[:16]  # RFC 7748, 6.1
        '8520f0098930a754'
    """
    return bytes(X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw())


def common_secret(private: bytes, public: bytes, context: bytes) -> bytes:
    """A secret of 32 bytes that the owners of two key pairs have in common, for one purpose.

    Args:
        private: one's own X25519 key, 32 bytes.
        public: the other's.
        context: of the purpose, `Terms.context`.

    Raises:
        SecureAggregationError: if the other key is not one, or has a small order, which gives no secret.

    Example:
        >>> a, b = bytes(31) + b"a", bytes(31) + b"b"
        >>> common_secret(a, public_key(b), b"masks") == common_secret(b, public_key(a), b"masks")
        True
    """
    try:
        shared = X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise SecureAggregationError("a public key gives no common secret") from error
    return bytes(HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=context).derive(shared))


def identity_key(private: bytes) -> bytes:
    """Ed25519: the public identity of a private identity key, 32 bytes each."""
    return bytes(Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw())


def sign(private: bytes, context: bytes) -> bytes:
    """A signature with an identity key, 64 bytes.

    Example:
        >>> key = bytes(32)
        >>> is_signed(identity_key(key), sign(key, b"text"), b"text")
        True
        >>> is_signed(identity_key(key), sign(key, b"text"), b"another")
        False
    """
    return bytes(Ed25519PrivateKey.from_private_bytes(private).sign(context))


def is_signed(identity: bytes, signature: bytes, context: bytes) -> bool:
    """Whether a signature is that of an identity on a text."""
    try:
        Ed25519PublicKey.from_public_bytes(identity).verify(signature, context)
    except (InvalidSignature, ValueError):
        return False
    return True


def encrypt(key: bytes, text: bytes, context: bytes) -> bytes:
    """A nonce from the operating system, then the text, encrypted and bound to a context."""
    nonce = os.urandom(_NONCE)
    return nonce + bytes(ChaCha20Poly1305(key).encrypt(nonce, text, context))


def decrypt(key: bytes, message: bytes, context: bytes) -> bytes:
    """The text of `encrypt`.

    Raises:
        SecureAggregationError: if message, key or context are others.

    Example:
        >>> decrypt(bytes(32), encrypt(bytes(32), b"share", b"hr/a to hr/b"), b"hr/a to hr/b")
        b'share'
    """
    try:
        return bytes(ChaCha20Poly1305(key).decrypt(message[:_NONCE], message[_NONCE:], context))
    except (InvalidTag, ValueError) as error:
        raise SecureAggregationError("a share was changed on its way, or is not for this client and round") from error
