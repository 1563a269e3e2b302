from __future__ import annotations

import os

import pytest

from taskpass.cli import installation
from taskpass.cli.entry import main
from taskpass.config.load import load
from taskpass.core.errors import ConfigInvalid, TaskpassError
from taskpass.issuers.postgres import kit
from taskpass.issuers.postgres.enrol import read_login

CANARY = "c4n4ry-p4ssw0rd"


@pytest.mark.parametrize(
    ("text", "address", "ca"),
    [
        ("postgresql://a:p%40ss@db.example:5433/shop", "db.example:5433/shop", "system"),
        ("postgres://a:p%40ss@db.example/shop?sslmode=disable", "db.example:5432/shop", "system"),
        ("postgres://a:p%40ss@db.example/shop?sslrootcert=/etc/ca.pem", "db.example:5432/shop", "/etc/ca.pem"),
        ("postgresql://a:p%40ss@[2001:db8::1]:5432/shop", "[2001:db8::1]:5432/shop", "system"),
        ("postgresql://a:p%40ss@127.0.0.1:5432/shop", "127.0.0.1:5432/shop", ""),
        ("host=/run/postgresql user=a password=p@ss dbname=shop", "/run/postgresql:5432/shop", ""),
    ],
)
def test_a_login_is_read_and_tls_is_verified_in_full_whatever_it_says(text, address, ca):
    login = read_login(text)
    assert (login.address, login.user, login.ca) == (address, "a", ca)
    assert login.password.reveal() == "p@ss"
    assert "p@ss" not in repr(login)


@pytest.mark.parametrize(
    "text",
    [
        f"postgresql://a:{CANARY}@h1,h2/shop",
        f"postgresql://a:{CANARY}@h/shop?service=x",
        f"postgresql://a:{CANARY}@h",
        f"postgresql://:{CANARY}@h/shop",
        f"postgresql://a:{CANARY}@ep-x-pooler.eu.aws.neon.tech/shop",
        f"postgresql://a:{CANARY}@h:99999/shop",
        f"postgresql://a:{CANARY}@h:x/shop",
        f"user=a password='{CANARY} dbname=shop",
        f"user=a password={CANARY} dbname=shop nothing=1 host=h",
        CANARY,
        "",
    ],
)
def test_a_login_that_cannot_be_used_is_refused_and_never_repeated(text):
    with pytest.raises(TaskpassError) as caught:
        read_login(text)
    assert CANARY not in caught.value.message + caught.value.hint


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.delenv("TASKPASS_SOCK", raising=False)
    tmp_path.chmod(0o700)
    return tmp_path / "broker"


def init(place, *words):
    return main(["init", "--directory", str(place), "--person", "ana", *words])


def test_init_makes_a_directory_that_serves(place, capfd):
    assert init(place, "--trust-domain", "acme.example") == 0
    config = load(place)
    assert config.broker.trust_domain == "acme.example"
    assert set(config.people.humans) == {"ana"}
    assert config.people.groups["dba"] == {"ana"}
    assert main(["check", "--directory", str(place)]) == 0
    assert main(["policy", "test", "--directory", str(place)]) == 0
    for path in (place, *place.rglob("*")):
        assert not path.stat().st_mode & 0o077, path


def test_the_reviewer_secret_is_shown_once_and_kept_nowhere(place, capfd):
    assert init(place) == 0
    said = capfd.readouterr().err
    secret = next(line.strip() for line in said.splitlines() if line.startswith("    "))
    assert len(secret) == 29
    assert not any(secret.encode() in path.read_bytes() for path in place.rglob("*") if path.is_file())


def test_init_again_without_a_database_is_told_and_changes_nothing(place):
    assert init(place) == 0
    before = {path: path.read_bytes() for path in place.rglob("*.toml")}
    assert init(place) == 2
    assert {path: path.read_bytes() for path in place.rglob("*.toml")} == before


def test_init_does_not_touch_a_directory_of_somebody_else(place, capfd):
    place.mkdir()
    (place / "notes.txt").write_text("mine")
    assert init(place) == 1
    assert [path.name for path in place.iterdir()] == ["notes.txt"]
    assert "is not empty" in capfd.readouterr().err


@pytest.mark.parametrize("words", [("--trust-domain", "ACME"), ("--person", "Ana B")])
def test_an_init_that_fails_leaves_nothing(place, words):
    assert init(place, *words) == 2
    assert list(place.parent.iterdir()) == []


def test_a_failure_at_any_file_leaves_nothing(place, monkeypatch):
    def full(*_, **__):
        raise ConfigInvalid("no space left")

    monkeypatch.setattr(installation.write, "write_new", full)
    assert init(place) == 2
    assert list(place.parent.iterdir()) == []


def test_what_a_killed_init_left_is_removed_by_the_next(place):
    gone, alive = (place.with_name(f".broker.{number}.new") for number in (2**22 + 1, os.getpid()))
    gone.mkdir()
    alive.mkdir()
    installation._remove_abandoned(place)
    assert not gone.exists()
    assert alive.exists()


def test_a_directory_below_one_that_others_can_write_is_refused(tmp_path):
    tmp_path.chmod(0o777)
    assert init(tmp_path / "broker") == 2
    assert list(tmp_path.iterdir()) == []


def test_a_second_person_gets_a_secret_of_their_own(place, capfd):
    assert init(place) == 0
    assert main(["people", "add", "ben", "--os-user", "ben", "--group", "dba", "--directory", str(place)]) == 0
    people = load(place).people
    assert people.groups["dba"] == {"ana", "ben"}
    assert people.humans["ana"].reviewer_key != people.humans["ben"].reviewer_key
    assert main(["people", "add", "ben", "--directory", str(place)]) == 1
    assert main(["people", "add", "eve", "--group", "nobody", "--directory", str(place)]) == 2
    assert set(load(place).people.humans) == {"ana", "ben"}


def test_the_script_for_a_dba_needs_no_database_and_holds_no_password(place, capfd):
    words = ("--postgres", "--print-sql", "--name", "orders", "--table", "public.*")
    assert init(place, *words) == 0
    script = capfd.readouterr().out
    assert "SCRAM-SHA-256$" in script
    password = (place / "credentials/orders.cred").read_text().split('"')[-2]
    assert password not in script
    assert load(place).resources == {}


@pytest.mark.parametrize(
    "words", [("--print-sql",), ("--print-sql", "--login-stdin"), ("--admin-dsn-stdin", "--print-sql", "--name", "x")]
)
def test_options_that_do_not_go_together_leave_nothing(place, words):
    assert init(place, "--postgres", *words) == 2
    assert list(place.parent.iterdir()) == []


@pytest.mark.parametrize(("option", "script"), [("--upgrade", kit.upgrade_sql), ("--uninstall", kit.uninstall_sql)])
def test_a_script_for_the_dba_needs_no_directory_and_makes_none(place, capfd, option, script):
    assert main(["init", "--directory", str(place), "--print-sql", option]) == 0
    assert capfd.readouterr().out.strip() == script().strip()
    assert not place.exists()


@pytest.mark.parametrize("words", [["--upgrade"], ["--uninstall"], ["--print-sql", "--upgrade", "--uninstall"]])
def test_a_script_for_the_dba_is_only_printed_and_one_at_a_time(place, capfd, words):
    assert main(["init", "--directory", str(place), *words]) == 2
    assert "[usage]" in capfd.readouterr().err
    assert not place.exists()


@pytest.mark.parametrize("words", [(f"postgresql://keeper:{CANARY}@db/records",), ("sqlite:////srv/taskpass.db",)])
def test_a_store_is_moved_to_no_address_with_a_password_in_it_and_to_no_file(place, capfd, words):
    assert main(["store", "move", "--directory", str(place), *words]) == 2
    said = capfd.readouterr()
    assert CANARY not in said.out + said.err
    assert "postgresql://host:port/database" in said.err or "command line" in said.err
    assert not place.exists()


@pytest.mark.parametrize(
    "words",
    [("--join", "/x"), ("--as", "b"), ("--join", "/x", "--as", "b", "--postgres"), ("--own-login", "--upgrade")],
)
def test_joining_is_a_step_of_its_own(place, words):
    assert init(place, *words) == 2
    assert not place.exists()
