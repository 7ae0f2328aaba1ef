"""Istio's agent, `pilot-agent proxy sidecar`, as it stands in a pod: without an Envoy.

It looks for an istiod as well, and goes on without one.
"""

import contextlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Self

from bridge.cli.demo_setup.backends import running
from tests.support.harness.real_process import Bridge
from tests.support.parts import builds, netports
from tests.support.parts.envoy import Identity

_MODULE = Path(__file__).resolve().parents[2] / "interop/istio_agent"
_SECONDS = 60.0
_WRITTEN = ("cert-chain.pem", "key.pem", "root-cert.pem")


class Agent:
    """One agent. A context manager: it has its certificate inside, and is gone after.

    Args:
        folder: New; it stands for the file system of the pod.
        bridge: The CA.
        token: Of the pod's service account.
        cluster_id: `ISTIO_META_CLUSTER_ID`.
        namespace: Of the pod.
        account: Of the pod.
    """

    def __init__(
        self,
        folder: Path,
        bridge: Bridge,
        token: str,
        *,
        cluster_id: str,
        namespace: str = "shop",
        account: str = "web",
    ) -> None:
        self._folder = folder
        self._parts = contextlib.ExitStack()
        secrets = folder / "var/run/secrets"
        for name in ("tokens", "istio"):
            (secrets / name).mkdir(parents=True)
        (secrets / "tokens/istio-token").write_text(token)
        shutil.copy(bridge.roots, secrets / "istio/root-cert.pem")
        pod = folder / "etc/istio/pod"
        pod.mkdir(parents=True)
        (pod / "labels").write_text(f'app="{account}"\n')
        self._certificates = folder / "certificates"
        self._certificates.mkdir()
        # The default ports are one each for a host, and the tests share one.
        ports = {
            "statusPort": netports.reserve(),
            "discoveryAddress": netports.address(),
        }
        self._environment = os.environ | {
            "CA_ADDR": f"localhost:{bridge.address.rpartition(':')[2]}",
            "DISABLE_ENVOY": "true",
            "INSTANCE_IP": "127.0.0.1",
            "ISTIO_META_CLUSTER_ID": cluster_id,
            "OUTPUT_CERTS": "certificates",
            "POD_NAME": f"{account}-0",
            "POD_NAMESPACE": namespace,
            "PROXY_CONFIG": json.dumps(ports),
            "SERVICE_ACCOUNT": account,
            "TRUST_DOMAIN": bridge.trust_domain,
        }

    def __enter__(self) -> Self:
        command = [str(builds.build(_MODULE)), "proxy", "sidecar"]
        with contextlib.ExitStack() as parts:
            log = self._folder / "log"
            agent = parts.enter_context(running(command, self._environment, log))
            deadline = time.monotonic() + _SECONDS
            while not all((self._certificates / one).exists() for one in _WRITTEN):
                if agent.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"no certificate:\n{self.log()[-4000:]}")
                time.sleep(0.05)
            self._parts = parts.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._parts.close()

    @property
    def identity(self) -> Identity:
        """What it gives its proxy."""
        chain, key, _ = (self._certificates / one for one in _WRITTEN)
        return Identity(chain=chain, key=key)

    @property
    def roots(self) -> Path:
        """The trust anchors that it gives its proxy."""
        return self._certificates / _WRITTEN[-1]

    def log(self) -> str:
        """Return what it has logged."""
        return (self._folder / "log").read_text("utf-8", errors="replace")
