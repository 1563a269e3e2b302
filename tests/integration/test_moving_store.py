"""``taskpass store move`` against a real server: killed after any step, refused where it must be, and gone through."""

from __future__ import annotations

import shutil

import pytest

from taskpass import moving
from taskpass.audit.witness import FILE_NAME
from taskpass.cli import installation
from taskpass.config.load import load
from taskpass.config.store import StoreWish
from taskpass.core.audit import Event
from taskpass.core.errors import TaskpassError
from taskpass.keys import files
from taskpass.runtime.system import SystemClock, SystemEntropy
from taskpass.store.configured import open_configured, read_configured
from tests.postgres_stores import OWNER

pytestmark = pytest.mark.service
AROUND = {"clock": SystemClock(), "entropy": SystemEntropy()}


class Killed(BaseException):
    """What stands for a process that is killed."""


def found(directory, store=None):
    founder = installation.Founder("sam", "nobody-here")
    with installation.founding(directory, founder, "acme.example", demo=False, store=store, **AROUND):
        pass
    return directory


def write(directory, number):
    config = load(directory)
    key = files.load(directory / "keys", files.AUDIT)
    store = open_configured(config, audit_key=key, **AROUND)
    with store.write() as unit:
        unit.audit.append(Event("test.happened", "sam", {}, {"n": number}), SystemClock().now())
    store.close()


def events(directory):
    store = read_configured(load(directory))
    try:
        return [record.body.partition('"event":"')[2].partition('"')[0] for record in store.iterate_audit()]
    finally:
        store.close()


def wish_of(place):
    return StoreWish(place.url, OWNER, place.password)


def relocate(directory, place):
    return moving.relocate(directory, place.url, lambda: wish_of(place), **AROUND)


def code(act):
    with pytest.raises(TaskpassError) as refused:
        act()
    return refused.value.code


@pytest.fixture
def directory(tmp_path):
    tmp_path.chmod(0o700)
    return found(tmp_path / "broker")


@pytest.fixture
def places(store_servers):
    made = []

    def place():
        made.append(store_servers(16).empty())
        return made[-1]

    yield place
    for each in made:
        each.drop()


@pytest.mark.parametrize("step", ["write_credential", "write.write_new"])
def test_a_move_that_is_killed_after_any_step_is_finished_by_the_same_command(directory, places, monkeypatch, step):
    write(directory, 1)
    place = places()
    before = (directory / "taskpass.toml").read_bytes()

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(f"taskpass.moving.{step}", killed)
        with pytest.raises(Killed):
            relocate(directory, place)
    assert (directory / "taskpass.toml").read_bytes() == before
    assert code(lambda: write(directory, 2)) == "store_moved"
    assert relocate(directory, place).moved
    assert load(directory).broker.store == place.url
    assert events(directory) == ["test.happened", "store.moved"]
    write(directory, 2)
    assert relocate(directory, place).moved is None, "and then there is nothing left to do"


def test_a_move_to_another_s_store_leaves_the_old_one_in_use(directory, places, tmp_path):
    place = places()
    found(tmp_path / "theirs", wish_of(place))
    assert code(lambda: relocate(directory, place)) == "store_exists"
    write(directory, 1)
    assert relocate(directory, places()).moved


def test_a_store_that_was_put_back_from_a_backup_is_adopted_before_it_moves(directory, places):
    write(directory, 1)
    backup = {path: path.read_bytes() for path in directory.glob("taskpass.db*")}
    write(directory, 2)
    for path in directory.glob("taskpass.db*"):
        path.unlink()
    for path, content in backup.items():
        path.write_bytes(content)
        path.chmod(0o600)
    assert code(lambda: relocate(directory, places())) == "store_restored"
    (directory / FILE_NAME).unlink()
    assert relocate(directory, places()).moved


def test_a_store_moves_from_server_to_server_once_no_other_broker_lives_on_it(directory, places, tmp_path):
    first, second = places(), places()
    directory = found(tmp_path / "shared", wish_of(first))
    key = files.load(directory / "keys", files.AUDIT)
    store = open_configured(load(directory), audit_key=key, **AROUND)
    with store.write() as unit:
        unit.owners.beat("brk_other", "there")
    assert code(lambda: relocate(directory, second)) == "brokers_alive"
    with store.write() as unit:
        unit.owners.end("brk_other")
    store.close()
    shutil.copytree(directory, tmp_path / "further")
    assert relocate(directory, second).moved
    assert load(directory).broker.store_login == {"file": "store-2"}
    write(directory, 1)
    assert relocate(tmp_path / "further", second).moved, "a further broker goes along"
    assert events(tmp_path / "further") == ["store.moved", "test.happened"]


def test_a_configuration_that_would_change_in_anything_else_is_left_to_a_person(directory, places):
    path = directory / "taskpass.toml"
    path.write_text(path.read_text() + '\n[broker.store_login]\nfile = "x"\n')
    path.write_text(path.read_text().replace("[broker]\n", '[broker]\n"store" = "sqlite:////srv/x/taskpass.db"\n'))
    place = places()
    assert code(lambda: relocate(directory, place)) == "config_invalid"
