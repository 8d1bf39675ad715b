"""Tables of benchmarks, from results that were made up."""

from tests.bench import tables

HEAD = {
    "time": "2026-01-02T03:04:05+00:00", "machine": "a machine", "convserve": "1.2.3", "python": "3.11",
    "commit": "abc", "command": "python -m tests.bench.x", "quick": False,
}  # fmt: skip


def run(peer, ratio, **more):
    cell = {"ratio": ratio, "p50_ms": 10 * ratio, "rps": 100.0, "ref_p50_ms": 10.0, "ref_rps": 400.0}
    return {"peer": peer, "start_s": 5.0, "check": {"w1": {"maxdiff": 1e-7}}, "w1c1": cell, "w1c8": cell} | more


def rows(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_peers_show_the_median_of_their_rounds_and_the_spread():
    results = [run("hand_raw", 3.0), run("convserve_peer", 2.0), run("hand_raw", 5.0), run("hand_raw", 3.5)]
    text = tables.peers(HEAD | {"results": results})
    found = rows(text)
    assert found[0] == ["multiple of the layer in process", "W1 latency", "W1 rate of 8", "differs by"]
    assert found[2] == ["**convserve, gRPC**", "**2.00**", "**2.00**", "1e-07"]
    assert found[3] == ["hand-written grpcio, bytes", "**3.50** 3.00..5.00", "**3.50** 3.00..5.00", "1e-07"]
    assert ["the layer in process (tf.function) = 1", "10.0", "400", ""] in found
    assert ["hand-written grpcio, bytes", "35.0", "100", "5.00"] in found
    assert "`python -m tests.bench.x`, 2026-01-02, a machine, convserve 1.2.3 (abc), Python 3.11." in text


def test_a_peer_that_answers_wrong_or_fails_is_seen():
    wrong = run("kserve", 1.0, check={"w1": {"maxdiff": None}})
    failed = {"peer": "mosec", "check": {}, "error": "RuntimeError: no"}
    text = tables.peers(HEAD | {"results": [wrong, failed]})
    assert ["KServe", "**1.00**", "**1.00**", "WRONG"] in rows(text)
    assert ["mosec (HTTP, msgpack)", "-", "-", "WRONG"] in rows(text)
    assert "* mosec (HTTP, msgpack): RuntimeError: no" in text


def test_what_tritons_client_measures_is_a_multiple_of_tritons_own_server():
    results = [
        run("open_inference_peer", 2.0),
        run("triton_backend", 4.0),
        run("open_inference_shm_peer", 2.0),
        run("triton_shm_peer", 2.0, w2c1={"ratio": 3.0}),
    ]
    results[2] |= {"w2c1": {"ratio": 2.7}}
    found = rows(tables.beside_triton(HEAD | {"results": results}))
    assert ["W1 latency", "<= 1", "0.50", "", "1.00"] in found
    assert ["W1 rate of 8", ">= 2", "0.50 (missed)", "", "1.00"] in found
    assert ["W2 latency", "<= 1", "-", "<= 0.8", "0.90 (missed)"] in found
    assert tables.beside_triton(HEAD | {"results": results}) in tables.open_inference(HEAD | {"results": results})


def test_what_perf_analyzer_says_has_a_line_for_each_run():
    figures = {"samples_per_s": 400.0, "p50_us": 2500.0, "network_us": 900.0, "queue_us": 60.0}
    figures |= {"compute_input_us": 20.0, "compute_infer_us": 700.0, "compute_output_us": 30.0}
    text = tables.perf_analyzer(HEAD | {"runs": [{"layer": "w1", "what": "8 at once"} | figures]})
    assert ["W1, 8 at once", "400", "2.50", "900", "60", "20", "700", "30"] in rows(text)


def test_a_pipeline_is_shown_beside_the_loop_in_process():
    turn = {"per_s": 90.0, "in_process_per_s": 100.0, "processor_ms": 22.0, "in_process_processor_ms": 20.0}
    photographs = {"items": 250, "ratio": 0.9, "server_grown_bytes": 2e6, "turns": [turn] * 3}
    small = {"items": 2000, "together_per_s": 3000, "alone_per_s": 1000, "loop_per_s": 500}
    result = HEAD | {"path": "shared memory", "photographs": photographs, "small": small}
    text = tables.pipeline(result)
    assert ["`client.map`", "90.0", "0.90", "22.0"] in rows(text)
    assert ["`client.map`, together as they fit", "3,000"] in rows(text)
    assert "The server's resident memory grew by 2.0 MB" in text


def test_memory_has_a_table_for_each_part_that_was_measured():
    growth = [
        {"what": "small", "calls": 100_000, "sides": [
            {"side": "server", "resident_bytes": [500_000_000, 501_000_000], "grown_bytes": 1_000_000}
        ]}
    ]  # fmt: skip
    peak = [{"what": "W5", "bytes": 400_000_000, "peak_bytes": 600_000_000, "ratio": 1.5}]
    costs = [
        {"bytes_each_way": 1_000_000, "p50_ms": 9.0, "compute_ms": 1.0, "ns_per_byte": 4.5, "ns_per_byte_moved": 4}
    ]
    text = tables.memory(HEAD | {"path": "gRPC", "growth": growth, "peak": peak, "bytes": costs})
    assert ["100,000 small calls", "server", "500.0", "501.0", "1.0"] in rows(text)
    assert ["W5", "400.0", "600.0", "1.50"] in rows(text)
    assert ["1,000,000", "9.00", "1.00", "4.50", "4.00"] in rows(text)
    assert len([line for line in text.splitlines() if "---" in line]) == 3


def test_a_quick_pass_says_so():
    kinds = {"threads": {"what": "threads", "p50_ms": 1, "latency_ratio": 1, "calls_per_s_of_8": 9, "rate_ratio": 1}}
    text = tables.server_kinds(HEAD | {"kinds": kinds, "quick": True})
    assert ["threads", "1.00", "1.00", "9", "1.00"] in rows(text)
    assert text.endswith("A quick pass, not for quoting.")
