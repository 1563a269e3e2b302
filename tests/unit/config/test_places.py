from __future__ import annotations

import os

import pytest

from taskpass.config import places
from taskpass.core.errors import ConfigInvalid


@pytest.fixture
def home(tmp_path):
    tmp_path.chmod(0o700)
    (tmp_path / "policy").mkdir(mode=0o700)
    (tmp_path / "policy/a.cedar").write_text("permit")
    (tmp_path / "policy/a.cedar").chmod(0o600)
    return tmp_path


def test_a_file_of_ours_is_read(home):
    assert places.read_trusted(home / "policy/a.cedar") == b"permit"
    assert places.read_tree(home) == {"policy/a.cedar": b"permit"}


@pytest.mark.parametrize("victim", ["policy/a.cedar", "policy", "."])
@pytest.mark.parametrize("mode", [0o720, 0o702])
def test_an_element_that_others_can_write_is_refused(home, victim, mode):
    (home / victim).chmod(mode)
    with pytest.raises(ConfigInvalid, match="written by others"):
        places.read_trusted(home / "policy/a.cedar")


def test_a_link_is_refused_wherever_it_stands(home):
    (home / "linked").symlink_to(home / "policy")
    with pytest.raises(ConfigInvalid, match="is a link"):
        places.read_trusted(home / "linked/a.cedar")
    (home / "policy/b.cedar").symlink_to(home / "policy/a.cedar")
    with pytest.raises(ConfigInvalid, match="is a link"):
        places.read_trusted(home / "policy/b.cedar")
    with pytest.raises(ConfigInvalid, match="is a link"):
        places.read_tree(home / "policy")


@pytest.mark.parametrize("victim", ["policy/a.cedar", "policy"])
def test_an_element_of_another_account_is_refused(home, victim, monkeypatch):
    if os.getuid() == 0:
        os.chown(home / victim, 65534, 65534)
    else:  # Only root can give a file away; anybody can be somebody else for the comparison.
        monkeypatch.setattr(places.os, "getuid", lambda: 65534)
    with pytest.raises(ConfigInvalid, match="another account"):
        places.read_trusted(home / "policy/a.cedar")


def test_a_sticky_directory_of_ours_is_not_enough_if_it_is_not_roots(home):
    home.chmod(0o1777)
    if os.getuid() == 0:
        places.read_trusted(home / "policy/a.cedar")
        os.chown(home, 65534, 65534)
    with pytest.raises(ConfigInvalid):
        places.read_trusted(home / "policy/a.cedar")
    if os.getuid() == 0:
        os.chown(home, 0, 0)


def test_a_fifo_does_not_stop_the_start(home):
    os.mkfifo(home / "policy/pipe", 0o600)
    with pytest.raises(ConfigInvalid, match="neither a file nor a directory"):
        places.read_trusted(home / "policy/pipe")


def test_a_private_file_is_refused_when_others_can_read_it(home):
    path = home / "policy/a.cedar"
    path.chmod(0o604)
    with pytest.raises(ConfigInvalid, match="read by others"):
        places.read_trusted(path, private=True)
    path.chmod(0o600)
    assert places.read_trusted(path, private=True)


def test_a_relative_path_or_one_with_dots_is_refused(home):
    for path in (home / "../x", type(home)("taskpass.toml")):
        with pytest.raises(ConfigInvalid, match="absolute"):
            places.read_trusted(path)


def test_a_file_that_is_too_large_is_refused(home):
    (home / "policy/a.cedar").write_bytes(b"x" * (places.MAX_BYTES + 1))
    with pytest.raises(ConfigInvalid, match="larger"):
        places.read_trusted(home / "policy/a.cedar")


def test_no_descriptor_is_left_open(home):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        places.read_tree(home)
        with pytest.raises(ConfigInvalid):
            places.read_trusted(home / "absent/x")
    assert len(os.listdir("/proc/self/fd")) == before
