"""A certificate authority for trial use: what the server shows, and the keys by which it knows its sites.

    certs/ca.pem                             for everybody: whom to trust
    certs/authority/ca.key                   signs more certificates; belongs on no server
    certs/server/server.pem, server.key      the server's
    certs/sites/hr/client_0/site.key         that site's alone
    certs/sites/hr/client_0/site.pub         for the server, which lets in the keys it has

The server proves by TLS that it holds a certificate of the authority; a site signs what it sends with its key, of which
the server has the public half, as OpenSSH writes it. Every file is 0600 in folders of 0700; none is ever overwritten.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fl_lightning.data.layout import find_clients
from fl_lightning.errors import InputError
from fl_lightning.storage.files import (
    check_name,
    check_secret,
    natural_key,
    sync_folder,
    temporary_folder,
    write_secret,
)

DEFAULT_HOSTS = ("localhost", "127.0.0.1")
_HOST = re.compile(
    r"(?=.{1,253}$)[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*"
)


class ServerFiles(NamedTuple):
    """What the server needs: the authority's certificate, its own, and its key."""

    ca: Path
    certificate: Path
    key: Path


class SiteFiles(NamedTuple):
    """What a site needs: the authority's certificate, and its own key."""

    ca: Path
    key: Path


def make_certificates(
    folder: Path, sites: Iterable[str], hosts: Sequence[str] = DEFAULT_HOSTS, days: int = 365
) -> list[str]:
    """Make an authority, a server's certificate and a key for every site; the folder appears whole or not at all.

    Args:
        folder: which must not exist yet.
        sites: client ids.
        hosts: names and addresses by which sites call the server.
        days: how long both certificates hold.

    Returns:
        The client ids, in natural order.

    Raises:
        InputError: if the folder is there, or a name, a host or the days are not as wanted.
    """
    x509 = _cryptography().x509
    if os.path.lexists(folder):
        raise InputError(f"{folder}: it is there already, and nothing is overwritten; wanted another --out, or --add")
    if not 1 <= days <= 3650:
        raise InputError(f"--days: got {days}, wanted 1 to 3650")
    if not hosts:
        raise InputError("--hosts: got none, wanted at least one name or address of the server")
    names = [_host(x509, host) for host in hosts]
    clients = sorted({_checked(site) for site in sites}, key=natural_key)
    if not clients:
        raise InputError("--sites: got none, wanted at least one such as hr/client_0")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(folder, secret=True) as temporary:
        authority, own = _new_key(), _new_key()
        ca = _certificate(authority, authority, None, [], days)
        write_secret(temporary / "ca.pem", _pem(ca))
        write_secret(temporary / "authority" / "ca.key", _private(authority, "PKCS8"))
        write_secret(temporary / "server" / "server.pem", _pem(_certificate(own, authority, ca, names, days)))
        write_secret(temporary / "server" / "server.key", _private(own, "PKCS8"))
        for client_id in clients:
            _write_site(temporary / "sites" / client_id)
        os.rename(temporary, folder)
        sync_folder(folder.parent)
    return clients


def add_site(folder: Path, client_id: str) -> None:
    """Make one more site's key.

    Raises:
        InputError: if there is no such folder, the site has a key already, or its name is not as wanted.
    """
    place = folder / "sites" / _checked(client_id)
    if not (folder / "ca.pem").is_file():
        raise InputError(f"{folder}: no ca.pem there; wanted a folder made by fl-lightning certs")
    if os.path.lexists(place):
        raise InputError(f"{place}: {client_id} has a key already, and nothing is overwritten; remove it by hand first")
    with temporary_folder(place, secret=True) as temporary:
        _write_site(temporary)
        os.rename(temporary, place)
        sync_folder(place.parent)


def sites_of(root: str, clients_per_dept: int | None) -> list[str]:
    """Client ids of a data folder, as a run finds them."""
    return [client.client_id for clients in find_clients(root, clients_per_dept).values() for client in clients]


def server_files(folder: Path) -> ServerFiles:
    """The server's files.

    Raises:
        InputError: if one is not there, or others may read the key.
    """
    found = ServerFiles(folder / "ca.pem", folder / "server" / "server.pem", folder / "server" / "server.key")
    _check_there(found)
    return found


def site_files(folder: Path, client_id: str) -> SiteFiles:
    """A site's files.

    Raises:
        InputError: if one is not there, or others may read the key.
    """
    found = SiteFiles(folder / "ca.pem", folder / "sites" / _checked(client_id) / "site.key")
    _check_there(found)
    return found


def public_keys(folder: Path) -> dict[str, Path]:
    """{client_id: its public key} of all sites, in natural order.

    Raises:
        InputError: if there is none.
    """
    places = [path for path in (folder / "sites").glob("*/*/site.pub") if ".tmp" not in path.parent.name]
    found = {_checked("/".join(path.parts[-3:-1])): path for path in places}
    if not found:
        raise InputError(f"{folder}: no sites/*/*/site.pub there; wanted a folder made by fl-lightning certs")
    return {client_id: found[client_id] for client_id in sorted(found, key=natural_key)}


def _checked(client_id: str) -> str:
    department, slash, client = client_id.partition("/")
    if not slash:
        raise InputError(f"site {client_id!r}: wanted department/client, such as hr/client_0")
    return f"{check_name(department, 'department')}/{check_name(client, 'client')}"


def _check_there(files: Sequence[Path]) -> None:
    for path in files:
        if not path.is_file():
            raise InputError(f"{path}: no file there; fl-lightning certs makes it (network.certificates)")
        if path.suffix == ".key":
            check_secret(path)


def _cryptography() -> Any:
    """The library, or how to get it; slow to import, so only where it is needed."""
    try:
        import cryptography.x509
    except ImportError as error:
        raise InputError("certs: cryptography is not installed; pip install 'fl_lightning[flower]'") from error
    return cryptography


def _host(x509: Any, host: str) -> Any:
    """A host as it stands in a certificate."""
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        if not _HOST.fullmatch(host) or re.fullmatch(r"[0-9.]+", host):
            raise InputError(f"--hosts: got {host!r}, wanted host names or IP addresses, without a port") from None
        return x509.DNSName(host)


def _new_key() -> Any:
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP384R1())


def _certificate(key: Any, signer: Any, issuer: Any, hosts: Sequence[Any], days: int) -> Any:
    """A certificate of a server with these hosts; of the authority itself, signed by its own key, without an issuer."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fl_lightning server" if issuer else "fl_lightning CA")])
    now = datetime.datetime.now(datetime.timezone.utc)
    uses = dict.fromkeys(
        (
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    usage = x509.KeyUsage(digital_signature=bool(issuer), key_cert_sign=not issuer, crl_sign=not issuer, **uses)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer.subject if issuer else name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))  # clocks differ
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=not issuer, path_length=None if issuer else 0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    if issuer:
        by = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
        builder = builder.add_extension(by, critical=False)
        builder = builder.add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    return builder.sign(signer, hashes.SHA256())


def _pem(certificate: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    pem: bytes = certificate.public_bytes(Encoding.PEM)
    return pem


def _private(key: Any, form: str) -> bytes:
    from cryptography.hazmat.primitives import serialization as s

    written: bytes = key.private_bytes(s.Encoding.PEM, getattr(s.PrivateFormat, form), s.NoEncryption())
    return written


def _write_site(place: Path) -> None:
    """A key pair as Flower's commands read it: OpenSSH's formats, a NIST curve."""
    from cryptography.hazmat.primitives import serialization as s

    key = _new_key()
    write_secret(place / "site.key", _private(key, "OpenSSH"))
    write_secret(place / "site.pub", key.public_key().public_bytes(s.Encoding.OpenSSH, s.PublicFormat.OpenSSH) + b"\n")
