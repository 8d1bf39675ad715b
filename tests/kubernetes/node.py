"""One node of Kubernetes on this machine, of programs that are there: README.md says which, and where they come from.

    python -m tests.kubernetes.node --programs FOLDER --image server.tar [--folder FOLDER] -- COMMAND...

It runs the command with KUBECONFIG set, then stops all that it has started. Only root can. The folder, which keeps the
node's data and logs, is on a disk that overlayfs can use, and is left behind.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.support.processes import ended_afterwards
from tests.support.waiting import eventually

PROGRAMS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kubectl")
_DEBIAN = {
    "etcd": "etcd-server",
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "gcc": "gcc",
    "ip": "iproute2",
    "iptables": "iptables",
    "openssl": "openssl",
}
_PLUGINS = Path("/usr/lib/cni")
_SUBNET, _GATEWAY, _SERVICES = "10.88.7.0/24", "10.88.7.1", "10.96.0.0/24"
_API_PORT, _ETCD_PORT, _ETCD_PEER_PORT = 16443, 12379, 12380
_API = f"https://127.0.0.1:{_API_PORT}"
_BRIDGE = "convserve0"
_BETWEEN_PODS = ("FORWARD", "-i", _BRIDGE, "-o", _BRIDGE, "-j", "ACCEPT")
_PAUSE = "docker.io/local/pause:1"
_START_S = 120
# Runs, and reaps nothing: the containers of a pod do not share its process space here.
_PAUSE_SOURCE = "#include <unistd.h>\nint main() { for (;;) pause(); }\n"


def main() -> int:
    """Runs it; returns the command's exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.kubernetes.node", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--programs", type=Path, required=True, help=f"the folder with {', '.join(PROGRAMS)}")
    parser.add_argument("--image", type=Path, action="append", default=[], help="one that docker save has written")
    parser.add_argument("--folder", type=Path, help="for data and logs; a new one in /var/tmp without it")
    parser.add_argument("command", nargs="+", help="what is run while the node is there")
    arguments = parser.parse_args()
    lacking = [name for name in PROGRAMS if not (arguments.programs / name).exists()]
    lacking += [f"{name} (Debian: {package})" for name, package in _DEBIAN.items() if not shutil.which(name)]
    if not (_PLUGINS / "bridge").exists():
        lacking.append(f"{_PLUGINS}/bridge (Debian: containernetworking-plugins)")
    if importlib.util.find_spec("dnslib") is None:
        lacking.append("dnslib (pip install dnslib)")
    if lacking or os.geteuid() != 0:
        print(f"skipped: {'missing: ' + ', '.join(lacking) if lacking else 'only root can start a node'}")
        return 0
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="convserve-node-", dir="/var/tmp"))
    # As an interrupt, so that nothing goes on running.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with node(folder.absolute(), arguments.programs.absolute(), arguments.image) as kubeconfig:
        path = f"{arguments.programs.absolute()}:{os.environ['PATH']}"
        environment = {**os.environ, "KUBECONFIG": str(kubeconfig), "PATH": path}
        return subprocess.run(arguments.command, env=environment, check=False).returncode


@contextmanager
def node(folder: Path, programs: Path, images: Sequence[Path]) -> Iterator[Path]:
    """Starts a node that can take pods; yields the kubeconfig of who may do everything.

    Args:
        folder: Of its data and logs.
        programs: Where Kubernetes' own programs are.
        images: Archives of images that its pods can have.
    """
    folder.mkdir(parents=True, exist_ok=True)
    token = secrets.token_hex(16)
    certificate = folder / "certificates/apiserver.crt"  # which the API server makes
    kubeconfig = _written(folder / "kubeconfig", _kubeconfig(token, certificate))
    kubectl = [programs / "kubectl", "--kubeconfig", kubeconfig]
    from tests.kubernetes.names import Names  # which needs dnslib

    with ExitStack() as stack:

        def start(*command: str | Path) -> None:
            log = stack.enter_context((folder / f"{Path(command[0]).name}.log").open("w"))
            stack.enter_context(ended_afterwards([str(each) for each in command], stdout=log, stderr=log))

        start("etcd", "--data-dir", folder / "etcd", "--listen-client-urls", f"http://127.0.0.1:{_ETCD_PORT}",
              "--advertise-client-urls", f"http://127.0.0.1:{_ETCD_PORT}", "--listen-peer-urls",
              f"http://127.0.0.1:{_ETCD_PEER_PORT}", "--unsafe-no-fsync")  # fmt: skip
        start(programs / "kube-apiserver", *_apiserver_options(folder, token))
        eventually(lambda: certificate.exists() and _succeeds(*kubectl, "get", "namespace", "default"), _START_S)
        start(programs / "kube-controller-manager", "--kubeconfig", kubeconfig, "--leader-elect=false")
        start(programs / "kube-scheduler", "--kubeconfig", kubeconfig, "--leader-elect=false")
        socket = folder / "containerd/socket"
        start("containerd", "--config", _written(folder / "containerd.toml", _containerd(folder, socket)))
        ctr = ["ctr", "--address", socket, "--namespace", "k8s.io"]
        eventually(lambda: _succeeds(*ctr, "version"), _START_S)
        for archive in (_pause_image(folder), *images):
            subprocess.run([*ctr, "images", "import", archive], check=True, stdout=subprocess.DEVNULL)
        stack.callback(_no_pods_left, ctr, folder)
        _made_bridge()
        start(programs / "kubelet", "--kubeconfig", kubeconfig, "--config", _kubelet(folder),
              "--root-dir", folder / "kubelet", "--container-runtime=remote",
              "--container-runtime-endpoint", f"unix://{socket}", "--hostname-override=node",
              "--node-ip", _GATEWAY)  # fmt: skip
        stack.enter_context(Names(_GATEWAY, _API, token, certificate))
        eventually(lambda: _succeeds(*kubectl, "wait", "--for=condition=Ready", "node/node", "--timeout=1s"), _START_S)
        yield kubeconfig


def _apiserver_options(folder: Path, token: str) -> list[str]:
    _written(folder / "tokens.csv", f"{token},admin,admin,system:masters\n")
    key = folder / "accounts.key"
    subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
    options = {
        "etcd-servers": f"http://127.0.0.1:{_ETCD_PORT}",
        "bind-address": "127.0.0.1",
        "secure-port": _API_PORT,
        "cert-dir": folder / "certificates",
        "token-auth-file": folder / "tokens.csv",
        "authorization-mode": "AlwaysAllow",
        # Which wants a token for each pod; ours mount none.
        "disable-admission-plugins": "ServiceAccount",
        "service-account-issuer": "https://kubernetes.default.svc",
        "service-account-key-file": key,
        "service-account-signing-key-file": key,
        "kubelet-preferred-address-types": "InternalIP",
        "service-cluster-ip-range": _SERVICES,
    }
    return [f"--{name}={value}" for name, value in options.items()]


def _kubeconfig(token: str, certificate: Path) -> str:
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "node", "cluster": {"server": _API, "certificate-authority": str(certificate)}}],
            "users": [{"name": "admin", "user": {"token": token}}],
            "contexts": [{"name": "node", "context": {"cluster": "node", "user": "admin"}}],
            "current-context": "node",
        }
    )


def _containerd(folder: Path, socket: Path) -> str:
    network = {
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [
            {
                "type": "bridge",
                "bridge": _BRIDGE,
                "isGateway": True,
                "ipam": {
                    "type": "host-local",
                    "dataDir": str(folder / "addresses"),
                    "ranges": [[{"subnet": _SUBNET}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            }
        ],
    }
    (folder / "network").mkdir(exist_ok=True)
    _written(folder / "network/10-pods.conflist", json.dumps(network))
    # A container of its own kind may not raise a process's claim to memory, which runc is asked for otherwise.
    return f"""
version = 2
root = "{folder}/containerd/root"
state = "{folder}/containerd/state"
[grpc]
address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{_PAUSE}"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{_PLUGINS}"
conf_dir = "{folder}/network"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
"""


def _kubelet(folder: Path) -> Path:
    little = {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"}
    given: dict[str, Any] = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": _GATEWAY,
        "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
        "authorization": {"mode": "AlwaysAllow"},
        "cgroupDriver": "cgroupfs",
        "cgroupsPerQOS": False,
        "enforceNodeAllocatable": [],
        "failSwapOn": False,
        "evictionHard": little,
        "clusterDNS": [_GATEWAY],
        "clusterDomain": "cluster.local",
    }
    return _written(folder / "kubelet.yaml", yaml.safe_dump(given))


def _pause_image(folder: Path) -> Path:
    # As docker save writes one: what holds a pod's addresses while its containers come and go.
    image = folder / "pause"
    image.mkdir(exist_ok=True)
    _written(image / "pause.c", _PAUSE_SOURCE)
    subprocess.run(["gcc", "-static", "-o", image / "pause", image / "pause.c"], check=True)
    subprocess.run(["tar", "-C", image, "-cf", image / "layer.tar", "pause"], check=True)
    digest = subprocess.run(["sha256sum", image / "layer.tar"], check=True, capture_output=True, text=True).stdout[:64]
    config = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine],
        "os": "linux",
        "config": {"Entrypoint": ["/pause"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    _written(image / "config.json", json.dumps(config))
    manifest = [{"Config": "config.json", "RepoTags": [_PAUSE.removeprefix("docker.io/")], "Layers": ["layer.tar"]}]
    _written(image / "manifest.json", json.dumps(manifest))
    archive = folder / "pause.tar"
    subprocess.run(["tar", "-C", image, "-cf", archive, "manifest.json", "config.json", "layer.tar"], check=True)
    return archive


def _made_bridge() -> None:
    # CNI's plugin would make it with the first pod. It is here before, so that kubelet and names are asked by it alone.
    for words in (f"add {_BRIDGE} type bridge", f"set {_BRIDGE} up"):
        subprocess.run(["ip", "link", *words.split()], check=True)
    subprocess.run(["ip", "address", "add", f"{_GATEWAY}/24", "dev", _BRIDGE], check=True)
    # Docker's engine, where it has run, lets nothing through bridges but its own.
    subprocess.run(["iptables", "-I", *_BETWEEN_PODS], check=True)


def _no_pods_left(ctr: Sequence[str | Path], folder: Path) -> None:
    # What kubelet had running when it was stopped: containers, what they had mounted, and the bridge between them.
    listed = subprocess.run([*ctr, "tasks", "list", "--quiet"], capture_output=True, text=True, check=False).stdout
    for name in listed.split():
        subprocess.run([*ctr, "tasks", "delete", "--force", name], capture_output=True, check=False)
    mounted = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for place in reversed([each for each in mounted if each.startswith(f"{folder}/")]):
        subprocess.run(["umount", "--lazy", place], check=False)
    subprocess.run(["iptables", "-D", *_BETWEEN_PODS], check=False)
    subprocess.run(["ip", "link", "delete", _BRIDGE], check=False)


def _succeeds(*command: str | Path) -> bool:
    return not subprocess.run(command, capture_output=True, check=False).returncode


def _written(path: Path, text: str) -> Path:
    path.touch(0o600)  # two of them have the token
    path.write_text(text)
    return path


if __name__ == "__main__":
    sys.exit(main())
