"""Two network namespaces joined by a cable (veth), each with an address of its own: two hosts to the network."""

import contextlib
import os
import shutil
import signal
import subprocess
import time


class TwoHosts:
    """The namespaces `alpha` (10.97.X.1) and `beta` (10.97.X.2), whose loopbacks are their own."""

    def __init__(self):
        tag = os.getpid() % 10000
        self.spaces = [f"cpt{tag}a", f"cpt{tag}b"]
        self.cables = [f"cable{tag}a", f"cable{tag}b"]
        self.addresses = [f"10.97.{tag % 250}.1", f"10.97.{tag % 250}.2"]
        self.names = ["alpha", "beta"]

    @staticmethod
    def obstacle():
        """Why this host can't have namespaces, if so."""
        if os.geteuid() != 0 or shutil.which("ip") is None:
            return "needs root and iproute2"
        name = f"cpt{os.getpid() % 10000}x"
        done = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            subprocess.run(["ip", "netns", "del", name], check=True)
        return done.stderr.strip() if done.returncode else None

    def __enter__(self):
        try:
            self._lay()
        except subprocess.CalledProcessError:
            self.__exit__()
            raise
        return self

    def _lay(self):
        for space in self.spaces:
            self._ip("netns", "add", space)
        first, second = self.cables
        self._ip("link", "add", first, "type", "veth", "peer", "name", second)
        for space, cable, address in zip(self.spaces, self.cables, self.addresses, strict=True):
            self._ip("link", "set", cable, "netns", space)
            self._ip("-n", space, "addr", "add", f"{address}/24", "dev", cable)
            self._ip("-n", space, "link", "set", "lo", "up")
        self.plug()

    def __exit__(self, *error):
        for index, space in enumerate(self.spaces):
            self.switch_off(index)
            subprocess.run(["ip", "netns", "del", space], check=False, capture_output=True)

    def switch_off(self, index):
        """Kill every process of a host; a launcher's ranks have sessions of their own."""
        words = ["ip", "netns", "pids", self.spaces[index]]
        while pids := subprocess.run(words, capture_output=True, text=True, check=False).stdout.split():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            time.sleep(0.1)

    @staticmethod
    def _ip(*words):
        subprocess.run(["ip", *words], check=True, capture_output=True)

    def plug(self):
        """Put the cable in."""
        for space, cable in zip(self.spaces, self.cables, strict=True):
            self._ip("-n", space, "link", "set", cable, "up")

    def unplug(self):
        """Pull the cable out at beta."""
        self._ip("-n", self.spaces[1], "link", "set", self.cables[1], "down")

    def start(self, index, words, environment, output):
        """A process on one of the hosts, with its output in a file."""
        environment = environment | {"GLOO_SOCKET_IFNAME": self.cables[index], "SLURMD_NODENAME": self.names[index]}
        words = ["ip", "netns", "exec", self.spaces[index], *words]
        with open(output, "ab") as handle:
            return subprocess.Popen(words, env=environment, stdout=handle, stderr=handle, start_new_session=True)
