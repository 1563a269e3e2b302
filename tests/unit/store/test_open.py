from __future__ import annotations

import os
import stat
import subprocess
import sys

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from taskpass.core.errors import ConfigInvalid, Conflict, StoreUnavailable
from taskpass.keys import files
from taskpass.store import migrations, triggers
from taskpass.store.open import VERSIONS, Create, open_reader
from taskpass.store.tables import metadata
from taskpass.testing.suites.records import NOW, Counting, event


def unavailable(code, action):
    with pytest.raises(StoreUnavailable) as found:
        action()
    assert found.value.code == code


def test_a_new_store_has_an_identity_and_keeps_it(home):
    with home.create().read() as unit:
        made = unit.installation
    assert (made.epoch, made.demo, made.created_at, made.latest_seen) == (1, False, NOW, NOW)
    assert len(made.id) == 8
    for create in (None, Create()):
        with home.open(create).read() as unit:
            assert unit.installation == made


def test_the_demo_flag_is_set_once(home):
    with home.open(Create(demo=True)).read() as unit:
        assert unit.installation.demo is True
    home.open()
    with pytest.raises(Conflict) as found:
        home.open(Create(demo=False))
    assert found.value.code == "store_exists"


def test_nothing_is_created_unless_asked(home):
    unavailable("store_missing", home.open)
    assert not home.path.exists()
    unavailable("store_missing", lambda: open_reader(home.url))
    home.path.touch(0o600)
    unavailable("store_missing", home.open)
    unavailable("store_missing", lambda: open_reader(home.url))


@pytest.mark.parametrize(
    "url",
    ["", "sqlite://", "sqlite:///relative.db", "sqlite:///:memory:", "sqlite:////x?mode=ro", "postgresql://h/d", "x"],
)
def test_an_address_that_is_not_an_absolute_path_is_refused(home, url):
    with pytest.raises(ConfigInvalid):
        home.open(url=url, create=Create())


def test_a_path_with_odd_characters_works(home):
    odd = home.directory / "a b%20?#ü'"
    odd.mkdir(0o700)
    url = f"sqlite:///{odd}/x.db".replace("%", "%25").replace("?", "%3F")
    home.open(Create(), url=url)
    assert [path.name for path in odd.iterdir() if path.name.endswith(".db")] == ["x.db"]


def test_files_are_for_the_broker_only(home):
    old = os.umask(0)
    try:
        store = home.open(Create(), url=f"sqlite:///{home.directory}/new/taskpass.db")
        with store.write() as unit:
            unit.audit.append(event(), NOW)
    finally:
        os.umask(old)
    made = home.directory / "new"
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in made.iterdir()}
    assert set(modes.values()) == {0o600}
    assert {"taskpass.db", "taskpass.db-wal", "taskpass.db-shm", "audit-head"} <= modes.keys()


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_store_that_others_may_write_is_refused(home, store, mode):
    home.path.chmod(mode)
    unavailable("store_unsafe", home.open)


@pytest.mark.parametrize("mode", [0o770, 0o703])
def test_a_directory_that_others_may_write_is_refused(home, store, mode):
    home.directory.chmod(mode)
    unavailable("store_unsafe", home.open)
    home.directory.chmod(0o700)


def test_a_link_in_place_of_the_store_is_refused(home, store):
    home.path.rename(home.directory / "real.db")
    home.path.symlink_to(home.directory / "real.db")
    unavailable("store_unsafe", home.open)
    unavailable("store_unavailable", lambda: home.open(Create()))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_store_of_another_user_is_refused(home, store):
    os.chown(home.path, 65534, 65534)
    unavailable("store_unsafe", home.open)


def test_a_store_of_a_newer_version_is_refused_and_left_alone(home, store):
    home.raw("UPDATE alembic_version SET version_num = '9999'")
    unavailable("store_newer", home.open)
    unavailable("store_newer", lambda: open_reader(home.url))
    assert home.raw("SELECT version_num FROM alembic_version") == [("9999",)]


def test_the_versions_known_are_those_of_the_migrations():
    script = ScriptDirectory.from_config(migrations.config())
    assert tuple(reversed([revision.revision for revision in script.walk_revisions()])) == VERSIONS


def test_the_migrations_build_the_tables(store):
    with store.database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_durability_is_what_was_promised(store):
    for writes in (False, True):
        with store.database.begin(writes=writes) as connection:
            for pragma, value in (("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1)):
                assert connection.exec_driver_sql(f"PRAGMA {pragma}").scalar() == value


def test_triggers_that_were_removed_or_changed_are_put_back(home, store):
    home.raw(
        "DROP TRIGGER leases_step",
        "DROP TRIGGER audit_keep",
        "CREATE TRIGGER audit_keep BEFORE DELETE ON audit BEGIN SELECT 1; END",
        "CREATE TRIGGER stray AFTER INSERT ON audit BEGIN SELECT 1; END",
    )
    home.open()
    assert dict(home.raw("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")) == triggers.wanted()


def test_every_table_of_records_is_guarded():
    guarded = {name.rsplit("_keep", 1)[0] for name in triggers.wanted() if name.endswith("_keep")}
    assert guarded == metadata.tables.keys() - {"challenges"}


OPENING = """
import logging, sys
from pathlib import Path
from taskpass.keys import files
from taskpass.store.open import Create, open_store
from taskpass.testing.suites.records import Counting, FixedClock
key = files.load(Path(sys.argv[1]) / "keys", files.AUDIT)
store = open_store(
    f"sqlite:///{sys.argv[1]}/taskpass.db", clock=FixedClock(), entropy=Counting(), audit_key=key, create=Create()
)
store.close()
"""


def test_opening_says_nothing_and_does_not_depend_on_the_working_directory(home, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "alembic.ini").write_text("[alembic]\nscript_location = nowhere\n")
    command = [sys.executable, "-c", OPENING, str(home.directory)]
    for _ in range(2):
        done = subprocess.run(command, cwd=elsewhere, capture_output=True, timeout=60, check=True)
        assert (done.stdout, done.stderr) == (b"", b"")
    assert [path.name for path in elsewhere.iterdir()] == ["alembic.ini"]


def test_opening_again_does_not_load_the_migrations(home, store):
    code = OPENING + "assert 'alembic' not in sys.modules\n"
    subprocess.run([sys.executable, "-c", code, str(home.directory)], timeout=60, check=True)


def test_the_public_keys_that_signed_are_remembered(home, store):
    other = files.create(home.directory / "keys2", files.AUDIT, entropy=Counting(), at=NOW)
    again = home.open(audit_key=other)
    with again.read() as unit:
        assert unit.audit_keys() == {home.key.key_id: home.key.public, other.key_id: other.public}


def test_the_epoch_only_rises(store):
    with store.write() as unit:
        assert unit.raise_epoch(0).epoch == 2
        assert unit.raise_epoch(7).epoch == 8
        assert unit.raise_epoch(3).epoch == 9
    with store.read() as unit:
        assert unit.installation.epoch == 9
