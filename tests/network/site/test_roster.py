"""The file with the identities of a department's sites, as one site reads it."""

import pytest

from fl_lightning.config import FederationConfig, MaskingConfig, NetworkConfig, RunConfig
from fl_lightning.config.clusters import ClientClustersConfig
from fl_lightning.errors import InputError
from fl_lightning.network.site.roster import read_roster
from fl_lightning.provenance.signing import key_at, public_key_of, public_line

NAMES = ["hr/a", "hr/b", "hr/c", "it/a"]


@pytest.fixture
def keys(tmp_path):
    return {name: key_at(tmp_path / name.replace("/", ".")) for name in NAMES}


@pytest.fixture
def read(tmp_path, keys):
    def read(text, min_clients=3):
        path = tmp_path / "roster"
        if text is not None:
            path.write_text(text)
        federation = FederationConfig(
            secure_aggregation=True,
            masking=MaskingConfig(min_clients=min_clients),
            client_clusters=ClientClustersConfig(num_clusters=1),
        )
        config = RunConfig(federation=federation, network=NetworkConfig(roster=str(path)))
        return read_roster(config, "hr/a", keys["hr/a"])

    return read


def lines(keys, names=NAMES):
    return [f"{name} {public_line(keys[name])} a comment" for name in names]


def test_it_is_of_ones_own_department(read, keys):
    roster = read("\n".join(["# sites", "", *lines(keys)]))
    assert roster == {name: bytes.fromhex(public_key_of(keys[name])) for name in NAMES[:3]}


def test_the_key_files_of_sites_are_its_lines(read, keys, tmp_path):
    texts = [f"{name} {(tmp_path / (name.replace('/', '.') + '.pub')).read_text()}" for name in NAMES]
    assert list(read("".join(texts))) == NAMES[:3]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda keys: None, "cannot be read"),
        (lambda keys: "", "expected a line with the public key of each site, got none"),
        (lambda keys: "\x00\x01", "roster:1: expected a client id and a key"),
        (lambda keys: "hr/a ssh-ed25519 AAAA", "roster:1: expected an Ed25519 key"),
        (lambda keys: "\n".join(lines(keys) + lines(keys)[:1]), "roster:5: expected one key for hr/a, got a second"),
        (lambda keys: "\n".join(lines(keys)[1:]), "expected a line with this site's key, got none; it is: hr/a ssh-ed"),
        (
            lambda keys: "\n".join([f"hr/a {public_line(keys['it/a'])}", *lines(keys)[1:]]),
            "hr/a: expected the key that this site has, got another one; it is: hr/a ssh-ed25519",
        ),
        (lambda keys: "\n".join(lines(keys, ["hr/a", "hr/b", "it/a"])), "expected at least 3 sites of hr .*, got 2"),
        (
            lambda keys: "\n".join([*lines(keys)[:2], f"hr/c {public_line(keys['hr/b'])}"]),
            "expected a key of its own for each site of hr, got one key twice",
        ),
    ],
)
def test_one_that_cannot_be_used_is_refused(read, keys, make, reason):
    with pytest.raises(InputError, match=reason):
        read(make(keys))


def test_the_limit_is_that_of_the_site(read, keys):
    assert len(read("\n".join(lines(keys)[:2]), min_clients=2)) == 2
    with pytest.raises(InputError, match=r"expected at least 4 sites of hr \(federation.masking.min_clients\), got 3"):
        read("\n".join(lines(keys)), min_clients=4)
