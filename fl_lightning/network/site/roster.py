"""The roster: public identities of a department's sites, from a file on each site's own disk.

With secure aggregation a site masks its update for those whom it knows. Whoever can exchange an identity in the roster
can pose as that site, so the file must not come from the server.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fl_lightning.config import RunConfig
from fl_lightning.errors import InputError
from fl_lightning.provenance.signing import public_key_of, public_line
from fl_lightning.provenance.site_signatures import read_site_keys

_HOW = "docs/network.md, Secure aggregation, says how sites make one"


def read_roster(config: RunConfig, client_id: str, key: Any) -> dict[str, bytes]:
    """{client_id: public identity, 32 bytes} of the sites of one's own department.

    Args:
        config: of the site: ``network.roster`` and ``federation.masking``.
        client_id: of the site.
        key: its private key.

    Raises:
        InputError: if the file is missing or has another form, does not have this site's key, or has too few sites.
    """
    path, department = Path(str(config.network.roster)), client_id.split("/", 1)[0]
    keys = {c: k for c, k in read_keys(config).items() if c.split("/", 1)[0] == department}
    own_line = f"{client_id} {public_line(key)}"
    if client_id not in keys:
        raise InputError(f"{path}: expected a line with this site's key, got none; it is: {own_line}")
    if keys[client_id] != public_key_of(key):
        raise InputError(
            f"{path}: {client_id}: expected the key that this site has, got another one; it is: {own_line}"
        )
    if len(keys) < (needed := config.federation.masking.min_clients):
        raise InputError(
            f"{path}: expected at least {needed} sites of {department} (federation.masking.min_clients), got "
            f"{len(keys)}; a sum of fewer shows too much of each"
        )
    if len(set(keys.values())) < len(keys):
        raise InputError(f"{path}: expected a key of its own for each site of {department}, got one key twice; {_HOW}")
    return {c: bytes.fromhex(k) for c, k in keys.items()}


def read_keys(config: RunConfig) -> dict[str, str]:
    """{client_id: public key, 64 hexadecimal digits} in the file that a site's config names.

    Raises:
        InputError: if it names none, or the file is missing or has another form.
    """
    if config.network.roster is None:
        raise InputError(
            "network.roster: expected a file with the public keys of all sites of the department, which does not come "
            f"from the server, with federation.secure_aggregation: true, got null; {_HOW}"
        )
    return read_site_keys(Path(config.network.roster))
