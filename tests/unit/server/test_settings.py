"""The server's settings: one table, from which flags, variables, defaults, checks and help come."""

import re

import pytest
from click.testing import CliRunner

from convserve_server import app, settings
from convserve_server.command import command
from convserve_server.settings import Settings, SettingsError, flag, is_loopback, unknown_variables, variable

NAMES = list(Settings.model_fields)
DEFAULTS = {name: settings.default(name) for name in NAMES}
SECRETS = [name for name in NAMES if settings.is_secret(name)]
SWITCHES = [name for name in NAMES if type(DEFAULTS[name]) is bool]
SIZES = [name for name in NAMES if name.endswith("_bytes")]
TIMES = [name for name in NAMES if name.endswith("_s")]
COUNTS = [name for name in NAMES if type(DEFAULTS[name]) is int and name not in SIZES + TIMES]
NUMBERS = SIZES + TIMES + COUNTS
# A value other than the default, as it is written and as it is read; for each setting, or for each of its kind.
OTHER = {
    "listen": ("localhost:0", ("localhost:0",)),
    "device": ("gpu:3", "gpu:3"),
    "log_level": ("debug", "debug"),
    "log_format": ("json", "json"),
    "metrics": ("localhost:0", "localhost:0"),
    "store": ("/var/lib/convserve", "/var/lib/convserve"),
    "store_cache": ("/var/cache/convserve", "/var/cache/convserve"),
    **{name: ("/etc/convserve/x", "/etc/convserve/x") for name in NAMES if name.startswith("tls_")},
    "tokens_file": ("/etc/convserve/tokens", "/etc/convserve/tokens"),
    "warm_up": ("layer=a input_shape=1x2x2x1", ("layer=a input_shape=1x2x2x1",)),
    **dict.fromkeys(COUNTS, ("7", 7)),
    **dict.fromkeys(TIMES, ("250s", 250.0)),
    **dict.fromkeys(SIZES, ("512MiB", 2**29)),
    **{name: (str(not DEFAULTS[name]), not DEFAULTS[name]) for name in SWITCHES},
}
TOKEN = "s3cret-of-the-operator"  # noqa: S105


@pytest.fixture
def read(monkeypatch):
    """Returns the settings that `convserve serve` starts with, given its words and variables."""

    def read(*words, **environment):
        started = []
        with monkeypatch.context() as patched:
            patched.setattr(app, "run", lambda found: started.append(found) or 0)
            for name in NAMES:
                patched.delenv(variable(name), raising=False)
            for name, value in environment.items():
                patched.setenv(name, value)
            result = CliRunner().invoke(command, words)
        if not started:
            raise SettingsError(result.stderr.removesuffix("\n").removeprefix("error: "))
        return started[0]

    return read


def by_flag(name, text):
    if name in SWITCHES:
        return [flag(name) if text.lower() == "true" else flag(name).replace("--", "--no-", 1)]
    return [f"{flag(name)}={text}"]


def refusal(read, *words, **environment):
    with pytest.raises(SettingsError) as caught:
        read(*words, **environment)
    return str(caught.value)


# The table


@pytest.fixture(scope="module")
def help_text():
    return " ".join(CliRunner().invoke(command, ["--help"]).stdout.replace("-\n", "-").split())


@pytest.mark.parametrize("name", OTHER)
def test_the_help_has_every_setting_with_flag_variable_default_and_text(name, help_text):
    default = settings.default_text(name) or "none"
    assert re.search(rf" {flag(name)}[ /]", help_text)
    assert f"[{variable(name)}, default {default}]" in help_text
    assert len(settings.help_text(name)) > 10


def test_the_help_is_in_groups():
    lines = CliRunner().invoke(command, ["--help"]).stdout.splitlines()
    assert list(settings.GROUPS) == [name for name in NAMES if name in settings.GROUPS]
    assert [line[:-1] for line in lines if line.endswith(":") and line[:1].islower()] == [
        *settings.GROUPS.values(), "options", "from the environment alone",
    ]  # fmt: skip


@pytest.mark.parametrize("wrong", ["--drain_s", "--drain"])
def test_a_wrong_option_is_answered_with_a_similar_one(wrong):
    result = CliRunner().invoke(command, [wrong, "5"])
    assert result.exit_code == 2
    assert "--drain-s" in result.stderr.partition(wrong)[2]


@pytest.mark.parametrize(
    ("name", "text"),
    [("max_call_bytes", "8GiB"), ("max_admitted_bytes", "0 bytes"),
     ("drain_s", "30s"), ("tf32", "false"), ("store", ""), ("listen", "127.0.0.1:50051"), ("handler_threads", "64")],
)  # fmt: skip
def test_a_default_is_shown_as_people_write_it(name, text):
    assert settings.default_text(name) == text


def test_nothing_given_is_the_defaults(read):
    assert dict(read()) == DEFAULTS
    assert read(UNRELATED="1") == read()


@pytest.mark.parametrize("name", OTHER)
def test_a_variable_wins_over_the_default_and_a_flag_over_the_variable(read, name):
    text, value = OTHER[name]
    by_variable = read(**{variable(name): text})
    assert dict(by_variable) == DEFAULTS | {name: value} != DEFAULTS
    assert read(*by_flag(name, text)) == by_variable
    default = DEFAULTS[name]
    as_text = ",".join(default) if isinstance(default, tuple) else str(default)
    assert read(*by_flag(name, text), **{variable(name): as_text}) == by_variable
    assert read(*by_flag(name, as_text), **{variable(name): text}) == read()


def test_variables_that_look_like_settings_are_warned_of():
    kubernetes = [
        "CONVSERVE_PORT",
        "CONVSERVE_SERVICE_HOST",
        "CONVSERVE_PORT_50051_TCP_ADDR",
        "CONVSERVE_GPU_SERVICE_PORT",
    ]
    assert unknown_variables([*map(variable, NAMES), "CONVSERVE_TARGET", "HOME", *kubernetes]) == []
    assert unknown_variables(["CONVSERVE_DRAIN", "CONVSERVE_WHATEVER"]) == [
        "CONVSERVE_DRAIN is no setting, and is ignored. Did you mean CONVSERVE_DRAIN_S?",
        "CONVSERVE_WHATEVER is no setting, and is ignored.",
    ]
    assert unknown_variables(["CONSERVE_STORE_BYTES", "CONVSERV_LISTEN", "STORE", "SERVER_LISTEN"]) == [
        "CONSERVE_STORE_BYTES is no setting, and is ignored. Did you mean CONVSERVE_STORE_BYTES?",
        "CONVSERV_LISTEN is no setting, and is ignored. Did you mean CONVSERVE_LISTEN?",
    ]


# Kinds of values


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("True", True), ("1", True), ("YES", True), ("on", True), ("false", False), ("FALSE", False),
     ("0", False), ("no", False)],
)  # fmt: skip
def test_a_switch_is_read_as_people_write_it(read, name, text, value):
    assert getattr(read(**{variable(name): text}), name) is value


@pytest.mark.parametrize("text", ["", "2", "falsch", "None"])
def test_a_switch_of_another_word_is_refused(read, text):
    message = refusal(read, CONVSERVE_TF32=text)
    assert message.startswith("--tf32 (CONVSERVE_TF32): Expected a valid boolean")
    assert message.endswith(f"Received {text!r}.")


def test_a_switch_has_a_flag_for_each_side(read):
    assert read("--tf32").tf32 is True
    assert read("--no-tf32", CONVSERVE_TF32="true").tf32 is False
    assert read("--no-reflection").reflection is False


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("text", ["", "-1", "1e3", "0x10", "many", "1 000", "٣", "9" * 30, "7 x", "8kbit"])
def test_what_is_no_number_of_that_kind_is_refused(read, name, text):
    message = refusal(read, f"{flag(name)}={text}")
    assert message.startswith(f"{flag(name)} ({variable(name)}): Expected ")
    assert message.endswith(f"Received {text!r}.")
    assert refusal(read, **{variable(name): text}) == message


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_is_taken_up_to_its_bounds(read, name):
    least = {"idle_s": 1}.get(name, 0 if name in TIMES or DEFAULTS[name] == 0 else 1)
    is_large = (name in SIZES and name != "max_message_bytes") or name == "max_call_flops"
    most = 2**63 - 1 if is_large else 2**31 - 1
    for value in (least, most):
        assert getattr(read(**{variable(name): str(value)}), name) == value
    for value in (least - 1, most + 1):
        refusal(read, **{variable(name): str(value)})


@pytest.mark.parametrize(
    ("text", "size"),
    [("4096", 4096), ("8GB", 8 * 10**9), ("512MiB", 2**29), ("1.5 GiB", 3 * 2**29), ("8Gi", 2**33), ("64k", 64_000),
     ("2tb", 2 * 10**12), ("7b", 7)],
)  # fmt: skip
def test_a_size_may_have_a_unit(read, text, size):
    assert read("--max-call-bytes", text).max_call_bytes == size


@pytest.mark.parametrize("text", ["1.5", "8GBB", "GB", "8 GB x", "0.1KB5", "8XB", "1.0000000001KiB"])
def test_another_size_is_refused(read, text):
    expected = "--max-call-bytes (CONVSERVE_MAX_CALL_BYTES): Expected a size such as 8GB, 512MiB or 4096. Received "
    assert refusal(read, "--max-call-bytes", text) == f"{expected}{text!r}."


@pytest.mark.parametrize(
    ("text", "flops"), [("0", 0), ("500G", 5e11), ("1.5 T", 1.5e12), ("10tflops", 1e13), ("1P", 1e15)]
)
def test_operations_may_have_a_unit(read, text, flops):
    assert read("--max-call-flops", text).max_call_flops == flops


def test_other_operations_are_refused(read):
    expected = "--max-call-flops (CONVSERVE_MAX_CALL_FLOPS): Expected a number such as 500G, 10T or 4096. Received "
    for text in ("10TB", "1.5", "T", "1Ki"):
        assert refusal(read, "--max-call-flops", text) == f"{expected}{text!r}."


@pytest.mark.parametrize(("text", "seconds"), [("30", 30), ("30s", 30), ("5m", 300), ("250ms", 0.25), ("1.5 h", 5400)])
def test_a_time_may_have_a_unit(read, text, seconds):
    assert read("--drain-s", text).drain_s == seconds


def test_a_refusal_names_flag_variable_expectation_and_what_was_received_of_each_wrong_setting(read):
    assert refusal(read, "--max-call-bytes=0", CONVSERVE_DRAIN_S="soon").splitlines() == [
        "--max-call-bytes (CONVSERVE_MAX_CALL_BYTES): Expected a value greater than or equal to 1. Received '0'.",
        "error: --drain-s (CONVSERVE_DRAIN_S): Expected a time such as 30s, 5m, 250ms or 1.5. Received 'soon'.",
    ]


@pytest.mark.parametrize("device", ["auto", "cpu", "gpu:0", "gpu:15", "gpu:0,gpu:3"])
def test_a_device_is_taken(read, device):
    assert read("--device", device).device == device


@pytest.mark.parametrize(
    "device", ["", "gpu", "gpu:", "gpu:-1", "gpu:x", "GPU:0", "tpu:0", "cpu:0", "gpu:0\n", "gpu:0,", "cpu,gpu:0"]
)
def test_another_device_is_refused(read, device):
    expected = f"--device (CONVSERVE_DEVICE): Expected auto, cpu or gpu:N. Received {device!r}."
    assert refusal(read, "--device", device) == refusal(read, CONVSERVE_DEVICE=device) == expected


@pytest.mark.parametrize("level", ["", "INFO", "trace"])
def test_a_log_level_is_one_of_four_words(read, level):
    message = refusal(read, "--log-level", level)
    expected = "Expected 'debug', 'info', 'warning' or 'error'"
    assert message == f"--log-level (CONVSERVE_LOG_LEVEL): {expected}. Received {level!r}."


# Addresses


def test_listen_is_repeated_on_the_command_line_and_separated_by_commas_in_the_variable(read):
    addresses = ("127.0.0.1:0", "unix:///tmp/x.sock", "[::1]:50051")
    assert read(*(f"--listen={address}" for address in addresses)).listen == addresses
    assert read(CONVSERVE_LISTEN="127.0.0.1:0, unix:///tmp/x.sock,[::1]:50051").listen == addresses
    assert read("--listen=localhost:1", CONVSERVE_LISTEN="localhost:2").listen == ("localhost:1",)
    assert read(CONVSERVE_WARM_UP="").warm_up == ()


WRONG_ADDRESSES = [
    "", " ", "localhost", "50051", ":50051", "localhost:", "localhost:http", "localhost:-1", "localhost:65536",
    "localhost:1.5", "localhost:²", "localhost:٣", "unix:", "unix:50051", "unix://a/b", "http://localhost:1",
    "localhost:1/metrics", "::1:50051", "[::1]", "1.2.3:1", "local host:1", "*:1",
]  # fmt: skip


@pytest.mark.parametrize("address", WRONG_ADDRESSES)
def test_what_is_no_address_is_refused(read, address):
    expected = (
        "--listen (CONVSERVE_LISTEN): Expected HOST:PORT such as localhost:50051 or [::1]:50051, or unix:///PATH."
    )
    message = refusal(read, "--listen=localhost:1", f"--listen={address}")
    assert message == f"{expected} Received {f'localhost:1, {address}'!r}."
    assert refusal(read, CONVSERVE_LISTEN=f"localhost:1,{address}").startswith(expected)


@pytest.mark.parametrize("address", [*(address for address in WRONG_ADDRESSES if address), "unix:///tmp/x.sock"])
def test_what_is_no_address_of_metrics_is_refused(read, address):
    message = refusal(read, f"--metrics={address}")
    expected = "Expected HOST:PORT such as localhost:50051 or [::1]:50051, or nothing."
    assert message == f"--metrics (CONVSERVE_METRICS): {expected} Received {address!r}."


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1:1", "127.9.8.7:1", "localHost:0", "[::1]:1", "::1:1", "unix:///tmp/x.sock", "unix:x.sock"],
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


# Secrets


def test_the_token_is_the_secret_and_comes_from_the_environment_alone(read):
    assert SECRETS == ["token"]
    assert read(CONVSERVE_TOKEN=TOKEN).token.get_secret_value() == TOKEN
    assert "No such option" in refusal(read, f"--token={TOKEN}")


def test_a_secret_is_shown_nowhere(read):
    found = read(CONVSERVE_TOKEN=TOKEN)
    help_text = CliRunner(env={"CONVSERVE_TOKEN": TOKEN}).invoke(command, ["--help"]).stdout
    assert TOKEN not in f"{found!r}{found.shown()}{help_text}"
    assert (found.shown()["token"], read().shown()["token"]) == ("**********", "")
    assert f"CONVSERVE_TOKEN  {settings.help_text('token')}" in help_text


@pytest.mark.parametrize("token", ["short", "with blanks in between", "s3cret-of-the-operator\n", "é" * 20, "=" * 20])
def test_a_wrong_secret_is_refused_and_not_shown(read, token):
    message = refusal(read, CONVSERVE_TOKEN=token)
    assert message.startswith("CONVSERVE_TOKEN: Expected at least 16 letters, digits")
    assert message.endswith("Received something else, which is not shown.")
    assert token not in message


def test_every_other_setting_is_shown(read):
    shown = read("--drain-s=7").shown()
    assert list(shown) == NAMES
    assert shown["drain_s"] == 7


@pytest.mark.parametrize("store", ["s3://my-bucket/a/b.c", "gs://bucket", "az://container/", "./layers", "/a@b/c"])
def test_a_store_is_a_folder_or_a_bucket(read, store):
    assert read("--store", store).store == store


@pytest.mark.parametrize(
    "store",
    ["s3://AKIAKEY:secret@bucket/x", "az://c/x?sig=secret", "s3://bucket/x#secret", "file:///x", "s3://", "http://b/x"],
)
def test_a_store_that_is_none_is_refused_and_no_secret_is_shown(read, store):
    for given in ({"words": ("--store", store)}, {"words": (), "CONVSERVE_STORE": store}):
        with pytest.raises(SettingsError, match=r"--store \(CONVSERVE_STORE\): Expected a folder, or s3:") as refused:
            read(*given.pop("words"), **given)
        assert "secret" not in str(refused.value)
        assert "file://" not in store or "no writing on a condition" in str(refused.value)
