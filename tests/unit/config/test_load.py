from __future__ import annotations

from pathlib import Path

import pytest

from taskpass.config.load import load, parse
from taskpass.core.errors import ConfigInvalid
from taskpass.core.ids import HumanId
from taskpass.core.scope import Level, Verb
from taskpass.core.separation import Environment

KEY = "a2V5a2V5a2V5a2V5a2V5a2V5a2V5a2V5a2V5a2V5a2U="
SALT = "c2FsdHNhbHRzYWx0c2FsdA=="

BROKER = '[broker]\ntrust_domain = "acme.example"\n'
PEOPLE = f"""
[people.human."ana@acme.example"]
os_users = ["ana"]
[people.human.ben]
os_users = ["ben", "ben-admin"]
reviewer_key = "{KEY}"
reviewer_salt = "{SALT}"
[people.groups]
dba = ["ben"]
"""


def resource(name="orders", **changes) -> str:
    lines = {
        "issuer": '"postgres"',
        "environment": '"staging"',
        "address": '"db.acme.example:5432/orders"',
        "tls": '{ ca = "system" }',
        "login": f'{{ file = "{name}.cred" }}',
        "pin": '{ cluster = "7412", database = 16384 }',
        "access": '{ read = { tables = ["public.*"], exclude = ["public.pii"] } }',
    }
    lines |= changes
    body = "\n".join(f"{key.replace('_', '_')} = {value}" for key, value in lines.items() if value)
    return f"\n[resources.{name}]\n{body}\n"


def problem(text: str) -> ConfigInvalid:
    config, problems = parse(text.encode(), Path("/srv/taskpass"))
    assert config is None
    assert problems
    return problems[0]


def test_a_complete_file_becomes_the_frozen_tree():
    config, problems = parse((BROKER + resource() + PEOPLE).encode(), Path("/srv/taskpass"))
    assert not problems
    orders = config.resources["orders"]
    assert (orders.environment, orders.cluster, orders.database) == (Environment.STAGING, "7412", 16384)
    assert orders.access["read"].level is Level.READ
    assert orders.scope("read").excludes("public", "pii")
    assert config.broker.store == "sqlite:////srv/taskpass/taskpass.db"
    assert config.people.groups == {"dba": frozenset({HumanId("ben")})}
    assert config.people.humans[HumanId("ana@acme.example")].os_users == ("ana",)


def test_the_digest_covers_every_byte_of_the_file():
    first, _ = parse((BROKER + PEOPLE).encode(), Path("/srv"))
    second, _ = parse((BROKER + PEOPLE + "# a comment\n").encode(), Path("/srv"))
    assert first.digest != second.digest


@pytest.mark.parametrize(
    ("verbs", "granted"),
    [
        ("", frozenset(Verb)),
        (', verbs = ["UPDATE"]', frozenset({Verb.SELECT, Verb.UPDATE})),
        (', verbs = ["DELETE", "INSERT"]', frozenset({Verb.SELECT, Verb.DELETE, Verb.INSERT})),
    ],
)
def test_a_writing_access_always_reads_and_does_what_its_verbs_say(verbs, granted):
    text = BROKER + resource(access=f'{{ write = {{ tables = ["a.b"]{verbs} }} }}')
    config, problems = parse(text.encode(), Path("/srv/taskpass"))
    assert not problems
    found = config.resources["orders"]
    assert found.access["write"].level is Level.WRITE
    assert found.scope("write").verbs == granted


@pytest.mark.parametrize(
    ("text", "said", "hinted"),
    [
        ('[broker]\ntrust_domian = "acme.example"\n', 'unknown key "trust_domian" in [broker]', "trust_domain"),
        (BROKER + 'stroe = "x"\n', 'unknown key "stroe" in [broker]', "store"),
        (BROKER + "[resource.orders]\n", 'unknown key "resource" at the top', "resources"),
        (BROKER + resource(nodes='["a:1/b"]', exclude="[]"), 'unknown key "exclude" in [resources.orders]', "known"),
        (BROKER + resource(ttl='"8h"'), 'unknown key "ttl"', "policy"),
        (BROKER + resource(dsn='"x"'), 'unknown key "dsn"', "login"),
        (BROKER + resource(access="{ reed = {} }"), "not an access", "read"),
        (BROKER + resource(access="{}"), "offers nothing", "public.*"),
        (BROKER + resource(access="{ read = { tables = [] } }"), "must not be empty", ""),
        (BROKER + resource(access='{ read = { tables = ["orders"] } }'), "must name schema and table", "public"),
        (BROKER + resource(access='{ read = { tables = ["a.b"], max_ttl = 5 } }'), 'unknown key "max_ttl"', "policy"),
        (BROKER + resource(access='{ read = { tables = ["a.b"], verbs = ["SELECT"] } }'), 'unknown key "verbs"', ""),
        (BROKER + resource(access='{ write = { tables = ["a.b"], verbs = [] } }'), "must not be empty", ""),
        (
            BROKER + resource(access='{ write = { tables = ["a.b"], verbs = ["SELECT"] } }'),
            "unknown verb",
            "comes along",
        ),
        (BROKER + resource(access='{ write = { tables = ["a.b"], verbs = ["TRUNCATE"] } }'), "unknown verb", "DELETE"),
        (BROKER + resource(access='{ write = { tables = ["a.b"], verbs = ["insert"] } }'), "unknown verb", "INSERT"),
        (BROKER + resource(environment='"prod"'), "resources.orders.environment is unknown", "production"),
        (BROKER + resource(issuer='"oracle"'), "issuer is unknown", "postgres"),
        (BROKER + resource(pin=None), "not enrolled", "init"),
        (BROKER + resource(pin="{ cluster = 7412, database = 1 }"), "pin.cluster must be text", ""),
        (BROKER + resource(pin='{ cluster = "7412", database = 0 }'), "above 0", ""),
        (BROKER + resource(pin='{ cluster = "7412", database = true }'), "above 0", ""),
        (BROKER + resource(pin='{ cluster = "x", database = 1 }'), "system identifier", ""),
        (BROKER + resource(tls=None), "resources.orders.tls is missing", "system"),
        (BROKER + resource(tls='{ ca = "ca.pem" }'), "absolute path", ""),
        (BROKER + resource(tls='{ ca = "system", verify = false }'), 'unknown key "verify"', "always verified"),
        (BROKER + resource(address='"/run/pg:5432/db"'), "Unix socket has no TLS", ""),
        (BROKER + resource(login=None), "login is missing", "file"),
        (BROKER + resource(login="{}"), "exactly one of", ""),
        (BROKER + resource(login='{ file = "a", peer = "b" }'), "exactly one of", ""),
        (BROKER + resource(login='{ peer = "tp" }'), "Unix socket only", ""),
        (BROKER + resource(login='{ command = "get" }'), "absolute path", ""),
        (BROKER + resource(login='{ file = "../x" }'), "name of a file", ""),
        (BROKER + resource(login='{ env = "ADMIN_DSN" }'), 'unknown key "env"', "environment variable can be read"),
        (BROKER + resource(address='"db:99999/x"'), "is not an address", ""),
        (BROKER + resource(address='"db"'), "is not an address", "host:port"),
        (BROKER + resource(shared_cluster='"yes"'), "true or false", ""),
        (BROKER + resource(name="Orders"), "not a name for a resource", "lower-case"),
        (BROKER + resource(nodes='["db.acme.example:5432/orders"]'), "repeats the address", ""),
        ('[broker]\ntrust_domain = "https://acme"\n', "SPIFFE", "acme.example"),
        ('[broker]\ntrust_domain = "ACME"\n', "SPIFFE", "lower-case"),
        ('[broker]\ntrust_domain = ""\n', "must not be empty", ""),
        (f'{BROKER}name = "B-2"\n', "broker.name must be 1 to 16 lower-case letters and digits", ""),
        ("", "broker is missing", ""),
        (BROKER + 'store = "sqlite:///relative.db"\n', "absolute", "four slashes"),
        (BROKER + 'store = "mysql://h/d"\n', "does not serve", "sqlite"),
        (BROKER + 'store = "postgresql://u:hunter2@h:5432/d"\n', "must not hold a login", "store_login"),
        (BROKER + 'store = "postgresql://h:5432/d?password=hunter2"\n', "must not hold a login", "store_login"),
        (BROKER + 'store = "postgresql://h:5432/d?sslmode=disable"\n', "no options", "store_tls"),
        (BROKER + 'store = "postgresql://127.0.0.1:5432/d"\n', "store_login is missing", "file"),
        (BROKER + 'store = "postgresql://h:5432/d"\nstore_login = { file = "s" }\n', "store_tls is missing", "system"),
        (BROKER + 'store = "postgresql://x-pooler.neon.tech:5432/d"\n', "pooler", "x.neon.tech"),
        (BROKER + 'store_login = { file = "s" }\n', "for a PostgreSQL store only", "leave it out"),
        (BROKER + "[people.groups]\ndba = []\n", "must not be empty", ""),
        (BROKER + '[people.groups]\ndba = ["zoe"]\n', "names zoe, who is not in [people.human]", "people.human"),
        (BROKER + "[people.human.Ana]\n", "not a name for a person", "lower-case"),
        (BROKER + f'[people.human.a]\nreviewer_key = "{KEY}"\n', "belong together", ""),
        (BROKER + '[people.human.a]\nreviewer_key = "!"\n', "not base64", ""),
        (BROKER + '[people.human.a]\nreviewer_key = "YQ=="\n', "wrong length", ""),
        (BROKER + '[people.human.a]\nos_users = ["x"]\n[people.human.b]\nos_users = ["x"]\n', "share an account", ""),
        ("[broker\n", "not valid TOML: line 1", ""),
    ],
)
def test_whatever_is_wrong_is_named_with_its_place_and_what_to_do(text, said, hinted):
    error = problem(text)
    assert said in error.message
    assert hinted in error.hint
    assert "\n" not in error.message + error.hint


def test_one_human_cannot_hold_two_records_with_one_key():
    both = "".join(
        f'[people.human.{name}]\nreviewer_key = "{KEY}"\nreviewer_salt = "{SALT}"\n' for name in ("ana", "ana-admin")
    )
    assert "share a reviewer key" in problem(BROKER + both).message


@pytest.mark.parametrize(
    "changes",
    [
        {"login": '"postgres://admin:hunter2@db/orders"'},
        {"login": '{ file = "postgres://admin:hunter2@db/orders" }'},
        {"login": '{ password = "hunter2" }'},
        {"login": '{ file = "x.cred", password = "hunter2" }'},
        {"address": '"postgres://admin:hunter2@db:5432/orders"'},
        {"address": '"admin:hunter2@db:5432/orders"'},
        {"dsn": '"postgres://admin:hunter2@db/orders"'},
        {"pin": '"hunter2"'},
        {"environment": '"hunter2"'},
        {"tls": '"hunter2"'},
        {"access": '{ read = { tables = ["hunter2"] } }'},
    ],
)
def test_a_password_in_the_file_is_refused_and_never_printed(changes):
    error = problem(BROKER + resource(**changes))
    assert "hunter2" not in error.message + error.hint


def test_broken_toml_does_not_show_the_line_that_may_hold_a_password():
    error = problem('[broker]\npassword = "hunter2\n')
    assert "hunter2" not in error.message + error.hint


def test_every_problem_is_listed_not_only_the_first():
    _, problems = parse((BROKER + "a = 1\n" + resource(tls=None) + resource("b", issuer='"x"')).encode(), Path("/srv"))
    assert len(problems) == 3


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [
        ({}, {"environment": '"production"'}, "cluster"),
        (
            {"login": '{ file = "one.cred" }'},
            {
                "environment": '"production"',
                "pin": '{ cluster = "9", database = 1 }',
                "login": '{ file = "one.cred" }',
            },
            "login",
        ),
    ],
)
def test_two_environments_share_neither_cluster_nor_login_unless_both_say_so(first, second, shared):
    error = problem(BROKER + resource("a", **first) + resource("b", **second))
    assert error.code == "shared_cluster"
    assert f"share one {shared}" in error.message
    one_says_so = BROKER + resource("a", shared_cluster="true", **first) + resource("b", **second)
    assert problem(one_says_so).code == "shared_cluster"
    both_say_so = one_says_so.replace("[resources.b]", "[resources.b]\nshared_cluster = true")
    assert parse(both_say_so.encode(), Path("/srv"))[0] is not None


def test_two_resources_of_one_environment_may_share_a_cluster():
    assert parse((BROKER + resource("a") + resource("b")).encode(), Path("/srv"))[0] is not None


def test_load_reads_only_a_private_directory(tmp_path):
    tmp_path.chmod(0o755)
    (tmp_path / "taskpass.toml").write_text(BROKER)
    (tmp_path / "taskpass.toml").chmod(0o600)
    with pytest.raises(ConfigInvalid, match="can be entered by others"):
        load(tmp_path)
    tmp_path.chmod(0o700)
    assert load(tmp_path).broker.trust_domain == "acme.example"


def test_load_says_how_many_more_problems_there_are(tmp_path):
    tmp_path.chmod(0o700)
    (tmp_path / "taskpass.toml").write_text(BROKER + "a = 1\n" + resource(tls=None))
    (tmp_path / "taskpass.toml").chmod(0o600)
    with pytest.raises(ConfigInvalid, match="and 1 more"):
        load(tmp_path)


def test_limits_are_per_access_and_bounded():
    with_limits = '{{ read = {{ tables = ["public.*"], limits = {{ {} }} }} }}'
    text = BROKER + resource(access=with_limits.format("connections = 2, temp_megabytes = 64"))
    limits = parse(text.encode(), Path("/srv"))[0].resources["orders"].access["read"].limits
    assert (limits.connections, limits.temp_megabytes, limits.statement_seconds) == (2, 64, 60)
    assert (
        "connections must be 1 to 50"
        in problem(BROKER + resource(access=with_limits.format("connections = 51"))).message
    )
    assert "statement_seconds" in problem(BROKER + resource(access=with_limits.format("statement_secs = 5"))).hint
