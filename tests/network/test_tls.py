import os
import ssl
import stat

import pytest

from fl_lightning.errors import InputError
from fl_lightning.network.tls import add_site, list_sites, make_certificates, public_keys, server_files, site_files

pytest.importorskip("cryptography", reason="cryptography is not installed: pip install 'fl_lightning[flower]'")

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key


@pytest.fixture(scope="module")
def certs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trial") / "certs"
    make_certificates(
        folder, ["hr/client_10", "hr/client_2", "it.dev/client_0"], ["localhost", "127.0.0.1", "fl.example"]
    )
    return folder


def handshake(server, ca, host):
    """A whole TLS handshake in memory, and a message each way; raises what the client or the server raises."""
    accepts = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    accepts.load_cert_chain(server.certificate, server.key)
    asks = ssl.create_default_context(cafile=str(ca))
    asks.verify_flags |= ssl.VERIFY_X509_STRICT
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = asks.wrap_bio(to_client, to_server, server_hostname=host)
    service = accepts.wrap_bio(to_server, to_client, server_side=True)
    pending = [client, service]
    while pending:
        for side in list(pending):
            try:
                side.do_handshake()
                pending.remove(side)
            except ssl.SSLWantReadError:
                pass
    client.write(b"hello")
    return service.read(5)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "fl.example"])
def test_server_is_known_by_its_authority_under_each_of_its_names(certs, host):
    assert handshake(server_files(certs), certs / "ca.pem", host) == b"hello"


@pytest.mark.parametrize("host", ["other.example", "127.0.0.2", "x.fl.example"])
def test_another_host_is_refused(certs, host):
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch|not valid for"):
        handshake(server_files(certs), certs / "ca.pem", host)


def test_another_authority_is_refused(certs, tmp_path):
    make_certificates(tmp_path / "other", ["hr/client_2"])
    with pytest.raises(ssl.SSLCertVerificationError, match="verify failed"):
        handshake(server_files(certs), tmp_path / "other" / "ca.pem", "localhost")


def test_certificate_is_the_authoritys_and_makes_no_further_ones(certs):
    ca, own = (x509.load_pem_x509_certificate((certs / n).read_bytes()) for n in ("ca.pem", "server/server.pem"))
    own.verify_directly_issued_by(ca)
    assert ca.extensions.get_extension_for_class(x509.BasicConstraints).value == x509.BasicConstraints(True, 0)
    assert own.extensions.get_extension_for_class(x509.BasicConstraints).value == x509.BasicConstraints(False, None)
    days = (own.not_valid_after_utc - own.not_valid_before_utc).total_seconds() / 86400
    assert days == pytest.approx(365, abs=0.1)
    assert own.not_valid_after_utc <= ca.not_valid_after_utc


def test_days_are_those_asked_for(tmp_path):
    make_certificates(tmp_path / "c", ["hr/a"], days=2)
    own = x509.load_pem_x509_certificate((tmp_path / "c" / "server" / "server.pem").read_bytes())
    assert (own.not_valid_after_utc - own.not_valid_before_utc).total_seconds() / 86400 == pytest.approx(2, abs=0.1)


def test_site_keys_are_pairs_in_the_form_that_flower_loads(certs):
    keys = public_keys(certs)
    assert list(keys) == ["hr/client_2", "hr/client_10", "it.dev/client_0"]
    seen = set()
    for client_id, path in keys.items():
        public = load_ssh_public_key(path.read_bytes())
        private = load_ssh_private_key(site_files(certs, client_id).key.read_bytes(), None)
        assert isinstance(public, ec.EllipticCurvePublicKey)
        assert isinstance(public.curve, ec.SECP384R1)
        assert private.public_key() == public
        seen.add(path.read_bytes())
    assert len(seen) == 3


def test_flower_takes_the_public_key(certs):
    register = pytest.importorskip("flwr.cli.supernode.register", reason="flwr is not installed")
    for path in public_keys(certs).values():
        assert register.try_load_public_key(path)


def test_only_the_owner_reads_anything(certs):
    everything = [certs, *certs.rglob("*")]
    assert {stat.S_IMODE(p.stat().st_mode) for p in everything if p.is_file()} == {0o600}
    assert {stat.S_IMODE(p.stat().st_mode) for p in everything if p.is_dir()} == {0o700}


def test_nothing_is_overwritten(certs):
    before = {p: p.read_bytes() for p in certs.rglob("*") if p.is_file()}
    with pytest.raises(InputError, match=r"expected a new folder.*use another --out, or --add"):
        make_certificates(certs, ["hr/a"])
    with pytest.raises(InputError, match="expected no key of hr/client_2, got one"):
        add_site(certs, "hr/client_2")
    assert {p: p.read_bytes() for p in certs.rglob("*") if p.is_file()} == before
    assert not list(certs.parent.glob(".*"))


def test_a_site_is_added_and_the_others_stay(tmp_path):
    folder = tmp_path / "certs"
    make_certificates(folder, ["hr/client_0"])
    before = public_keys(folder)["hr/client_0"].read_bytes()
    add_site(folder, "hr/client_3")
    add_site(folder, "legal/client_0")
    assert list(public_keys(folder)) == ["hr/client_0", "hr/client_3", "legal/client_0"]
    assert public_keys(folder)["hr/client_0"].read_bytes() == before
    assert {stat.S_IMODE(p.stat().st_mode) for p in folder.rglob("*")} == {0o600, 0o700}
    assert not list(folder.rglob(".*"))


def test_a_site_cannot_be_added_where_nothing_is(tmp_path):
    with pytest.raises(InputError, match=r"got no ca\.pem"):
        add_site(tmp_path / "certs", "hr/client_3")


@pytest.mark.parametrize("site", ["hr", "", "/", "hr/", "/a", "../a", "hr/..", "hr/a/b", "hr/a b", "hr/é", "hr/a\n"])
def test_an_unsafe_name_is_refused_before_anything_is_written(site, tmp_path):
    with pytest.raises(InputError, match="expected 1 to 128|expected department/client"):
        make_certificates(tmp_path / "certs", ["hr/ok", site])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("host", ["", "a b", "http://x", "x:9092", "-x", "x..y", "é.example", "*.x", "1.2.3", "a" * 64])
def test_a_host_that_is_none_is_refused(host, tmp_path):
    with pytest.raises(InputError, match=r"--hosts: expected host names or IP addresses, without a port, got"):
        make_certificates(tmp_path / "certs", ["hr/a"], [host])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("host", ["::1", "10.0.0.7", "a.b-c.example", "fl"])
def test_addresses_and_names_are_hosts(host, tmp_path):
    make_certificates(tmp_path / "certs", ["hr/a"], [host])
    assert handshake(server_files(tmp_path / "certs"), tmp_path / "certs" / "ca.pem", host) == b"hello"


@pytest.mark.parametrize(
    ("days", "hosts", "sites"), [(0, ["x"], ["hr/a"]), (3651, ["x"], ["hr/a"]), (1, [], ["hr/a"]), (1, ["x"], [])]
)
def test_values_out_of_range_are_refused(days, hosts, sites, tmp_path):
    with pytest.raises(InputError, match="expected .*, got"):
        make_certificates(tmp_path / "certs", sites, hosts, days)


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("no space")

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(OSError, match="no space"):
        make_certificates(tmp_path / "certs", ["hr/a"])
    assert not list(tmp_path.iterdir())


def test_a_missing_file_or_one_that_others_read_is_named(tmp_path):
    folder = tmp_path / "certs"
    with pytest.raises(InputError, match=r"ca\.pem: expected a file made by fl-lightning certs"):
        server_files(folder)
    with pytest.raises(InputError, match="got no sites"):
        public_keys(folder)
    make_certificates(folder, ["hr/a"])
    assert site_files(folder, "hr/a").ca == folder / "ca.pem"
    with pytest.raises(InputError, match=r"site\.key: expected a file"):
        site_files(folder, "hr/b")
    with pytest.raises(InputError, match="expected 1 to 128"):
        site_files(folder, "hr/../../x")
    server_files(folder).key.chmod(0o644)
    with pytest.raises(InputError, match=r"server\.key: others may read it; expected mode 0600, got 0644"):
        server_files(folder)


def test_sites_of_a_data_folder_are_the_clients_of_a_run():
    assert list_sites("bundled:departments", 1) == [
        f"{department}/client_0" for department in ("customer_support", "engineering", "finance", "hr")
    ]
