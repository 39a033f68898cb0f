"""The libraries that the protocol needs: cryptography and pycryptodome, the ``secure`` extra."""

from __future__ import annotations

from importlib.util import find_spec

from fl_lightning.errors import InputError


def check_installed() -> None:
    """Check that the libraries are there.

    Raises:
        InputError: if one is not.
    """
    for module, package in {"cryptography": "cryptography", "Crypto": "pycryptodome"}.items():
        if find_spec(module) is None:
            raise InputError(
                f"federation.secure_aggregation: expected {package}, which is not installed; "
                "pip install 'fl_lightning[secure]'"
            )
