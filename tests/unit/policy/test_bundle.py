"""A bundle is good or refused: every way to break one, and the message that it gets."""

from __future__ import annotations

import os

import pytest

from taskpass.config.places import MAX_BYTES
from taskpass.core.errors import PolicyInvalid
from taskpass.policy.cedar import CedarPolicy
from taskpass.policy.example import question

GOOD = '@id("good") permit (principal, action, resource);\n'


def refused(directory):
    with pytest.raises(PolicyInvalid) as caught:
        directory.engine()
    error = caught.value
    assert "\n" not in error.message + error.hint
    assert error.code == "policy_invalid"
    return error.message


def rule(annotations, effect="permit", condition=""):
    return f"{annotations} {effect} (principal, action, resource) {condition};"


@pytest.mark.parametrize(
    ("annotations", "words"),
    [
        ("", "has no @id"),
        ('@id("")', "has no @id"),
        ("@id", "has no @id"),
        ('@id("Has Blanks")', "small letters"),
        ('@id("x\\u{202e}y")', "small letters"),
        ('@id("x") @max_tll("60")', "did you mean max_ttl?"),
        ('@id("x") @unheard_of("60")', "no annotation @unheard_of"),
        ('@id("x") @max_ttl("0")', "@max_ttl"),
        ('@id("x") @max_ttl("-1")', "@max_ttl"),
        ('@id("x") @max_ttl("28801")', "@max_ttl"),
        ('@id("x") @max_ttl("60s")', "@max_ttl"),
        ('@id("x") @max_ttl("٦٠")', "@max_ttl"),
        ('@id("x") @max_ttl("")', "@max_ttl"),
        ('@id("x") @max_ttl', "@max_ttl"),
        ('@id("x") @quorum("0")', "@quorum"),
        ('@id("x") @quorum("10")', "@quorum"),
        ('@id("x") @quorum("one")', "@quorum"),
        ('@id("x") @approvers("")', "@approvers"),
        ('@id("x") @approvers("dba,")', "@approvers"),
        ('@id("x") @approvers("dba sre")', "@approvers"),
        ('@id("x") @approvers("nobody")', "group nobody"),
        ('@id("x") @approvers("dba, empty")', "group empty"),
        ('@id("x") @read_only("false")', "@read_only"),
        ('@id("x") @delivery("secret")', "@delivery"),
        ('@id("x") @delivery("")', "@delivery"),
        ('@id("x") @review_by("soon")', "@review_by"),
        ('@id("x") @review_by("2026-02-30")', "@review_by"),
        ('@id("x") @reason_code("because")', "belongs on a forbid"),
    ],
)
def test_a_bad_annotation_refuses_the_bundle_and_names_file_and_policy(directory, annotations, words):
    directory.write("good.cedar", GOOD)
    directory.write("bad.cedar", rule(annotations))
    message = refused(directory)
    assert message.startswith("bad.cedar: policy ")
    assert words in message


@pytest.mark.parametrize("code", ["permitted", "policy_error", "Bad Code", "x", ""])
def test_a_reason_code_is_a_code_of_its_own(directory, code):
    directory.write("bad.cedar", rule(f'@id("x") @reason_code("{code}")', "forbid"))
    assert "@reason_code" in refused(directory)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("permit (principal, action, resource", "bad.cedar: "),
        ('@id("x") @id("y") permit (principal, action, resource);', "bad.cedar: "),
        (rule('@id("x")', condition='when { resource.env == Taskpass::Environment::"prod" }'), "policy x"),
        (rule('@id("x")', condition="when { resource.enviroment }"), "policy x"),
        (rule('@id("x")', condition='when { context.task.ticket.value == "x" }'), "policy x"),
        (rule('@id("x")', condition='when { context.claimed.approved == "true" }'), "policy x"),
        (rule('@id("x")', condition='when { resource.table == "orders" }'), "policy x"),
        (rule('@id("x")', condition="when { context.ttl_s }"), "policy x"),
        ('@id("x") permit (principal, action == Taskpass::Action::"own", resource);', "policy x"),
        ('@id("x") permit (principal == User::"root", action, resource);', "policy x"),
        ('@id("x") permit (principal == ?principal, action, resource);', "templates"),
    ],
)
def test_a_policy_that_cedar_finds_unsafe_or_meaningless_is_refused(directory, text, words):
    directory.write("bad.cedar", text)
    message = refused(directory)
    assert message.startswith("bad.cedar: ")
    assert words in message


def test_an_id_is_unique_over_all_files(directory):
    directory.write("a.cedar", GOOD)
    directory.write("b.cedar", GOOD)
    assert refused(directory) == "b.cedar: policy good exists already in a.cedar"


def test_an_id_is_unique_within_a_file(directory):
    directory.write("a.cedar", GOOD + GOOD)
    assert "exists already" in refused(directory)


def test_an_empty_directory_is_refused(directory):
    directory.path.joinpath("schema.cedarschema").unlink()
    assert "no schema" in refused(directory)


def test_a_directory_without_policies_is_refused(directory):
    assert "holds no policy" in refused(directory)
    directory.write("empty.cedar", "// nothing\n")
    assert "holds no policy" in refused(directory)


def test_a_missing_directory_is_refused(tmp_path):
    with pytest.raises(PolicyInvalid, match="does not exist"):
        CedarPolicy.load(tmp_path / "nowhere", groups={})


def test_a_broken_schema_is_refused(shipped):
    shipped.write("schema.cedarschema", "entity {")
    assert refused(shipped).startswith("schema.cedarschema: ")


def test_a_schema_that_no_longer_fits_the_policies_is_refused(shipped):
    text = shipped.path.joinpath("schema.cedarschema").read_text()
    shipped.write("schema.cedarschema", text.replace('"production"]', '"prod"]'))
    assert "policy production-" in refused(shipped)


def test_a_schema_that_does_not_fit_the_broker_decides_nothing(directory):
    text = directory.path.joinpath("schema.cedarschema").read_text()
    directory.write("schema.cedarschema", text.replace("ttl_s: Long,", "ttl_s: Long, approved_by: String,"))
    directory.write("good.cedar", GOOD)
    answer = directory.engine().decide(question({}))
    assert (answer.outcome.word, answer.code) == ("deny", "policy_error")


@pytest.mark.parametrize(
    "name", ["notes.txt", ".hidden.cedar", ".good.cedar.swp", "good.cedar~", "Big.cedar", "x.json"]
)
def test_an_unknown_file_is_refused_rather_than_passed_over(directory, name):
    directory.write("good.cedar", GOOD)
    directory.write(name, GOOD)
    assert "does not belong" in refused(directory)


def test_readme_and_tests_are_passed_over(shipped):
    shipped.write("README.md", "words")
    shipped.write("README", "words")
    assert shipped.engine()


def test_a_linked_file_is_refused(directory, tmp_path):
    outside = tmp_path / "outside.cedar"
    outside.write_text(GOOD)
    outside.chmod(0o600)
    directory.path.joinpath("good.cedar").symlink_to(outside)
    assert refused(directory).endswith("policy/good.cedar is a link")


def test_a_linked_directory_is_refused(shipped, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(shipped.path)
    with pytest.raises(PolicyInvalid, match="is a link"):
        CedarPolicy.load(link, groups={})


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_can_write_is_refused(shipped, mode):
    shipped.path.joinpath("dev.cedar").chmod(mode)
    assert refused(shipped).endswith("policy/dev.cedar can be written by others")


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_directory_that_others_can_write_is_refused(shipped, mode):
    shipped.path.chmod(mode)
    assert refused(shipped).endswith("policy can be written by others")


def test_a_directory_above_that_others_can_write_is_refused(shipped):
    shipped.path.parent.chmod(0o777)
    assert "can be written by others" in refused(shipped)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("name", ["dev.cedar", "."])
def test_what_belongs_to_somebody_else_is_refused(shipped, name):
    os.chown(shipped.path / name, 12345, 12345)
    assert "belongs to another account" in refused(shipped)


def test_a_pipe_is_refused_without_waiting(directory):
    os.mkfifo(directory.path / "pipe.cedar", 0o600)
    assert refused(directory).endswith("pipe.cedar is neither a file nor a directory")


def test_a_directory_named_like_a_policy_is_refused(directory):
    directory.write("sub.cedar/x.cedar", GOOD)
    assert "sub.cedar" in refused(directory)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_refused(shipped):
    shipped.path.joinpath("dev.cedar").chmod(0)
    assert "dev.cedar cannot be opened" in refused(shipped)


def test_a_file_that_is_too_large_is_refused(directory):
    directory.write("big.cedar", "//" + "x" * MAX_BYTES)
    assert "larger" in refused(directory)


def test_a_file_that_is_not_utf8_is_refused(directory):
    directory.write("good.cedar", GOOD).write_bytes(GOOD.encode() + b"// \xff\n")
    assert refused(directory) == "good.cedar is not UTF-8 text"


def test_a_file_that_ends_in_a_comment_does_not_swallow_the_next(directory):
    directory.write("a.cedar", GOOD + "// no newline at the end")
    directory.write("b.cedar", '@id("hard") forbid (principal, action, resource);')
    assert directory.engine().decide(question({})).policies == ("hard",)


def test_a_condition_that_is_nested_too_deeply_is_refused(directory):
    directory.write(
        "deep.cedar", rule('@id("x")', condition="when { " + " && ".join(["context.approved"] * 600) + " }")
    )
    assert refused(directory) == "deep.cedar: a condition is nested too deeply"


def test_a_message_never_carries_control_characters(directory):
    directory.write("bad.cedar", rule('@id("x")', condition='when { resource.env == "\x1b[31m\u202e" }'))
    assert not set(refused(directory)) & {"\x1b", "\u202e"}


def test_rules_know_what_they_look_at(shipped):
    rules = shipped.engine().bundle.rules
    assert rules["needs-separation"].fields == {"resource.env", "context.task.separation"}
    assert rules["needs-separation"].environments == {"staging", "production"}
    assert rules["production-needs-ticket"].fields == {"resource.env", "context.task.ticket"}
    assert not any(item.tables for item in rules.values())
