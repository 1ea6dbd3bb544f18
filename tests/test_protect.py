"""The do-not-swap list: the file, its signature, the comparison, and which lists apply."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors import safe_open
from safetensors.torch import save_file

from latentswap.errors import ProtectedPersonError, ProvenanceError, UsageError, WeightsError
from latentswap.inversion.optimise import embed
from latentswap.provenance import enforce, matching
from latentswap.provenance.enforce import check_face, configured, enforced, imported_folder, own_list
from latentswap.provenance.protect import KIND, LOOSEST, THRESHOLD, ProtectList, closest
from latentswap.provenance.signing_key import is_signature, own_key, parse_public, public_hex, read_private
from latentswap.weights.load import load_tensors, save_tensors


def random_unit(count: int, *, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(count, 128, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.fixture
def key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


@pytest.fixture
def listed() -> ProtectList:
    people = random_unit(4)
    return ProtectList().add("Ann Lee", people[:1]).add("Bo", people[1:3]).add("Cy", people[3:])


# The measure


def test_the_distance_against_a_loop(networks, people):
    _, pictures = people
    each_BE = embed(networks.identity, pictures, networks.mean_E)
    cohort_ME = random_unit(60, seed=3)
    got = matching.ratio(each_BE, each_BE[:3], cohort_ME)
    for a in range(len(each_BE)):
        for b in range(3):
            usual = []
            for one in (each_BE[a], each_BE[b]):
                away = sorted(1 - float(one @ other) for other in cohort_ME)[: matching.NEAREST]
                usual.append(sum(away) / matching.NEAREST)
            expected = (1 - float(each_BE[a] @ each_BE[b])) / (sum(usual) / 2)
            assert float(got[a, b]) == pytest.approx(max(0, expected), abs=2e-5)


def test_the_distance_is_symmetric_zero_for_the_same_and_free_of_length(networks, people):
    each_BE = embed(networks.identity, people[1], networks.mean_E)
    distance_BB = matching.distances(each_BE, each_BE)
    torch.testing.assert_close(distance_BB, distance_BB.T)
    assert distance_BB.diagonal().abs().max() < 1e-3
    torch.testing.assert_close(matching.distances(7 * each_BE, each_BE), distance_BB)
    strangers = distance_BB[~torch.eye(len(each_BE), dtype=torch.bool)]
    assert strangers.min() > THRESHOLD


def test_the_gallery_is_at_the_distance_of_strangers_from_itself():
    """By construction people of the cohort lie at about 1 from their nearest, themselves left out."""
    cohort_ME = matching._cohort()
    distance_MM = matching.ratio(cohort_ME, cohort_ME, cohort_ME) + 9 * torch.eye(len(cohort_ME))
    nearest = distance_MM.topk(matching.NEAREST, largest=False).values.mean()
    assert 0.9 < float(nearest) < 1.2


# People


def test_people_are_added_found_and_removed(listed):
    assert listed.people == ("Ann Lee", "Bo", "Cy") and listed.person_N.tolist() == [0, 1, 1, 2]
    match = listed.nearest(listed.embedding_NE[2:3])
    assert match is not None and match.name == "Bo" and match.distance < 1e-3 and match.refused
    more = listed.add(" Ann   Lee ", random_unit(1, seed=8))
    assert len(more) == 3 and more.person_N.tolist() == [0, 1, 1, 2, 0] and more.ids == listed.ids
    fewer = listed.remove("Bo")
    assert fewer.people == ("Ann Lee", "Cy") and fewer.person_N.tolist() == [0, 1]
    torch.testing.assert_close(fewer.embedding_NE, listed.embedding_NE[[0, 3]])
    assert listed.remove(listed.ids[2]).people == ("Ann Lee", "Bo")
    for nobody in ("Dee", ""):
        with pytest.raises(UsageError, match="nobody in"):
            listed.remove(nobody)
    with pytest.raises(UsageError, match="cannot be kept"):
        listed.add("\n", random_unit(1))
    assert ProtectList().nearest(random_unit(1)) is None


def test_a_nameless_list_still_refuses_and_names_the_id(listed):
    nameless = listed.nameless()
    match = nameless.nearest(listed.embedding_NE[:1])
    assert match is not None and match.refused and match.name == match.person_id == listed.ids[0]
    assert not any("Ann" in value for value in nameless._metadata().values())
    assert nameless.remove(listed.ids[0]).ids == listed.ids[1:]


def test_a_refusing_list_wins_over_a_nearer_one_that_does_not(listed):
    probe_BE = F.normalize(listed.embedding_NE[:1] + 0.6 * random_unit(1, seed=5), dim=-1)
    distance = float(matching.distances(probe_BE, listed.embedding_NE[:1]))
    strict = replace(listed, threshold=distance / 2)
    loose = ProtectList(threshold=min(LOOSEST, distance * 1.05)).add(
        "Further", F.normalize(listed.embedding_NE[:1] + 0.02 * random_unit(1, seed=6), dim=-1)
    )
    for order in ((strict, loose), (loose, strict)):
        match = closest(order, probe_BE)
        assert match is not None and match.refused and match.name == "Further"
    assert closest((), probe_BE) is None


# The file


def test_a_list_survives_its_file(listed, tmp_path):
    path = tmp_path / "list.safetensors"
    replace(listed, threshold=0.4).save(path)
    again = ProtectList.load(path)
    assert again.people == listed.people and again.threshold == 0.4 and again.signer is None
    torch.testing.assert_close(again.embedding_NE, listed.embedding_NE)
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == {"embedding", "person"}  # numbers of faces, and no picture


def rewrite(path: Path, *, metadata: dict[str, str] | None = None, **tensors: torch.Tensor) -> None:
    """The file with some of its metadata or tensors replaced, as somebody who changes a list would."""
    old_tensors, old_metadata = load_tensors(path)
    save_file({**old_tensors, **tensors}, path, {**old_metadata, **(metadata or {})})


@pytest.mark.attack
@pytest.mark.parametrize(
    ("metadata", "tensors", "words"),
    [
        ({"people": '["Ann Lee"]'}, {}, "do not belong"),
        ({"people": '{"Ann": 1}'}, {}, "names"),
        ({"people": "[" * 100_000}, {}, "no do-not-swap list"),
        ({"people": json.dumps(["x" * 300, "Bo", "Cy"])}, {}, "names"),
        ({"people": json.dumps(["\x1b[2J", "Bo", "Cy"])}, {}, "do not print"),
        ({"threshold": "0"}, {}, "threshold"),
        ({"threshold": "nan"}, {}, "threshold"),
        ({"threshold": "9"}, {}, "threshold"),
        ({"network": "another"}, {}, "another"),
        ({}, {"embedding": torch.zeros(4, 64)}, "embeddings"),
        ({}, {"embedding": torch.zeros(4, 128)}, "unit length"),
        ({}, {"embedding": torch.full((4, 128), torch.nan)}, "finite"),
        ({}, {"person": torch.tensor([0, 1, 1, 7])}, "do not belong"),
        ({}, {"extra": torch.zeros(1)}, "extra"),
        ({"kind": "gallery"}, {}, "gallery"),
    ],
)
def test_files_that_are_no_lists(listed, tmp_path, metadata, tensors, words):
    path = tmp_path / "list.safetensors"
    listed.save(path)
    rewrite(path, metadata=metadata, **tensors)
    with pytest.raises(WeightsError, match=words):
        ProtectList.load(path)


def test_a_missing_file_and_garbage(tmp_path):
    with pytest.raises(UsageError, match="there is no do-not-swap list"):
        ProtectList.load(tmp_path / "no.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(WeightsError):
        ProtectList.load(tmp_path / "bad.safetensors")


# The signature


def test_signed_lists_are_verified(listed, key, tmp_path):
    path = tmp_path / "list.safetensors"
    listed.signed(key).save(path)
    assert ProtectList.load(path).signer == public_hex(key)
    assert ProtectList.load(path, key=public_hex(key).upper()).people == listed.people
    assert ProtectList.load(path).add("Dee", random_unit(1, seed=4)).signature is None


@pytest.mark.attack
@pytest.mark.parametrize(
    ("metadata", "tensors"),
    [
        ({"threshold": "0.01"}, {}),
        ({"people": '["Bo", "Ann Lee", "Cy"]'}, {}),
        ({}, {"embedding": random_unit(4, seed=9)}),
        ({}, {"person": torch.tensor([1, 0, 0, 2])}),
        ({"signature": "00" * 64}, {}),
        ({"signature": "no hexadecimal"}, {}),
        ({"signer": "00" * 32}, {}),
    ],
)
def test_a_tampered_list_is_refused(listed, key, tmp_path, metadata, tensors):
    path = tmp_path / "list.safetensors"
    listed.signed(key).save(path)
    rewrite(path, metadata=metadata, **tensors)
    with pytest.raises(ProvenanceError, match="not what was signed"):
        ProtectList.load(path)


@pytest.mark.attack
def test_a_flipped_byte_anywhere_in_the_tensors_is_noticed(listed, key, tmp_path):
    path = tmp_path / "list.safetensors"
    listed.signed(key).save(path)
    data = bytearray(path.read_bytes())
    for at in range(len(data) - 4 * 128 * 4, len(data), 97):
        changed = data.copy()
        changed[at] ^= 1
        path.write_bytes(changed)
        with pytest.raises((ProvenanceError, WeightsError)):
            ProtectList.load(path)


@pytest.mark.attack
def test_another_key_and_no_signature_at_all_are_refused_where_a_key_is_asked_for(listed, key, tmp_path):
    path, other = tmp_path / "list.safetensors", Ed25519PrivateKey.generate()
    listed.signed(other).save(path)
    with pytest.raises(ProvenanceError, match=f"signed by {public_hex(other)}, not by {public_hex(key)}"):
        ProtectList.load(path, key=public_hex(key))
    listed.save(path)  # a stripped signature
    assert ProtectList.load(path).signer is None
    with pytest.raises(ProvenanceError, match="is not signed"):
        ProtectList.load(path, key=public_hex(key))


def test_signatures_are_those_of_the_standard():
    """RFC 8032, section 7.1, test 2."""
    public = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
    signature = (
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
    )
    assert is_signature(public, signature, b"\x72")
    assert not is_signature(public, signature, b"\x73") and not is_signature(public, signature[:-2], b"\x72")


def test_keys(key, tmp_path):
    made = own_key(tmp_path / "key.pem")
    assert os.stat(tmp_path / "key.pem").st_mode & 0o777 == 0o600
    assert public_hex(own_key(tmp_path / "key.pem")) == public_hex(made)
    public = tmp_path / "public.pem"
    public.write_bytes(
        made.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    assert parse_public(str(public)) == parse_public(public_hex(made).upper()) == public_hex(made)
    (tmp_path / "other.pem").write_bytes(
        ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    with pytest.raises(ProvenanceError, match="another sort"):
        read_private(tmp_path / "other.pem")
    (tmp_path / "junk.pem").write_bytes(b"junk")
    for read in (lambda path: read_private(path), lambda path: parse_public(str(path))):
        with pytest.raises(ProvenanceError):
            read(tmp_path / "junk.pem")
        with pytest.raises(UsageError, match="no key file"):
            read(tmp_path / "absent.pem")


# Which lists apply


def test_lists_add_up(listed, key, tmp_path, monkeypatch):
    assert enforced() == ()
    own_list().parent.mkdir(parents=True, exist_ok=True)
    imported_folder().mkdir()
    ProtectList().add("own", random_unit(1, seed=11)).save(own_list())
    ProtectList().add("imported", random_unit(1, seed=12)).save(imported_folder() / "a.safetensors")
    env, system = tmp_path / "env#1.safetensors", tmp_path / "sys.safetensors"
    ProtectList().add("env", random_unit(1, seed=13)).signed(key).save(env)
    ProtectList().add("sys", random_unit(1, seed=14)).save(system)
    monkeypatch.setenv("LATENTSWAP_PROTECT", f"{env}#{public_hex(key)}{os.pathsep}{env}")
    monkeypatch.setattr(enforce, "SYSTEM", tmp_path / "protect.toml")
    (tmp_path / "protect.toml").write_text(f'[[list]]\npath = "{system}"\n')
    names = {name for each in enforced() for name in each.people}
    assert names == {"own", "imported", "env", "sys"}
    assert [key for path, key in configured() if path == env] == [public_hex(key), None]
    for seed in range(11, 15):
        with pytest.raises(ProtectedPersonError, match=r"distance 0\.00; up to 0\.\d\d counts"):
            check_face(random_unit(1, seed=seed), what="the face")


def test_a_list_that_changes_is_read_again(tmp_path, monkeypatch):
    path = tmp_path / "list.safetensors"
    ProtectList().add("first", random_unit(1)).save(path)
    monkeypatch.setenv("LATENTSWAP_PROTECT", str(path))
    assert enforced()[0].people == ("first",)
    ProtectList.load(path).add("second", random_unit(1, seed=2)).save(path)
    assert enforced()[0].people == ("first", "second")
    path.unlink()
    with pytest.raises(UsageError, match="LATENTSWAP_PROTECT"):
        enforced()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[list]", "cannot be read"),
        ("lists = 1", "known is list"),
        ("[[list]]\nfile = 'x'", "known are path and key"),
        ("[[list]]\nkey = '00'", "path"),
        ("[[list]]\npath = 'x'\nkey = 'zz'", "64 hexadecimal"),
        ("[[list]]\npath = 'x'\nkey = 3", "wrong"),
        ("list = 3", "wrong"),
        ("[[list]]\npath = '/no/such.safetensors'", "no do-not-swap list"),
    ],
)
def test_a_broken_system_configuration_stops_jobs(tmp_path, monkeypatch, text, words):
    monkeypatch.setattr(enforce, "SYSTEM", tmp_path / "protect.toml")
    (tmp_path / "protect.toml").write_text(text)
    with pytest.raises(UsageError, match=words):
        enforced()


def test_nothing_of_the_user_moves_the_system_configuration(tmp_path):
    """Asked in a process of its own, because the path is settled when the module is loaded."""
    moved = dict.fromkeys(("XDG_CONFIG_DIRS", "XDG_CONFIG_HOME", "HOME", "LATENTSWAP_DATA"), str(tmp_path))
    code = "from latentswap.provenance import enforce; print(enforce.SYSTEM)"
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, env={**os.environ, **moved}, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == str(enforce.SYSTEM)
    assert enforce.SYSTEM.is_absolute() and KIND == "protect-list"


def test_saving_never_writes_a_list_that_cannot_be_read(listed, tmp_path):
    bad = replace(listed, embedding_NE=listed.embedding_NE * torch.nan)
    with pytest.raises(WeightsError, match="finite"):
        bad.save(tmp_path / "bad.safetensors")
    assert not (tmp_path / "bad.safetensors").exists()
    save_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(1)}, {"kind": KIND})
    with pytest.raises(WeightsError):
        ProtectList.load(tmp_path / "x.safetensors")
