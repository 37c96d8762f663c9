"""A Slurm cluster of two nodes on this host: munged, slurmctld and two slurmd, all state in one folder.

Debian's packages slurmctld, slurmd, slurm-client and munge are installed where they are missing and this is root. The
nodes are named n1 and n2 and share the host's cores; no accounting, no cgroups. It leaves no process behind.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "munged")
PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED")
CONFIGURATION = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,sched_min_interval=0
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
ReturnToService=2
SlurmdTimeout=60
KillWait=10
MinJobAge=3600
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs={cpus} RealMemory=1000 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs={cpus} RealMemory=1000 State=UNKNOWN
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:8
"""


def missing_programs():
    """The Slurm programs that aren't installed; as root they are installed first."""
    missing = [program for program in PROGRAMS if shutil.which(program, path=search_path()) is None]
    if missing and os.geteuid() == 0 and shutil.which("apt-get"):
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "check": False}
        subprocess.run(["apt-get", "update", "-q"], **quiet)
        subprocess.run(["apt-get", "install", "-qy", "--no-install-recommends", *PACKAGES], **quiet)
        missing = [program for program in PROGRAMS if shutil.which(program, path=search_path()) is None]
    return missing


def search_path():
    return os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def free_ports(number):
    sockets = [socket.socket() for _ in range(number)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def die_with_parent():
    """Have this process ended when the tests are killed."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


class SlurmCluster:
    """The running cluster; `environment` makes Slurm's commands talk to it."""

    def __init__(self, folder, cpus=4):
        self.folder = Path(folder)
        self.daemons = []
        host, ports = socket.gethostname(), free_ports(3)
        for name in ("state", "spool-n1", "spool-n2", "home"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)
        text = CONFIGURATION.format(host=host, folder=self.folder, ports=ports, cpus=cpus)
        (self.folder / "slurm.conf").write_text(text)
        self.environment = os.environ | {
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "PATH": search_path(),
        }

    def start(self):
        """Start the daemons and wait until both nodes are idle."""
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        munged = ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={self.folder}/munge.socket"]
        munged += [f"--log-file={self.folder}/munged.log", f"--pid-file={self.folder}/munged.pid"]
        munged += [f"--seed-file={self.folder}/munged.seed"]
        self._daemon(*munged)
        self._wait(lambda: (self.folder / "munge.socket").exists(), "munged")
        self._daemon("slurmctld", "-D", "-c")
        for node in ("n1", "n2"):
            self._daemon("slurmd", "-D", "-N", node)
        self._wait(lambda: self.node_states() == ["idle", "idle"], "two idle nodes")
        return self

    def _daemon(self, *words):
        with open(self.folder / f"{words[0]}.out", "ab") as output:
            options = {"stdout": output, "stderr": output, "start_new_session": True, "preexec_fn": die_with_parent}
            self.daemons.append(subprocess.Popen(words, env=self.environment, **options))

    def _wait(self, condition, what, seconds=120):
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                logs = {path.name: path.read_text()[-1500:] for path in self.folder.glob("*.[lo][ou][gt]")}
                raise AssertionError(f"no {what} within {seconds} s: {logs}")
            time.sleep(0.2)

    def node_states(self):
        return self.run("sinfo", "-h", "-N", "-o", "%t").split()

    def run(self, *words, check=True):
        """The output of a Slurm command."""
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=60, check=False)
        if check and done.returncode:
            raise AssertionError(f"{words}: {done.stdout}{done.stderr}")
        return done.stdout

    def job(self, number):
        """What the controller says of a job: scontrol's KEY=VALUE pairs."""
        text = self.run("scontrol", "show", "job", "-o", str(number), check=False).splitlines()
        return dict(word.split("=", 1) for word in text[0].split() if "=" in word) if text else {}

    def wait(self, number, states=ENDED, seconds=120):
        """Wait until a job is in one of `states`; gives what the controller says of it."""
        end = time.monotonic() + seconds
        while (job := self.job(number)).get("JobState") not in states:
            assert time.monotonic() < end, f"job {number} is not in {states} after {seconds} s: {job}"
            time.sleep(0.3)
        return job

    def stop(self):
        """Cancel all jobs and end everything that this cluster has started."""
        self.run("scancel", "--user=root", check=False)
        self.run("scancel", "--signal=KILL", "--full", "--user=root", check=False)
        for daemon in reversed(self.daemons):
            daemon.terminate()
        for daemon in self.daemons:
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        # A step's daemon would try for ever to tell the controller that its job has ended.
        end = time.monotonic() + 30
        while left := self.processes():
            assert time.monotonic() < end, left
            for process in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.1)

    def processes(self):
        """Numbers of the processes of daemons, steps and jobs: those whose environment names this cluster."""
        mark = f"SLURM_CONF={self.environment['SLURM_CONF']}".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):  # it has just ended
                if mark in path.read_bytes().split(b"\0"):
                    found.append(int(path.parent.name))
        return sorted(found)
