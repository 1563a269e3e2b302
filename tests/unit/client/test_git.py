"""Git facts come from files, are bounded, hold no credentials, and start nothing."""

from __future__ import annotations

import os

import pytest

from taskpass.client.git import claimed_git, without_credentials

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def checkout(tmp_path):
    git = tmp_path / "repo" / ".git"
    (git / "refs/heads").mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/heads/feature/x\n")
    (git / "refs/heads/feature").mkdir()
    (git / "refs/heads/feature/x").write_text(COMMIT + "\n")
    (git / "config").write_text(
        '[core]\n\tbare = false\n[remote "origin"]\n\turl = https://forge.example/acme/orders.git\n'
    )
    return tmp_path / "repo"


def test_repository_branch_and_commit_are_read_from_the_files(checkout):
    (checkout / "deep/er").mkdir(parents=True)
    expected = {"repository": "https://forge.example/acme/orders.git", "branch": "feature/x", "commit": COMMIT}
    assert claimed_git(checkout) == expected
    assert claimed_git(checkout / "deep/er") == expected


def test_outside_a_checkout_nothing_is_claimed(tmp_path):
    assert claimed_git(tmp_path) == {}


def test_a_detached_head_has_a_commit_and_no_branch(checkout):
    (checkout / ".git/HEAD").write_text(COMMIT)
    assert "branch" not in claimed_git(checkout)
    assert claimed_git(checkout)["commit"] == COMMIT


def test_a_packed_commit_is_found(checkout):
    (checkout / ".git/refs/heads/feature/x").unlink()
    (checkout / ".git/packed-refs").write_text(
        f"# pack-refs\n{'f' * 40} refs/heads/feature\n{COMMIT} refs/heads/feature/x\n"
    )
    assert claimed_git(checkout)["commit"] == COMMIT


def test_a_linked_worktree_has_its_own_head_and_the_shared_remote(checkout, tmp_path):
    private = checkout / ".git/worktrees/w"
    private.mkdir(parents=True)
    (private / "HEAD").write_text("ref: refs/heads/other\n")
    (private / "commondir").write_text("../..\n")
    worktree = tmp_path / "w"
    worktree.mkdir()
    (worktree / ".git").write_text(f"gitdir: {private}\n")
    found = claimed_git(worktree)
    assert (found["branch"], found["repository"]) == ("other", "https://forge.example/acme/orders.git")


@pytest.mark.parametrize(
    ("address", "clean"),
    [
        ("https://user:s3cret@forge.example/a/b.git", "https://forge.example/a/b.git"),
        ("https://s3cret@forge.example/a", "https://forge.example/a"),
        ("https://u:p@s3cret@forge.example/a", "https://forge.example/a"),
        ("https://forge.example/a?token=s3cret", "https://forge.example/a"),
        ("https://forge.example/a#s3cret", "https://forge.example/a"),
        ("ssh://git:s3cret@forge.example:22/a", "ssh://forge.example:22/a"),
        ("git@forge.example:acme/orders.git", "git@forge.example:acme/orders.git"),
        ("git:s3cret@forge.example:acme/orders.git", "git@forge.example:acme/orders.git"),
        ("/srv/git/orders.git", "/srv/git/orders.git"),
        ("odd s3cret@", ""),
    ],
)
def test_credentials_never_leave_an_address(address, clean):
    assert without_credentials(address) == clean
    assert "s3cret" not in without_credentials(address)


def test_the_only_remote_stands_in_for_origin_and_of_several_none(checkout):
    config = checkout / ".git/config"
    config.write_text('[remote "up"]\n url = https://a.example/x\n')
    assert claimed_git(checkout)["repository"] == "https://a.example/x"
    config.write_text('[remote "up"]\n url = https://a.example/x\n[remote "down"]\n url = https://b.example/x\n')
    assert "repository" not in claimed_git(checkout)


def test_hostile_files_are_not_waited_for_nor_followed(checkout, tmp_path):
    git = checkout / ".git"
    (git / "config").unlink()
    os.mkfifo(git / "config")
    (git / "HEAD").write_text("ref: refs/../../secret")
    (tmp_path / "secret").write_text(COMMIT)
    assert claimed_git(checkout) == {}
    (git / "HEAD").write_bytes(b"\xff\xfe" * 100)
    assert claimed_git(checkout) == {}
    (checkout / ".git/HEAD").write_text("ref: refs/heads/" + "x" * 1_000_000)
    assert len(claimed_git(checkout)["branch"]) < 300_000
