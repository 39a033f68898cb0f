"""Ed25519 signatures of an operator, with keys in the formats of OpenSSH (``ssh-keygen -t ed25519``) and PEM (openssl).

A signature is a function of key and message, so that a resumed run has the same bytes as an undisturbed one.
"""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

from fl_lightning.errors import InputError
from fl_lightning.storage.files import check_secret, write_bytes, write_secret

_HOW = "make one with fl-lightning certs --sign-key FILE, or ssh-keygen -t ed25519 -N '' -f FILE"


def new_key(path: Path) -> Path:
    """Make a key pair in OpenSSH's format: the private key (0600) at a path, the public one beside it.

    Returns:
        The path of the public key: that of the private one with ``.pub`` after it.

    Raises:
        InputError: if one of the files exists.
    """
    serialization, ed25519 = _cryptography()
    public = path.with_name(f"{path.name}.pub")
    for taken in (path, public):
        if taken.exists():
            raise InputError(f"{taken}: expected a new file, got one that exists; keys are never replaced")
    key = ed25519.Ed25519PrivateKey.generate()
    formats = serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    write_secret(path, key.private_bytes(*formats))
    write_secret(public, _openssh(key.public_key()) + b"\n")
    public.chmod(0o644)
    return public


def load_private_key(path: Path) -> Any:
    """An Ed25519 private key, which only its owner may read.

    Raises:
        InputError: if the file is missing, others may read it, or it holds no such key.
    """
    serialization, ed25519 = _cryptography()
    check_secret(path)
    data = path.read_bytes()
    is_openssh = b"OPENSSH PRIVATE KEY" in data
    load = serialization.load_ssh_private_key if is_openssh else serialization.load_pem_private_key
    return _load(path, load, ed25519.Ed25519PrivateKey, data, None)


def load_public_key(path: Path) -> str:
    """An Ed25519 public key, as the 64 hexadecimal digits of its 32 bytes.

    Raises:
        InputError: if the file is missing or holds no such key.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); expected an Ed25519 public key") from error
    return parse_public_key(data, path)


def parse_public_key(data: bytes, where: Path | str) -> str:
    """An Ed25519 public key in OpenSSH's format or PEM, as the 64 hexadecimal digits of its 32 bytes.

    Args:
        data: of the key.
        where: it comes from, for messages.

    Raises:
        InputError: if it is no such key.
    """
    serialization, ed25519 = _cryptography()
    load = serialization.load_pem_public_key if b"-----BEGIN" in data else serialization.load_ssh_public_key
    return str(_load(where, load, ed25519.Ed25519PublicKey, data).public_bytes_raw().hex())


def key_at(path: Path) -> Any:
    """The Ed25519 private key at a path, made on first use with the public one beside it.

    Raises:
        InputError: if others may read the file, or it holds no such key.
    """
    public = path.with_name(f"{path.name}.pub")
    if not path.exists():
        public.unlink(missing_ok=True)  # of a private key that is gone
        new_key(path)
    key = load_private_key(path)
    if not public.exists():  # a kill came between the two
        write_bytes(public, _openssh(key.public_key()) + b"\n")
    return key


def public_key_of(private_key: Any) -> str:
    """The public key of a private one, as 64 hexadecimal digits."""
    return str(private_key.public_key().public_bytes_raw().hex())


def public_line(private_key: Any) -> str:
    """The public key of a private one in OpenSSH's format, ``ssh-ed25519 AAAA…``."""
    return _openssh(private_key.public_key()).decode()


def sign(private_key: Any, message: bytes) -> str:
    """The signature of a message, 128 hexadecimal digits."""
    return str(private_key.sign(message).hex())


def is_signed(public_key: str, signature: str, message: bytes) -> bool:
    """Whether a message has this signature of this key, both as hexadecimal digits in the one way to write them."""
    _, ed25519 = _cryptography()
    from cryptography.exceptions import InvalidSignature

    if not re.fullmatch("[0-9a-f]{128}", signature):
        return False

    try:
        ed25519.Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key)).verify(bytes.fromhex(signature), message)
    except (InvalidSignature, ValueError):
        return False
    return True


def fingerprint(public_key: str) -> str:
    """The fingerprint that ``ssh-keygen -l`` prints for a public key."""
    _, ed25519 = _cryptography()
    key = ed25519.Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key))
    blob = base64.b64decode(_openssh(key).split()[1])
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def _openssh(public_key: Any) -> bytes:
    serialization, _ = _cryptography()
    formats = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    return bytes(public_key.public_bytes(*formats))


def _load(path: Path | str, load: Any, expected: type, *arguments: Any) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        key = load(*arguments)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        reason = str(error).split("(")[0].strip()[:120]
        raise InputError(f"{path}: expected an Ed25519 key without a passphrase ({reason}); {_HOW}") from error
    if not isinstance(key, expected):
        raise InputError(f"{path}: expected an Ed25519 key, got {type(key).__name__.strip('_')}; {_HOW}")
    return key


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise InputError(
            "signatures need the package cryptography; install it with pip install 'fl-lightning[sign]'"
        ) from error
    return serialization, ed25519
