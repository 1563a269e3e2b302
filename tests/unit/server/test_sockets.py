"""Binding: never wider than meant, never over somebody else's file, clear words."""

from __future__ import annotations

import os
import socket
import stat

import pytest

from taskpass.core.errors import ConfigInvalid, Conflict
from taskpass.server.sockets import bind_unix, private_directory


@pytest.fixture
def directory(tmp_path):
    return private_directory(tmp_path / "d")


def mode_of(path):
    return stat.S_IMODE(path.lstat().st_mode)


def test_a_bound_socket_is_for_its_owner_only(directory):
    with bind_unix(directory / "s"):
        assert mode_of(directory / "s") == 0o600


def test_the_socket_is_never_wider_even_without_a_umask_and_before_anybody_listens(directory, monkeypatch):
    seen = []

    class Watched(socket.socket):
        def listen(self, *backlog):
            seen.append(mode_of(directory / "s"))
            super().listen(*backlog)

    monkeypatch.setattr(socket, "socket", Watched)
    old = os.umask(0)
    try:
        with bind_unix(directory / "s"):
            seen.append(mode_of(directory / "s"))
    finally:
        os.umask(old)
    assert seen == [0o600, 0o600]


def test_a_path_of_107_bytes_is_bound_and_one_of_108_is_refused_with_the_fix(directory):
    room = 107 - len(os.fsencode(directory)) - 1
    with bind_unix(directory / ("s" * room)):
        pass
    with pytest.raises(ConfigInvalid) as refused:
        bind_unix(directory / ("s" * (room + 1)))
    assert refused.value.code == "socket_path_too_long"
    assert "TASKPASS_RUNTIME_DIR" in refused.value.hint


def test_a_live_socket_means_another_broker(directory):
    with bind_unix(directory / "s"):
        with pytest.raises(Conflict) as refused:
            bind_unix(directory / "s")
        assert refused.value.code == "broker_running"
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(directory / "s"))


def test_a_stale_socket_is_replaced(directory):
    bind_unix(directory / "s").close()
    with bind_unix(directory / "s"), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(directory / "s"))


@pytest.mark.parametrize("make", ["file", "link", "directory"])
def test_anything_else_at_the_path_is_left_alone(directory, make):
    path = directory / "s"
    if make == "file":
        path.write_text("precious")
    elif make == "link":
        path.symlink_to("/nowhere")
    else:
        path.mkdir()
    with pytest.raises(ConfigInvalid):
        bind_unix(path)
    assert path.is_symlink() or path.exists()


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o722])
def test_a_directory_that_others_can_write_to_is_refused(directory, mode):
    directory.chmod(mode)
    with pytest.raises(ConfigInvalid) as refused:
        bind_unix(directory / "s")
    assert refused.value.code == "directory_not_private"


def test_a_private_directory_is_0700_whatever_the_umask(tmp_path):
    old = os.umask(0)
    try:
        made = private_directory(tmp_path / "a" / "b")
    finally:
        os.umask(old)
    assert mode_of(made) == 0o700
    assert mode_of(made.parent) == 0o700


def test_a_link_in_place_of_the_directory_is_refused(tmp_path):
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "d").symlink_to(tmp_path / "real")
    with pytest.raises(ConfigInvalid):
        private_directory(tmp_path / "d")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a socket away")
def test_a_socket_for_another_account_lies_in_a_directory_that_it_cannot_change(tmp_path):
    made = private_directory(tmp_path / "run", reader_uid=4321)
    with bind_unix(made / "s", uid=4321):
        found = (made / "s").lstat()
        assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (4321, 0o600)
        assert (made.lstat().st_uid, mode_of(made)) == (os.geteuid(), 0o711)
    with bind_unix(made / "s", uid=4321):
        pass
