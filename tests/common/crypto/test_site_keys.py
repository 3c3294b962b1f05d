# SPDX-License-Identifier: Apache-2.0
"""A site's keys, and every way to pretend to own a key."""

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA384

from common.crypto.site_keys import SiteKeys, check_request, public_pem
from common.enrolment import EnrolRequest, Invitation, SitePublicKeys, confirmation_digest, proof_message
from common.errors import InputError, ProtocolError, StorageError

FILES = ("node.pem", "site.key", "tls.pem")


def invitation(name: str = "north", token: str = "1" * 64) -> Invitation:
    return Invitation(site=name, url="https://localhost:8443", ca_certificate="", study_key="0" * 64, token=token, expires=0.0)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> SiteKeys:
    return SiteKeys.ensure(tmp_path_factory.mktemp("north"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> SiteKeys:
    return SiteKeys.ensure(tmp_path_factory.mktemp("south"))


def test_keys_are_made_once_and_for_their_owner_only(tmp_path: Path) -> None:
    folder = tmp_path / "site"
    first = SiteKeys.ensure(folder)
    contents = {name: (folder / name).read_bytes() for name in FILES}
    assert SiteKeys.ensure(folder).public() == first.public() == SiteKeys.read(folder).public()
    assert {name: (folder / name).read_bytes() for name in FILES} == contents
    assert {stat.S_IMODE((folder / name).stat().st_mode) for name in FILES} == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert isinstance(first.node_key.curve, ec.SECP384R1)
    assert isinstance(first.tls_key.curve, ec.SECP256R1)
    assert repr(first).count("=") == 1, "no key in what is printed"


def test_what_a_crash_left_out_is_made(tmp_path: Path) -> None:
    first = SiteKeys.ensure(tmp_path).public()
    (tmp_path / "tls.pem").unlink()
    second = SiteKeys.ensure(tmp_path).public()
    assert (second.node, second.signing, second.exchange) == (first.node, first.signing, first.exchange)
    assert second.tls != first.tls


def test_many_at_once_get_the_same_keys(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: SiteKeys.ensure(tmp_path).public(), range(8)))
    assert len({keys.canonical_json() for keys in made}) == 1


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_key_is_named_and_kept(tmp_path: Path, name: str) -> None:
    SiteKeys.ensure(tmp_path)
    (tmp_path / name).write_bytes(b"damaged")
    with pytest.raises(StorageError, match=f"{name}.*restore it"):
        SiteKeys.ensure(tmp_path)
    assert (tmp_path / name).read_bytes() == b"damaged"


def test_keys_of_two_files_mixed_up(tmp_path: Path) -> None:
    SiteKeys.ensure(tmp_path)
    (tmp_path / "tls.pem").write_bytes((tmp_path / "node.pem").read_bytes())
    with pytest.raises(StorageError, match="not a key on secp256r1"):
        SiteKeys.ensure(tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_a_key_that_others_may_read_is_refused(tmp_path: Path, name: str) -> None:
    SiteKeys.ensure(tmp_path)
    (tmp_path / name).chmod(0o644)
    with pytest.raises(StorageError, match="chmod 600"):
        SiteKeys.ensure(tmp_path)


def test_a_folder_that_others_may_enter_is_refused(tmp_path: Path) -> None:
    SiteKeys.ensure(tmp_path)
    tmp_path.chmod(0o755)
    with pytest.raises(InputError, match="chmod 700"):
        SiteKeys.ensure(tmp_path)


def test_the_exchange_key_is_derived(keys: SiteKeys) -> None:
    theirs = X25519PrivateKey.generate()
    public = X25519PublicKey.from_public_bytes(bytes.fromhex(keys.public().exchange))
    assert keys.exchange_key.exchange(theirs.public_key()) == theirs.exchange(public)
    assert keys.secret.derive("exchange") == keys.exchange_key.private_bytes_raw()


def test_an_honest_request_passes(keys: SiteKeys) -> None:
    check_request(keys.request(invitation()))


def test_a_request_holds_no_private_key(keys: SiteKeys) -> None:
    text = keys.request(invitation()).model_dump_json()
    assert "PRIVATE" not in text
    assert keys.secret.value.hex() not in text


def changed(request: EnrolRequest, keys: SitePublicKeys | None = None, **fields: str) -> EnrolRequest:
    return EnrolRequest.model_validate({**request.model_dump(), **({"keys": keys.model_dump()} if keys else {}), **fields})


@pytest.mark.parametrize("stolen", ["node", "tls", "signing"])
def test_the_public_key_of_another_site_is_of_no_use(keys: SiteKeys, other: SiteKeys, stolen: str) -> None:
    """Everything signed anew by the thief, but one key is the victim's."""
    mixed = keys.public().model_copy(update={stolen: getattr(other.public(), stolen)})
    message = proof_message("1" * 64, mixed)
    node_proof = keys.node_key.sign(message, ec.ECDSA(SHA384())).hex()
    request = changed(keys.request(invitation()), mixed, node_proof=node_proof, signing_proof=keys.secret.signer.sign(message))
    with pytest.raises(ProtocolError, match={"node": "node key", "tls": "another key than the TLS key", "signing": "signing key"}[stolen]):
        check_request(request)


@pytest.mark.parametrize("replaced", ["node", "tls", "signing", "exchange"])
def test_no_key_can_be_changed_on_the_way(keys: SiteKeys, other: SiteKeys, replaced: str) -> None:
    mixed = keys.public().model_copy(update={replaced: getattr(other.public(), replaced)})
    with pytest.raises(ProtocolError):
        check_request(changed(keys.request(invitation()), mixed))


def test_proofs_for_one_token_are_none_for_another(keys: SiteKeys) -> None:
    with pytest.raises(ProtocolError, match="node key"):
        check_request(changed(keys.request(invitation()), token="2" * 64))


def test_a_renamed_site_needs_a_request_of_that_name(keys: SiteKeys) -> None:
    with pytest.raises(ProtocolError, match="the invitation is for south"):
        check_request(changed(keys.request(invitation()), site="south"))


def with_exchange(keys: SiteKeys, exchange: bytes) -> EnrolRequest:
    mixed = keys.public().model_copy(update={"exchange": exchange.hex()})
    message = proof_message("1" * 64, mixed)
    node_proof = keys.node_key.sign(message, ec.ECDSA(SHA384())).hex()
    return changed(keys.request(invitation()), mixed, node_proof=node_proof, signing_proof=keys.secret.signer.sign(message))


@pytest.mark.parametrize("raw", [bytes(32), (1).to_bytes(32, "little"), (2**255 - 20).to_bytes(32, "little")])
def test_an_exchange_key_of_small_order(keys: SiteKeys, raw: bytes) -> None:
    with pytest.raises(ProtocolError, match="small order"):
        check_request(with_exchange(keys, raw))


def test_an_exchange_key_in_a_second_writing(keys: SiteKeys) -> None:
    """The top bit is ignored by X25519: two texts for one key."""
    raw = bytearray.fromhex(keys.public().exchange)
    raw[31] |= 0x80
    with pytest.raises(ProtocolError, match="canonical"):
        check_request(with_exchange(keys, bytes(raw)))


@pytest.mark.parametrize("name", ["node", "tls"])
@pytest.mark.parametrize("how", [lambda pem: pem + "\n", lambda pem: pem.replace("\n", "\r\n"), lambda pem: "", lambda pem: "no key"])
def test_a_key_has_one_text(keys: SiteKeys, name: str, how: object) -> None:
    assert callable(how)
    mixed = keys.public().model_copy(update={name: how(getattr(keys.public(), name))})
    with pytest.raises(ProtocolError, match=r"canonical form|not a public key"):
        check_request(changed(keys.request(invitation()), mixed))


def test_node_and_tls_keys_have_their_curves(keys: SiteKeys) -> None:
    swapped = keys.public().model_copy(update={"node": public_pem(ec.generate_private_key(ec.SECP256R1()).public_key())})
    with pytest.raises(ProtocolError, match="secp384r1"):
        check_request(changed(keys.request(invitation()), swapped))


def test_the_words_cover_every_part(keys: SiteKeys, other: SiteKeys) -> None:
    digests = {confirmation_digest(b"ca", "0" * 64, keys.public()), confirmation_digest(b"cb", "0" * 64, keys.public())}
    digests.add(confirmation_digest(b"ca", "1" * 64, keys.public()))
    for name in ("node", "tls", "signing", "exchange"):
        digests.add(confirmation_digest(b"ca", "0" * 64, keys.public().model_copy(update={name: getattr(other.public(), name)})))
    assert len(digests) == 7
