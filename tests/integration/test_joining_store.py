"""``taskpass init --join`` and ``--own-login``: a further broker on a store, with a login of its own in each target."""

from __future__ import annotations

import psycopg
import pytest

from taskpass.cli.enrolment import Enrolling, Wanted
from taskpass.cli.joining import join
from taskpass.config.credentials import read_credential
from taskpass.config.load import load
from taskpass.core.errors import TaskpassError
from taskpass.core.secret import Secret
from taskpass.core.separation import Environment
from taskpass.issuers.postgres import kit
from tests.integration.test_moving_store import AROUND, code, found, wish_of

pytestmark = pytest.mark.service
ENTROPY = AROUND["entropy"]


class Site:
    """A broker with its store and one enrolled database; ``admin`` is that database's administrator."""

    def __init__(self, directory, server, store):
        self.server, self.store = server, store
        with server.connect() as connection:
            connection.execute("CREATE DATABASE joined TEMPLATE template0")
        with server.connect("joined") as connection:
            connection.execute("CREATE TABLE orders (id int)")
        self.address = server.address("joined")
        self.admin = Secret(f"postgresql://{server.superuser}:{server.password.reveal()}@{self.address}")
        self.first = found(directory, wish_of(store))
        wanted = Wanted("orders", Environment.DEV, ("public.*",), (), (), close_other_databases=False)
        Enrolling(self.first, **AROUND).with_admin(wanted, self.admin)

    def joined(self, name="b"):
        directory = self.first.with_name(name)
        return directory, join(directory, self.first, name, entropy=ENTROPY)

    def rows(self, statement):
        with self.server.connect("joined") as connection:
            return connection.execute(statement).fetchall()

    def run(self, script):
        with self.server.connect("joined") as connection:
            connection.execute(script)

    def lets_in(self, directory):
        login = read_credential(directory, {"file": "orders.cred"})
        words = {"user": login.user, "password": login.password.reveal()}
        with psycopg.connect(f"postgresql://{self.address}", **words) as connection:
            return connection.execute("SELECT taskpass.version()").fetchone() == (kit.KIT_VERSION,)

    def drop(self):
        logins = [name for (name,) in self.rows("SELECT login::text FROM taskpass.broker")]
        with self.server.connect("joined") as connection:
            connection.execute(kit.uninstall_sql().encode())
        with self.server.connect() as connection:
            connection.execute("DROP DATABASE joined WITH (FORCE)")
            for name in logins:
                connection.execute(f"DROP ROLE IF EXISTS {name}")


@pytest.fixture(scope="module")
def site(servers, store_servers, tmp_path_factory):
    place = tmp_path_factory.mktemp("site")
    place.chmod(0o700)
    store = store_servers(16).empty()
    made = Site(place / "first", servers(16), store)
    yield made
    made.drop()
    store.drop()


def test_a_further_broker_shares_what_is_shared_and_enters_the_target_as_itself(site):
    directory, joined = site.joined()
    config, shared = load(directory), load(site.first)
    assert config.broker.name == "b"
    assert config.resources == shared.resources
    assert {path.name for path in directory.iterdir()} == {"taskpass.toml", "policy", "keys", "credentials"}
    assert all(not path.stat().st_mode & 0o077 for path in directory.rglob("*"))
    assert joined.waiting == ("orders",)
    ceiling = site.rows("SELECT * FROM taskpass.ceiling ORDER BY 1, 2, 3")
    for _ in "again":
        Enrolling(directory, **AROUND).own_login("orders", site.admin)
    assert site.lets_in(directory)
    assert site.lets_in(site.first)
    assert site.rows("SELECT * FROM taskpass.ceiling ORDER BY 1, 2, 3") == ceiling
    assert len(site.rows("SELECT FROM taskpass.broker")) == 2
    assert len(site.rows("SELECT DISTINCT epoch FROM taskpass.broker")) == 1


def test_a_dba_runs_the_script_which_holds_no_password_and_changes_none_that_is_in_use(site):
    directory, joined = site.joined("c")
    text = Enrolling(directory, **AROUND).own_login_sql("orders")
    assert read_credential(directory, {"file": "orders.cred"}).password.reveal() not in text
    site.run(text)
    assert site.lets_in(directory)
    site.run(f"ALTER ROLE {joined.user} PASSWORD 'changed'")
    site.run(text)
    with pytest.raises(psycopg.OperationalError):
        site.lets_in(directory)


def test_a_name_that_another_broker_has_is_refused_before_anything_is_changed(site):
    taken, _ = site.joined("d")
    Enrolling(taken, **AROUND).own_login("orders", site.admin)
    second = site.first.with_name("d-again")
    join(second, site.first, "d", entropy=ENTROPY)
    assert code(lambda: Enrolling(second, **AROUND).own_login("orders", site.admin)) == "login_taken"
    assert site.lets_in(taken)


def test_a_database_of_another_installation_gets_no_login(site, store_servers, tmp_path):
    tmp_path.chmod(0o700)
    store = store_servers(16).empty()
    theirs = found(tmp_path / "theirs", wish_of(store))
    config = (site.first / "taskpass.toml").read_text()
    (theirs / "taskpass.toml").write_text(
        (theirs / "taskpass.toml").read_text() + config[config.index("[resources.orders]") :]
    )
    directory = tmp_path / "x"
    join(directory, theirs, "x", entropy=ENTROPY)
    before = site.rows("SELECT rolname FROM pg_roles ORDER BY 1")
    with pytest.raises(TaskpassError) as refused:
        Enrolling(directory, **AROUND).own_login("orders", site.admin)
    assert "not enrolled" in refused.value.message
    assert site.rows("SELECT rolname FROM pg_roles ORDER BY 1") == before
    store.drop()


@pytest.mark.parametrize("name", ["", "B", "a-b", "x" * 17])
def test_a_join_that_fails_leaves_nothing(site, name):
    before = set(site.first.parent.iterdir())
    assert code(lambda: join(site.first.with_name("no"), site.first, name, entropy=ENTROPY)) == "config_invalid"
    assert set(site.first.parent.iterdir()) == before


def test_a_store_in_a_file_is_not_shared(tmp_path):
    tmp_path.chmod(0o700)
    first = found(tmp_path / "first")
    assert code(lambda: join(tmp_path / "b", first, "b", entropy=ENTROPY)) == "store_not_shared"
    assert {path.name for path in tmp_path.iterdir()} == {"first"}
