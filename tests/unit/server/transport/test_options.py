"""What gRPC's server is told."""

from convserve_server.settings import Settings
from convserve_server.transport.options import server_options


def test_ages_are_integers_as_grpc_passes_over_others_without_a_word():
    options = server_options(Settings(max_connection_age_s="1.5m", drain_s="250ms"), 9)
    assert {type(value) for _, value in options} == {int}
    assert dict(options)["grpc.max_connection_age_ms"] == 90_000
    assert dict(options)["grpc.max_connection_idle_ms"] == 600_000
    assert dict(options)["grpc.max_allowed_incoming_connections"] == 9
    assert dict(options)["grpc.max_connection_age_grace_ms"] == 250
    assert "grpc.max_connection_age_ms" not in dict(server_options(Settings(), 9))


def test_ages_beyond_what_grpc_counts_are_for_ever():
    options = dict(server_options(Settings(max_connection_age_s="1000h", drain_s="500000h"), 9))
    assert options["grpc.max_connection_age_ms"] == options["grpc.max_connection_age_grace_ms"] == 2**31 - 1


def test_pings_of_other_languages_clients_are_welcome():
    options = dict(server_options(Settings(), 9))
    assert options["grpc.http2.min_ping_interval_without_data_ms"] < 10_000  # the least that they let users choose
    assert options["grpc.keepalive_permit_without_calls"]


def test_who_watches_the_health_can_call_at_a_server_of_one_call_a_connection():
    assert dict(server_options(Settings(max_streams_per_connection=1), 9))["grpc.max_concurrent_streams"] == 2
