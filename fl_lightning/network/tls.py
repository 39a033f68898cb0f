"""A certificate authority for trial use: a certificate for the server, and a key for each site.

===================================  ================  =======================================
file                                 who needs it      purpose
===================================  ================  =======================================
``ca.pem``                           server and sites  the authority's certificate
``authority/ca.key``                 nobody on line    signs certificates
``server/server.pem``                the server        its certificate
``server/server.key``                the server        the key of that
``sites/hr/client_0/site.key``       this site         signs its messages
``sites/hr/client_0/site.pub``       the server        checks them
===================================  ================  =======================================

The server proves by TLS that it has a certificate of the authority. A site signs its messages with its key, and the
server lets in the sites whose public keys it has, in the format of OpenSSH. Every file is 0600 in folders of 0700; none
is ever overwritten.
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
    """The server's files: the authority's certificate, the server's, and its key."""

    ca: Path
    certificate: Path
    key: Path


class SiteFiles(NamedTuple):
    """A site's files: the authority's certificate, and the site's key."""

    ca: Path
    key: Path


def make_certificates(
    folder: Path, sites: Iterable[str], hosts: Sequence[str] = DEFAULT_HOSTS, days: int = 365
) -> list[str]:
    """Make an authority, a server's certificate and a key for every site; the folder appears complete or not at all.

    Args:
        folder: new.
        sites: client ids.
        hosts: names and addresses under which sites reach the server.
        days: validity of both certificates.

    Returns:
        The client ids, in natural order.

    Raises:
        InputError: if the folder exists, or a name, a host or the days are invalid.
    """
    x509 = _cryptography().x509
    if os.path.lexists(folder):
        raise InputError(f"{folder}: expected a new folder, got one that exists; use another --out, or --add")
    if not 1 <= days <= 3650:
        raise InputError(f"--days: expected 1 to 3650, got {days}")
    if not hosts:
        raise InputError("--hosts: expected at least one name or address of the server, got none")
    names = [_host(x509, host) for host in hosts]
    clients = sorted({_check_client_id(site) for site in sites}, key=natural_key)
    if not clients:
        raise InputError("--sites: expected at least one, such as hr/client_0, got none")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(folder, secret=True) as temporary:
        ca_key, server_key = _new_key(), _new_key()
        ca = _certificate(ca_key, ca_key, None, [], days)
        write_secret(temporary / "ca.pem", _pem(ca))
        write_secret(temporary / "authority" / "ca.key", _private_pem(ca_key, "PKCS8"))
        write_secret(temporary / "server" / "server.pem", _pem(_certificate(server_key, ca_key, ca, names, days)))
        write_secret(temporary / "server" / "server.key", _private_pem(server_key, "PKCS8"))
        for client_id in clients:
            _write_site(temporary / "sites" / client_id)
        os.rename(temporary, folder)
        sync_folder(folder.parent)
    return clients


def add_site(folder: Path, client_id: str) -> None:
    """Make a key for one more site.

    Raises:
        InputError: if the folder does not exist, the site has a key, or its name is invalid.
    """
    site_folder = folder / "sites" / _check_client_id(client_id)
    if not (folder / "ca.pem").is_file():
        raise InputError(f"{folder}: expected a folder made by fl-lightning certs, got no ca.pem")
    if os.path.lexists(site_folder):
        raise InputError(f"{site_folder}: expected no key of {client_id}, got one; remove it by hand first")
    with temporary_folder(site_folder, secret=True) as temporary:
        _write_site(temporary)
        os.rename(temporary, site_folder)
        sync_folder(site_folder.parent)


def list_sites(root: str, clients_per_dept: int | None) -> list[str]:
    """Client ids of a data folder, in the order of a run."""
    return [client.client_id for clients in find_clients(root, clients_per_dept).values() for client in clients]


def server_files(folder: Path) -> ServerFiles:
    """The server's files.

    Raises:
        InputError: if one is missing, or other users may read the key.
    """
    files = ServerFiles(folder / "ca.pem", folder / "server" / "server.pem", folder / "server" / "server.key")
    _check_files(files)
    return files


def site_files(folder: Path, client_id: str) -> SiteFiles:
    """A site's files.

    Raises:
        InputError: if one is missing, or other users may read the key.
    """
    files = SiteFiles(folder / "ca.pem", folder / "sites" / _check_client_id(client_id) / "site.key")
    _check_files(files)
    return files


def public_keys(folder: Path) -> dict[str, Path]:
    """{client_id: its public key} of all sites, in natural order.

    Raises:
        InputError: if there is none.
    """
    paths = [path for path in (folder / "sites").glob("*/*/site.pub") if ".tmp" not in path.parent.name]
    keys = {_check_client_id("/".join(path.parts[-3:-1])): path for path in paths}
    if not keys:
        raise InputError(f"{folder}: expected a folder made by fl-lightning certs, got no sites/*/*/site.pub")
    return {client_id: keys[client_id] for client_id in sorted(keys, key=natural_key)}


def _check_client_id(client_id: str) -> str:
    department, slash, client = client_id.partition("/")
    if not slash:
        raise InputError(f"site: expected department/client, such as hr/client_0, got {client_id!r}")
    return f"{check_name(department, 'department')}/{check_name(client, 'client')}"


def _check_files(files: Sequence[Path]) -> None:
    for path in files:
        if not path.is_file():
            raise InputError(f"{path}: expected a file made by fl-lightning certs (network.certificates), got none")
        if path.suffix == ".key":
            check_secret(path)


def _cryptography() -> Any:
    """The library, imported only here because that is slow.

    Raises:
        InputError: if it is not installed.
    """
    try:
        import cryptography.x509
    except ImportError as error:
        raise InputError("certs: cryptography is not installed; pip install 'fl_lightning[flower]'") from error
    return cryptography


def _host(x509: Any, host: str) -> Any:
    """A host in the form for a certificate."""
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        if not _HOST.fullmatch(host) or re.fullmatch(r"[0-9.]+", host):
            raise InputError(f"--hosts: expected host names or IP addresses, without a port, got {host!r}") from None
        return x509.DNSName(host)


def _new_key() -> Any:
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP384R1())


def _certificate(key: Any, signer: Any, issuer: Any, hosts: Sequence[Any], days: int) -> Any:
    """A certificate for a server with these hosts; without an issuer, the authority's own, signed by its key."""
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


def _private_pem(key: Any, form: str) -> bytes:
    from cryptography.hazmat.primitives import serialization as s

    pem: bytes = key.private_bytes(s.Encoding.PEM, getattr(s.PrivateFormat, form), s.NoEncryption())
    return pem


def _write_site(site_folder: Path) -> None:
    """A key pair that Flower's commands can read: OpenSSH's formats, a NIST curve."""
    from cryptography.hazmat.primitives import serialization as s

    key = _new_key()
    public = key.public_key().public_bytes(s.Encoding.OpenSSH, s.PublicFormat.OpenSSH)
    write_secret(site_folder / "site.key", _private_pem(key, "OpenSSH"))
    write_secret(site_folder / "site.pub", public + b"\n")
