"""scripts/torch_peer.py as scripts/gpu-gate keeps it: one process for all, replaced when it dies or is slow."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading

from gate_acceptance import DOES_NOT_FIT
from gate_report import ROOT, Failed

# Lest "does not fit" mean that what is free lies in pieces.
ALLOCATOR = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
COMMAND = [sys.executable, str(ROOT / "scripts/torch_peer.py"), "serve"]


class PeerProcess:
    """Starts with the first request."""

    def __init__(self, environment, command=COMMAND):
        self.environment, self.command, self.process = {**environment, **ALLOCATOR}, command, None

    def start(self):
        self.errors = tempfile.TemporaryFile()
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.errors}
        # A session of its own, so that the compiler's processes end with it.
        self.process = subprocess.Popen(self.command, **pipes, env=self.environment, start_new_session=True)
        self.answers = queue.Queue()
        threading.Thread(target=self.read, args=(self.process.stdout, self.answers), daemon=True).start()

    @staticmethod
    def read(stdout, answers):
        for line in stdout:
            answers.put(line)
        answers.put(None)

    def ask(self, request, limit):
        """The answer, or DOES_NOT_FIT. `Failed` has `compiling` where it is the first, compiling step that failed, and
        `slow` where that took too long."""
        if self.process is None or self.process.poll() is not None:
            self.kill()
            self.start()
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
            line = self.answers.get(timeout=max(limit, 0))
            answer = None if line is None else json.loads(line)
        except queue.Empty:
            output = self.kill()
            raise Failed(f"the peer took longer than {limit:.0f} s", output) from None
        except (OSError, ValueError) as error:
            output = self.kill()
            raise Failed(f"the peer's answer is none: {error}", output) from None
        if answer is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
            code, output = self.process.poll(), self.kill()
            raise Failed(f"the peer ended with {code}", output)
        if "error" in answer:
            # An error of the GPU may be for good: the next request gets another process.
            output = self.kill()
            raise Failed(answer["error"], output, **{key: bool(answer.get(key)) for key in ("compiling", "slow")})
        return DOES_NOT_FIT if "does_not_fit" in answer else answer

    def kill(self):
        """Ends the process and all it started, if there is one; the end of what it printed."""
        if self.process is None:
            return ""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        self.process = None
        with self.errors:
            self.errors.seek(0)
            return self.errors.read().decode(errors="replace")
