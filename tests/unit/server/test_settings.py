"""The server's settings: one table, from which flags, variables, defaults, checks and help come."""

import argparse
import dataclasses
import re

import pytest

from convserve_server import settings
from convserve_server.settings import Settings, SettingsError, flag, is_loopback, variable

FIELDS = {field.name: field for field in dataclasses.fields(Settings)}
NUMBERS = [name for name, field in FIELDS.items() if type(field.default) is int]
SECRETS = [name for name, field in FIELDS.items() if field.metadata["secret"]]
SWITCHES = [name for name, field in FIELDS.items() if type(field.default) is bool]
# A value other than the default, as it is written and as it is read; for each setting, or for each of its kind.
OTHER = {
    "listen": ("localhost:0", ("localhost:0",)),
    "device": ("gpu:3", "gpu:3"),
    "log_level": ("debug", "debug"),
    "log_format": ("json", "json"),
    "metrics": ("localhost:0", "localhost:0"),
    "store": ("/var/lib/convserve", "/var/lib/convserve"),
    **{name: ("/etc/convserve/x", "/etc/convserve/x") for name in FIELDS if name.startswith("tls_")},
    "tokens_file": ("/etc/convserve/tokens", "/etc/convserve/tokens"),
    "token": ("s3cret-of-the-operator",) * 2,
    "warm_up": ("layer=a input_shape=1x2x2x1", ("layer=a input_shape=1x2x2x1",)),
    **dict.fromkeys(NUMBERS, ("7", 7)),
    "max_message_bytes": ("7000000", 7_000_000),
    **{name: (str(not FIELDS[name].default), not FIELDS[name].default) for name in SWITCHES},
}
EVERY = pytest.mark.parametrize("name", FIELDS)
EVERY_FLAG = pytest.mark.parametrize("name", [name for name in FIELDS if name not in SECRETS])


def parser():
    made = argparse.ArgumentParser(prog="serve", allow_abbrev=False)
    settings.add_arguments(made)
    return made


def read(*line, **environment):
    """Returns the settings of a command line and an environment of nothing else."""
    return settings.read(parser().parse_args(line), environment)


def given_by_flag(name, text):
    if name in SWITCHES:
        return [flag(name) if text.lower() == "true" else flag(name).replace("--", "--no-", 1)]
    return [f"{flag(name)}={text}"]


def refusal(call, *arguments, **keywords):
    with pytest.raises(SettingsError) as caught:
        call(*arguments, **keywords)
    return str(caught.value)


# The table


@EVERY_FLAG
def test_every_setting_is_in_the_help_with_flag_variable_default_and_text(name):
    (action,) = (each for each in parser()._actions if flag(name) in each.option_strings)
    default = FIELDS[name].default
    shown = ", ".join(default) if isinstance(default, tuple) else str(default).lower()
    assert f"[{variable(name)}, default {shown}" in action.help
    assert len(action.help.partition("[")[0]) > 10
    assert FIELDS[name].metadata["unit"] in action.help
    assert variable(name) in " ".join(parser().format_help().split())


@EVERY
def test_a_setting_that_is_a_size_or_a_time_names_its_unit(name):
    unit = {"bytes": "bytes", "s": "seconds"}.get(name.rpartition("_")[2], "")
    assert FIELDS[name].metadata["unit"] == unit


def test_a_flag_and_a_variable_are_called_after_the_setting():
    assert flag("max_call_bytes") == "--max-call-bytes"
    assert variable("max_call_bytes") == "CONVSERVE_MAX_CALL_BYTES"


def test_nothing_given_is_the_defaults():
    assert read() == Settings()
    assert read(UNRELATED="1") == Settings()


@EVERY_FLAG
def test_a_variable_wins_over_the_default_and_a_flag_over_the_variable(name):
    text, value = OTHER[name]
    assert value != FIELDS[name].default
    by_variable = read(**{variable(name): text})
    assert by_variable == dataclasses.replace(Settings(), **{name: value})
    assert read(*given_by_flag(name, text)) == by_variable
    default = FIELDS[name].default
    as_text = ",".join(default) if isinstance(default, tuple) else str(default)
    assert read(*given_by_flag(name, text), **{variable(name): as_text}) == by_variable
    assert read(*given_by_flag(name, as_text), **{variable(name): text}) == Settings()


# Kinds of values


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("True", True), ("1", True), ("YES", True), ("false", False), ("FALSE", False), ("0", False),
     ("no", False)],
)  # fmt: skip
def test_a_switch_is_read_as_people_write_it(name, text, value):
    assert getattr(read(**{variable(name): text}), name) is value


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("text", ["", "on", "2", "falsch", "None"])
def test_a_switch_of_another_word_is_refused(name, text):
    expected = f"{flag(name)} ({variable(name)}): Expected true or false. Received {text!r}."
    assert refusal(read, **{variable(name): text}) == expected


def test_a_switch_has_a_flag_for_each_side():
    assert read("--tf32").tf32 is True
    assert read("--no-tf32", CONVSERVE_TF32="true").tf32 is False
    assert read("--no-reflection").reflection is False


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("text", ["", "-1", "1.5", "1e3", "0x10", "many", "1 000", "1_000", "٣", "9" * 30])
def test_what_is_no_number_of_that_size_is_refused(name, text):
    message = refusal(read, f"{flag(name)}={text}")
    assert message.startswith(f"{flag(name)} ({variable(name)}): Expected an integer from ")
    assert message.endswith((f"Received {text!r}.", f"Received {text}."))
    assert refusal(read, **{variable(name): text}) == message


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_is_taken_up_to_its_bounds(name):
    least = {"max_message_bytes": 2**22}.get(
        name, 0 if name in ("pre_stop_s", "drain_s") or FIELDS[name].default == 0 else 1
    )
    most = FIELDS[name].metadata["most"]
    assert most == 2**31 - 1 or (most == 2**63 - 1 and FIELDS[name].metadata["unit"] == "bytes")
    for value in (least, most):
        assert getattr(read(**{variable(name): str(value)}), name) == value
    for value in (least - 1, most + 1):
        refusal(read, **{variable(name): str(value)})
        refusal(Settings, **{name: value})


@pytest.mark.parametrize("value", [True, "7", 1.0, None])
def test_a_number_given_in_python_is_an_integer(value):
    assert f"Received {value!r}." in refusal(Settings, drain_s=value)


@pytest.mark.parametrize("device", ["auto", "cpu", "gpu:0", "gpu:15", "gpu:0,gpu:3"])
def test_a_device_is_taken(device):
    assert read("--device", device).device == device


@pytest.mark.parametrize(
    "device", ["", "gpu", "gpu:", "gpu:-1", "gpu:x", "GPU:0", "tpu:0", "cpu:0", "gpu:0\n", "gpu:0,", "cpu,gpu:0"]
)
def test_another_device_is_refused(device):
    expected = f"--device (CONVSERVE_DEVICE): Expected auto, cpu or gpu:N. Received {device!r}."
    assert refusal(read, "--device", device) == refusal(read, CONVSERVE_DEVICE=device) == expected


@pytest.mark.parametrize("level", ["", "INFO", "trace"])
def test_a_log_level_is_one_of_four_words(level):
    message = refusal(read, "--log-level", level)
    assert "--log-level (CONVSERVE_LOG_LEVEL): Expected one of debug, info, warning, error." in message


def test_a_log_format_is_one_of_two_words():
    message = refusal(read, "--log-format", "yaml")
    assert message == "--log-format (CONVSERVE_LOG_FORMAT): Expected one of text, json. Received 'yaml'."


# Addresses


def test_listen_is_repeated_on_the_command_line_and_separated_by_commas_in_the_variable():
    addresses = ("127.0.0.1:0", "unix:///tmp/x.sock", "[::1]:50051")
    assert read(*(f"--listen={each}" for each in addresses)).listen == addresses
    assert read(CONVSERVE_LISTEN="127.0.0.1:0, unix:///tmp/x.sock,[::1]:50051").listen == addresses
    assert read("--listen=localhost:1", CONVSERVE_LISTEN="localhost:2").listen == ("localhost:1",)


WRONG_ADDRESSES = [
    "", " ", "localhost", "50051", ":50051", "localhost:", "localhost:http", "localhost:-1", "localhost:65536",
    "localhost:1.5", "localhost:²", "localhost:٣", "unix:",
]  # fmt: skip


@pytest.mark.parametrize("address", WRONG_ADDRESSES)
def test_what_is_no_address_is_refused(address):
    message = refusal(read, "--listen=localhost:1", f"--listen={address}")
    assert message.startswith("--listen (CONVSERVE_LISTEN): Expected HOST:PORT or unix:///PATH. Received ")
    assert refusal(read, CONVSERVE_LISTEN=f"localhost:1,{address}") == message


@pytest.mark.parametrize("address", [*(each for each in WRONG_ADDRESSES if each), "unix:///tmp/x.sock"])
def test_what_is_no_address_of_metrics_is_refused(address):
    message = refusal(read, f"--metrics={address}")
    assert message == f"--metrics (CONVSERVE_METRICS): Expected HOST:PORT, or nothing. Received {address!r}."


def test_a_server_listens_somewhere():
    assert refusal(Settings, listen=()).endswith("Received ''.")


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1:1", "127.9.8.7:1", "localhost:0", "[::1]:1", "::1:1", "unix:///tmp/x.sock", "unix:x.sock"],
)
def test_an_address_of_this_machine_alone_is_loopback(address):
    assert is_loopback(address)


@pytest.mark.parametrize(
    "address",
    ["0.0.0.0:1", "[::]:1", ":::1", "*:1", "10.0.0.1:1", "128.0.0.1:1", "[2001:db8::1]:1", "example.org:1",
     "127.example.org:1", "127.0.0.1.example.org:1", "localhost.example.org:1", "my-localhost:1", "1270.0.0.1:1"],
)  # fmt: skip
def test_any_other_address_is_open_to_the_network(address):
    assert not is_loopback(address)


def test_a_refusal_names_flag_variable_expectation_and_what_was_received():
    message = refusal(read, CONVSERVE_DRAIN_S="soon")
    pattern = r"--drain-s \(CONVSERVE_DRAIN_S\): Expected an integer from 0 to \d+\. Received 'soon'\."
    assert re.fullmatch(pattern, message)


# Secrets


def test_the_token_is_the_secret():
    assert SECRETS == ["token"]


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_comes_from_the_environment_alone_and_is_not_shown(name):
    text, value = OTHER[name]
    found = read(**{variable(name): text})
    assert getattr(found, name) == value
    assert found != Settings()
    assert value not in repr(found)
    assert f"{name}=***" in repr(found)
    assert f"{name}=''" in repr(Settings())
    with pytest.raises(SystemExit):
        parser().parse_args([f"{flag(name)}={text}"])


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_is_in_the_help_by_its_variable_and_never_by_its_value(name, monkeypatch):
    monkeypatch.setenv(variable(name), OTHER[name][0])
    shown = " ".join(parser().format_help().split())
    assert f"{variable(name)}: {FIELDS[name].metadata['help']}" in shown
    assert f"{flag(name)} " not in shown
    assert OTHER[name][0] not in shown


@pytest.mark.parametrize("token", ["short", "with blanks in between", "s3cret-of-the-operator\n", "é" * 20, "=" * 20])
def test_a_wrong_secret_is_refused_and_not_shown(token):
    message = refusal(read, CONVSERVE_TOKEN=token)
    assert message.startswith("CONVSERVE_TOKEN: Expected at least 16 letters, digits")
    assert message.endswith("Received something else, which is not shown.")
    assert token not in message


def test_the_repr_has_every_other_setting():
    shown = repr(Settings(drain_s=7, store="/var/lib/convserve"))
    assert all(f"{name}=" in shown for name in FIELDS)
    assert "drain_s=7" in shown
    assert "store='/var/lib/convserve'" in shown
