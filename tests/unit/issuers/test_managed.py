"""Whose database it is, from the traces that each provider's documentation names. None of this ran on a real one."""

from __future__ import annotations

import dataclasses

import pytest

from taskpass.issuers.base import Severity
from taskpass.issuers.postgres.managed import NOT_TRIED, Facts, Provider, detect, explain

OWN = Facts(
    host="db.acme.example",
    version="PostgreSQL 17.2 on x86_64-pc-linux-gnu, compiled by gcc",
    roles=frozenset(),
    settings=frozenset(),
    databases=frozenset(),
    routines=frozenset(),
)


def facts(**changes):
    kept = {name: value if isinstance(value, str) else frozenset(value) for name, value in changes.items()}
    return dataclasses.replace(OWN, **kept)


BY_TRACES = {
    Provider.RDS: facts(roles={"rds_superuser"}, settings={"rds.extensions"}, databases={"rdsadmin"}),
    Provider.AURORA: facts(roles={"rds_superuser"}, settings={"rds.extensions"}, routines={"aurora_version"}),
    Provider.CLOUD_SQL: facts(roles={"cloudsqlsuperuser"}, settings={"cloudsql.iam_authentication"}),
    Provider.ALLOYDB: facts(roles={"alloydbsuperuser"}, databases={"alloydbadmin"}),
    Provider.AZURE: facts(roles={"azure_pg_admin"}, settings={"azure.extensions"}, databases={"azure_sys"}),
    Provider.AZURE_SINGLE: facts(
        version="PostgreSQL 11.22, compiled by Visual C++ build 1800, 64-bit",
        roles={"azure_pg_admin"},
        databases={"azure_maintenance"},
    ),
    Provider.NEON: facts(roles={"neon_superuser"}, settings={"neon.timeline_id"}),
    Provider.SUPABASE: facts(roles={"supabase_admin"}, settings={"supautils.privileged_role"}),
    Provider.CRUNCHY: facts(roles={"_crunchyrepl"}),
}

BY_HOST = {
    "orders.abc123.eu-central-1.rds.amazonaws.com": Provider.RDS,
    "orders.cluster-abc123.eu-central-1.rds.amazonaws.com": Provider.AURORA,
    "orders.postgres.database.azure.com": Provider.AZURE,
    "ep-cool-leaf-1.eu-central-1.aws.neon.tech": Provider.NEON,
    "db.abcdefgh.supabase.co": Provider.SUPABASE,
    "p.abc123.db.postgresbridge.com": Provider.CRUNCHY,
}


def test_every_provider_is_in_the_table():
    assert set(BY_TRACES) == set(Provider)


@pytest.mark.parametrize("provider", BY_TRACES, ids=lambda provider: provider.name)
def test_a_provider_is_known_by_its_traces_whatever_the_host_is_called(provider):
    assert detect(BY_TRACES[provider]) is provider


@pytest.mark.parametrize("host", BY_HOST)
def test_a_provider_is_known_by_its_hosts(host):
    assert detect(facts(host=host)) is BY_HOST[host]
    assert detect(facts(host=host.upper())) is BY_HOST[host]


@pytest.mark.parametrize(
    "one",
    [
        OWN,
        facts(roles={"rds_superuser"}),
        facts(roles={"supabase_admin"}),
        facts(databases={"cloudsqladmin"}),
        facts(host="rds.amazonaws.com.evil.example"),
        facts(host="neon.tech"),
    ],
    ids=["own", "a role", "another role", "a database", "a longer host", "no host of it"],
)
def test_one_trace_alone_is_no_sign(one):
    """A dump that was restored elsewhere brings roles with it."""
    assert detect(one) is None


@pytest.mark.parametrize("provider", Provider, ids=lambda provider: provider.name)
def test_what_is_said_of_a_provider_says_that_it_was_not_tried_and_refuses_nothing(provider):
    found = explain(provider, BY_TRACES[provider])
    assert NOT_TRIED in found[0].message
    assert {finding.check for finding in found} == {"managed"}
    assert {finding.severity for finding in found} <= {Severity.NOTE, Severity.WARNING}
    assert len(found) > 2
    assert any(finding.fix for finding in found)


@pytest.mark.parametrize("provider", [Provider.AURORA, Provider.ALLOYDB, Provider.NEON])
def test_replicas_that_do_not_show_are_a_warning(provider):
    assert [f.severity for f in explain(provider, BY_TRACES[provider])].count(Severity.WARNING) == 1
