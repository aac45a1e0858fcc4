"""How scripts/gpu-gate runs its parts and writes down how they went, so that none of them stops another."""

import datetime
import json
import re
import subprocess
import sys
import time
from pathlib import Path

from gate_acceptance import acceptance, best
from gate_page import page

ROOT = Path(__file__).resolve().parent.parent
TAIL = 3000  # characters of a failing program's output that are kept


class Failed(Exception):
    """A part did not pass; says why, and may carry a program's output and figures."""

    def __init__(self, why, output="", **facts):
        super().__init__(why)
        self.output, self.facts = output, {"output": output[-TAIL:], **facts} if output else facts


class Skipped(Exception):
    """A part could not be tried; says why."""


class Report:
    """What is written: OUT/CARD-DATE.json after each part, OUT/CARD-DATE.md at the end."""

    def __init__(self, out, minutes, environment, card, wanted, **facts):
        """`wanted` are the names of parts, without the shape, that are to be run."""
        self.deadline, self.environment, self.wanted = time.monotonic() + 60 * minutes - 5, environment, wanted
        date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d-%H%M")
        out.mkdir(parents=True, exist_ok=True)
        self.path = out / f"{re.sub(r'[^a-z0-9]+', '-', card.lower()).strip('-')}-{date}"
        self.facts = {
            "correct": None, "card": card, "date": date, **facts, "acceptance": [], "parts": [],
            "ceilings": {"shapes": []}, "operations": None, "best": [], "throughput": [],
        }  # fmt: skip

    def is_over(self):
        return self.time_left() < 1

    def time_left(self):
        return self.deadline - time.monotonic()

    def time_for(self, limit):
        """So many seconds, or what is left of the gate's; `Skipped` if that is nothing."""
        if self.is_over():
            raise Skipped("no time was left")
        return min(limit, self.time_left())

    def run(self, *command, limit, codes=(0,)):
        """What a command prints on stdout, and its exit code, which must be one of these."""
        limit = self.time_for(limit)
        command = [str(word) for word in command]
        what = " ".join(command)[:200]
        try:
            pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            options = {"text": True, "errors": "replace", "timeout": limit, "cwd": ROOT, "env": self.environment}
            done = subprocess.run(command, **pipes, **options)
        except subprocess.TimeoutExpired as error:
            output = b"".join(filter(None, (error.stdout, error.stderr))).decode(errors="replace")
            raise Failed(f"took longer than {limit:.0f} s: {what}", output) from error
        except OSError as error:
            raise Failed(str(error)) from error
        if done.returncode not in codes:
            said = done.stderr.strip().splitlines()[:1]
            raise Failed(": ".join([f"ended with {done.returncode}", *said, what]), done.stdout + done.stderr)
        return done.stdout, done.returncode

    def line(self, *command):
        """What a command prints, or None."""
        try:
            return self.run(*command, limit=60)[0].strip()
        except (Failed, Skipped):
            return None

    def part(self, name, body, proves=True):
        """Runs a part, whatever happens in it, and writes down how it went."""
        if name.split(",")[0] not in self.wanted:
            return
        print(f"{name} …", file=sys.stderr, flush=True)
        start, entry = time.monotonic(), {"name": name, "proves": proves}
        try:
            entry |= {"result": "passed", **body()}
        except Failed as error:
            entry |= {"result": "failed", "why": str(error), **error.facts}
        except Skipped as error:
            entry |= {"result": "skipped", "why": str(error)}
        except Exception as error:  # a mistake in the script must not cost the other parts
            entry |= {"result": "failed", "why": f"{type(error).__name__}: {error}"}
        entry["seconds"] = round(time.monotonic() - start, 1)
        self.facts["parts"].append(entry)
        proofs = [part["result"] == "passed" for part in self.facts["parts"] if part["proves"]]
        self.facts["correct"] = all(proofs) if proofs else None
        self.write()

    def write(self):
        self.facts |= {"acceptance": acceptance(self.facts), "best": best(self.facts)}
        self.path.with_suffix(".json").write_text(json.dumps(self.facts, indent=1, ensure_ascii=False) + "\n")

    def table(self):
        """Everything in a page, which is also written."""
        text = page(self.facts)
        self.path.with_suffix(".md").write_text(text)
        return text
