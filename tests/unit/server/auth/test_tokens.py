"""Files of tokens: what is taken and refused, when it is read again, and that no token ever comes out."""

import itertools
import logging
import os

import pytest

from convserve_server.auth.identity import PERMISSIONS, Identity
from convserve_server.auth.tokens import Tokens, parse
from convserve_server.settings import SettingsError

ALICE, BOB, CAROL = "alice-s3cret-4242", "Qm9iJ3MrL2tleS1pcy1sb25n==", "c" * 16
TEXT = f"""
# who may call
alice  {ALICE}  read
  bob\t{BOB}\tread,compute,change
carol@example.org {CAROL} compute
"""


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "tokens.txt"
    file.write_text(TEXT)
    return file


def write(path, text):
    """Replaces the file as one should; its time differs whatever the clock's steps."""
    new = path.with_suffix(".new")
    new.write_text(text)
    os.utime(new, ns=(0, path.stat().st_mtime_ns + 1_000_000_000 if path.exists() else 1))
    new.replace(path)


def test_each_token_is_known_by_its_name_and_permissions(path):
    tokens = Tokens(str(path))
    assert tokens.caller(ALICE) == Identity("alice", frozenset({"read"}))
    assert tokens.caller(BOB) == Identity("bob", frozenset(PERMISSIONS))
    assert tokens.caller(CAROL) == Identity("carol@example.org", frozenset({"compute"}))


@pytest.mark.parametrize("token", ["", " ", ALICE[:-1], ALICE + "x", ALICE.upper(), "alice", "\ud800", "é" * 16])
def test_any_other_is_not(path, token):
    assert Tokens(str(path)).caller(token) is None


def test_a_name_may_have_two_tokens_while_they_are_changed():
    found = parse(f"alice {ALICE} read\nalice {CAROL} read\n")
    assert [each.name for each in found.values()] == ["alice", "alice"]


def test_the_token_of_the_environment_allows_everything_beside_the_file(path):
    everything = frozenset(PERMISSIONS)
    assert Tokens(token=CAROL).caller(CAROL) == Identity("token", everything)
    both = Tokens(str(path), "d" * 16)
    assert both.caller("d" * 16) == Identity("token", everything)
    assert both.caller(ALICE).name == "alice"
    write(path, f"alice {CAROL} read")
    assert (both.caller("d" * 16).name, both.caller(CAROL).name, both.caller(ALICE)) == ("token", "alice", None)


def test_without_any_there_is_nothing_to_ask_for(path):
    assert not Tokens()
    assert Tokens(str(path))
    assert Tokens(token=CAROL)


WRONG = {
    "two words": f"alice {ALICE}",
    "one word": ALICE,
    "four words": f"alice {ALICE} read compute",
    "blanks between permissions": f"alice {ALICE} read, compute",
    "an unknown permission": f"alice {ALICE} read,write",
    "no permission": f"alice {ALICE} ,",
    "a permission in capitals": f"alice {ALICE} READ",
    "a short token": "alice 123456789012345 read",
    "a token of other characters": f"alice {ALICE}! read",
    "name and token exchanged": f"{ALICE} alice read",
    "permissions and token exchanged": f"alice read {ALICE}",
    "a name of other characters": f"alice:{ALICE} {BOB} read",
    "the same token twice": f"alice {ALICE} read\nbob {ALICE} compute",
    "nothing": "",
    "comments alone": f"# alice {ALICE} read\n\n",
    "other bytes": f"alice {ALICE} read\nbob {'é' * 16} read",
}


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG)
def test_a_wrong_file_is_refused_at_the_start_and_shows_no_token(tmp_path, text):
    file = tmp_path / "tokens.txt"
    file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        Tokens(str(file))
    message = str(caught.value)
    assert message.startswith("--tokens-file: ")
    assert str(file) in message
    assert "Expected" in message
    assert "Received" in message
    assert ALICE not in message
    assert BOB not in message
    assert caught.value.__context__ is None


def test_a_wrong_line_is_named():
    with pytest.raises(ValueError, match=r"^line 3: Expected permissions out of read, compute, change .*'write'\.$"):
        parse(f"# one\nalice {ALICE} read\nbob {BOB} write\n")


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(SettingsError, match=r"Received .*nowhere: No such file or directory\.$"):
        Tokens(str(tmp_path / "nowhere"))


# Changes


def test_a_change_holds_for_the_next_call(path, caplog):
    tokens = Tokens(str(path))
    with caplog.at_level(logging.DEBUG, "convserve"):
        write(path, f"alice {ALICE} read,compute\n")
        assert tokens.caller(BOB) is None
        assert tokens.caller(ALICE) == Identity("alice", frozenset({"read", "compute"}))
    assert [record.getMessage() for record in caplog.records] == [f"--tokens-file: read {path} again"]


@pytest.mark.parametrize("text", [None, *WRONG.values()], ids=["no file", *WRONG])
def test_a_wrong_change_is_told_once_and_changes_nothing(path, caplog, text):
    tokens = Tokens(str(path))
    if text is None:
        path.unlink()
    else:
        write(path, text)
    for token, _ in itertools.product([ALICE, BOB, CAROL], range(2)):
        assert tokens.caller(token) is not None
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.getMessage().startswith("--tokens-file: ")
    assert record.getMessage().endswith(" What it held before stays in use.")
    assert not any(each in caplog.text for each in (ALICE, BOB, CAROL))
    write(path, f"alice {CAROL} read\n")
    assert tokens.caller(ALICE) is None
    assert tokens.caller(CAROL).name == "alice"


def test_no_token_is_kept_or_shown(path):
    tokens = Tokens(str(path), "d" * 16)
    shown = repr(vars(tokens)) + repr(tokens) + repr(tokens.caller(ALICE))
    assert not any(each in shown for each in (ALICE, BOB, CAROL, "d" * 16))
