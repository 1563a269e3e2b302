from __future__ import annotations

import os
import pickle
import stat

import pytest

from taskpass.core.errors import ConfigInvalid, Conflict, InvalidInput
from taskpass.keys import files
from taskpass.keys.ed25519 import AUDIT_PREFIX, PublicKeys, encode
from taskpass.testing.suites.records import NOW, Counting


@pytest.fixture
def home(tmp_path):
    tmp_path.chmod(0o700)
    return tmp_path / "keys"


@pytest.fixture
def key(home):
    return files.create(home, files.AUDIT, entropy=Counting(), at=NOW)


def test_a_key_that_was_made_is_loaded_again(home, key):
    loaded = files.load(home, files.AUDIT)
    assert (loaded.key_id, loaded.public, loaded.created_at) == (key.key_id, key.public, key.created_at)
    assert loaded.created_at == "2026-09-21T14:13:20.000Z"
    assert PublicKeys([key.public]).verify(loaded.key_id, b"data", encode(loaded.sign(b"data")))


def test_only_the_broker_can_read_it(home, key):
    assert stat.S_IMODE((home / "audit.key").stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o700


def test_a_key_is_never_replaced(home, key):
    with pytest.raises(Conflict):
        files.create(home, files.AUDIT, entropy=Counting(), at=NOW)
    assert files.load(home, files.AUDIT).key_id == key.key_id


def test_a_key_does_not_show_itself(home, key):
    private = (home / "audit.key").read_text().split('"private": "')[1].split('"')[0]
    assert private not in repr(key) + str(key) + key.public
    with pytest.raises(TypeError):
        pickle.dumps(key)


def refused(home, code):
    with pytest.raises(ConfigInvalid) as found:
        files.load(home, files.AUDIT)
    assert found.value.code == code


def test_a_missing_key_is_said(home):
    refused(home, "key_missing")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610])
def test_a_file_that_is_open_to_others_is_refused(home, key, mode):
    (home / "audit.key").chmod(mode)
    refused(home, "key_unsafe")


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
@pytest.mark.parametrize("above", [0, 1])
def test_a_directory_that_others_may_change_is_refused(home, key, mode, above):
    place = [home, home.parent][above]
    place.chmod(mode)
    refused(home, "key_unsafe")
    place.chmod(0o700)


def test_a_link_in_place_of_the_file_is_refused(home, key):
    (home / "audit.key").rename(home / "real.key")
    (home / "audit.key").symlink_to(home / "real.key")
    refused(home, "key_unsafe")


def test_a_pipe_in_place_of_the_file_is_refused(home, key):
    (home / "audit.key").unlink()
    os.mkfifo(home / "audit.key", 0o600)
    refused(home, "key_unsafe")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_belongs_to_another_user_is_refused(home, key):
    os.chown(home / "audit.key", 65534, 65534)
    refused(home, "key_unsafe")
    os.chown(home / "audit.key", 0, 0)
    os.chown(home, 65534, 65534)
    refused(home, "key_unsafe")
    os.chown(home, 0, 0)
    (home.parent / "link").symlink_to(home)
    os.chown(home.parent / "link", 65534, 65534, follow_symlinks=False)
    refused(home.parent / "link", "key_unsafe")


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: "",
        lambda text: "[]",
        lambda text: text[:-20],
        lambda text: text.replace("audit", "seal"),
        lambda text: text.replace("ed25519", "rsa"),
        lambda text: text.replace('"private": "A', '"private": "B'),
    ],
)
def test_a_damaged_file_is_refused(home, key, edit):
    path = home / "audit.key"
    path.write_text(edit(path.read_text()))
    refused(home, "key_invalid")


def test_trust_takes_a_key_as_text_or_as_a_file(tmp_path, key):
    path = tmp_path / "trusted"
    path.write_text(f"# pinned at init\n\n{key.public}\n")
    signature = encode(key.sign(b"data"))
    for trusted in (files.trust(key.public), files.trust(str(path))):
        assert trusted.ids == (key.key_id,)
        assert trusted.verify(key.key_id, b"data", signature)
        assert not trusted.verify("0" * 16, b"data", signature)
        assert not trusted.verify(key.key_id, b"date", signature)


@pytest.mark.parametrize("text", ["", "nowhere", AUDIT_PREFIX, f"{AUDIT_PREFIX}AAAA", f"{AUDIT_PREFIX}{'A' * 44}"])
def test_what_is_no_key_is_not_trusted(text, tmp_path):
    with pytest.raises(InvalidInput):
        files.trust(text)
    path = tmp_path / "trusted"
    path.write_text(text)
    with pytest.raises(InvalidInput):
        files.trust(str(path))
