"""The password file in memory: what libpq finds in it, who can change it, and who gets it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from taskpass.client.password_file import password_file, path_of

SOURCE = Path(__file__).parents[3] / "src"
BEARER = {"host": "db.example", "port": 5432, "database": "orders", "user": "tp_a_b", "ca": "", "password": "s3cret"}


@pytest.fixture
def made():
    opened = []

    def make(**changes):
        opened.append(password_file(dict(BEARER) | changes))
        return opened[-1]

    yield make
    for descriptor in opened:
        os.close(descriptor)


def test_it_holds_one_entry_for_the_target_alone(made):
    assert Path(path_of(made())).read_text() == "db.example:5432:orders:tp_a_b:s3cret\n"


def test_what_separates_fields_is_escaped(made):
    text = Path(path_of(made(host="::1", database="a\\b:c"))).read_text()
    assert text == "\\:\\:1:5432:a\\\\b\\:c:tp_a_b:s3cret\n"


def test_a_unix_socket_is_found_under_both_names_that_libpq_uses(made):
    text = Path(path_of(made(host="/var/run/postgresql"))).read_text()
    assert [line.split(":")[0] for line in text.splitlines()] == ["/var/run/postgresql", "localhost"]


def test_a_name_with_a_line_break_cannot_begin_another_entry(made):
    assert Path(path_of(made(database="a\n*:*:*:*:x"))).read_text() == "db.example:5432:*:tp_a_b:s3cret\n"


def test_the_holder_of_the_login_does_not_keep_the_password():
    bearer = dict(BEARER)
    os.close(password_file(bearer))
    assert "password" not in bearer


def test_it_is_private_and_sealed(made):
    descriptor = made()
    status = os.fstat(descriptor)
    assert stat.S_ISREG(status.st_mode)
    assert stat.S_IMODE(status.st_mode) == 0o400
    with pytest.raises(PermissionError):
        os.write(descriptor, b"x")
    with pytest.raises(PermissionError):
        os.ftruncate(descriptor, 0)


def test_only_the_child_that_it_is_handed_to_gets_it(made):
    code = f"""
import os, sys; sys.path.insert(0, {str(SOURCE)!r})
from taskpass.client.password_file import password_file, path_of
from taskpass.client.run_child import run_child
file = password_file({BEARER!r})
before = run_child(["cat", path_of(file)], os.environ)
handed = run_child(["cat", path_of(file)], os.environ, hand_over=file)
sys.exit(10 * bool(before) + handed + 5 * os.path.exists(path_of(file)))
"""
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, done.stdout) == (10, "db.example:5432:orders:tp_a_b:s3cret\n"), done.stderr
