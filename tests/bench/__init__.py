"""Benchmarks: none of them runs with the tests, and each is a program of its own.

| program | what it finds |
|---|---|
| `python -m tests.bench.peers` (`make bench`) | the service beside other servers of the same five layers |
| `python -m tests.bench.memory` | growth over many calls, cost per byte from 1 KB to 1 GB, peak of one request |
| `python -m tests.bench.processor_time` | processor time of server and client per small call, beside a bare echo |
| `python -m tests.bench.gpu` (`make gpu`) | on an NVIDIA GPU: tests, and the service beside TensorFlow and PyTorch |
| `python -m tests.bench.report` | writes what the others found into docs/performance.md |

Each takes `--quick`, which finds faults and is not for quoting, and `--json FILE`.
"""
