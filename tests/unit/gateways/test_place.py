from __future__ import annotations

import os
import shutil
import socket
import stat
import tempfile
from pathlib import Path

import pytest

from taskpass.core.errors import Conflict, Internal, InvalidInput
from taskpass.gateways.postgres.place import MAX_SOCKET_PATH, SOCKET_NAME, make_place


@pytest.fixture
def base():
    made = Path(tempfile.mkdtemp(prefix="tp-", dir="/tmp"))
    yield made
    shutil.rmtree(made)


def open_descriptors():
    return len(os.listdir("/proc/self/fd"))


def test_directory_and_socket_are_for_the_owner_only(base):
    place = make_place(f"{base}/e", os.geteuid())
    for path, mode in ((base / "e", 0o700), (base / "e" / SOCKET_NAME, 0o600)):
        assert stat.S_IMODE(path.lstat().st_mode) == mode
        assert path.lstat().st_uid == os.geteuid()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(f"{base}/e/{SOCKET_NAME}")
    place.remove()
    assert not (base / "e").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_the_agents_uid_owns_both(base):
    place = make_place(f"{base}/e", 65534)
    assert [(base / "e").stat().st_uid, (base / "e" / SOCKET_NAME).stat().st_uid] == [65534, 65534]
    place.remove()


def test_what_exists_is_never_taken_over(base):
    (base / "directory").mkdir()
    (base / "link").symlink_to("/etc")
    (base / "file").touch()
    before = open_descriptors()
    for name in ("directory", "link", "file"):
        with pytest.raises(Conflict):
            make_place(f"{base}/{name}", os.geteuid())
    assert open_descriptors() == before


def test_a_directory_that_is_swapped_for_a_link_while_it_is_made_is_not_followed(base, monkeypatch):
    (base / "elsewhere").mkdir()
    real = os.mkdir

    def swap(name, mode, *, dir_fd):
        real(name, mode, dir_fd=dir_fd)
        os.rmdir(name, dir_fd=dir_fd)
        os.symlink(base / "elsewhere", name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "mkdir", swap)
    with pytest.raises(Internal):
        make_place(f"{base}/e", os.geteuid())
    assert list((base / "elsewhere").iterdir()) == []


def test_a_swap_before_the_end_changes_nothing_elsewhere(base):
    place = make_place(f"{base}/e", os.geteuid())
    (base / "e").rename(base / "moved")
    (base / "elsewhere").mkdir()
    (base / "elsewhere" / SOCKET_NAME).touch()
    (base / "e").symlink_to(base / "elsewhere")
    place.remove()
    assert (base / "elsewhere" / SOCKET_NAME).exists()
    assert not (base / "moved" / SOCKET_NAME).exists()


def test_a_path_that_no_client_could_use_is_refused(base):
    longest = MAX_SOCKET_PATH - len(str(base)) - 2 - len(SOCKET_NAME)
    place = make_place(f"{base}/{'x' * longest}", os.geteuid())
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(f"{base}/{'x' * longest}/{SOCKET_NAME}")
    place.remove()
    for path in (f"{base}/{'x' * (longest + 1)}", "relative", f"{base}/../e"):
        with pytest.raises(InvalidInput):
            make_place(path, os.geteuid())


def test_a_parent_that_is_missing_is_an_error_of_ours(base):
    before = open_descriptors()
    with pytest.raises(Internal):
        make_place(f"{base}/missing/e", os.geteuid())
    assert open_descriptors() == before
