"""How scripts/gpu-gate runs its parts and writes down how they went, so that none of them stops another."""

import datetime
import json
import re
import subprocess
import sys
import time
from pathlib import Path

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

    def __init__(self, out, minutes, environment, card, **facts):
        self.deadline, self.environment = time.monotonic() + 60 * minutes, environment
        date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d-%H%M")
        out.mkdir(parents=True, exist_ok=True)
        self.path = out / f"{re.sub(r'[^a-z0-9]+', '-', card.lower()).strip('-')}-{date}"
        self.facts = {"correct": False, "card": card, "date": date, **facts, "parts": [], "throughput": []}

    def run(self, *command, limit, codes=(0,)):
        """What a command prints on stdout, and its exit code, which must be one of these."""
        limit = min(limit, self.deadline - time.monotonic())
        if limit < 1:
            raise Skipped("no time was left")
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
            raise Failed(f"ended with {done.returncode}: {what}", done.stdout + done.stderr)
        return done.stdout, done.returncode

    def line(self, *command):
        """What a command prints, or None."""
        try:
            return self.run(*command, limit=60)[0].strip()
        except (Failed, Skipped):
            return None

    def part(self, name, body, proves=True):
        """Runs a part, whatever happens in it, and writes down how it went."""
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
        self.facts["correct"] = all(part["result"] == "passed" for part in self.facts["parts"] if part["proves"])
        self.write()

    def write(self):
        self.path.with_suffix(".json").write_text(json.dumps(self.facts, indent=1, ensure_ascii=False) + "\n")

    def table(self):
        """Everything in a page, which is also written."""
        facts = self.facts
        title, passed = facts["card"], "Everything that was to be proved has passed."
        if facts["rehearsal"]:
            title, passed = "Rehearsal without a GPU", "The script works; nothing was proved or measured of a GPU."
        lines = [
            f"# {title}", "",
            f"{facts['date']} (UTC), driver {facts['driver']}, {facts['assay']}, commit {facts['commit']},",
            f"PyTorch {facts['torch']}. {passed if facts['correct'] else 'Something has not passed.'}", "",
            "| part | result | s | |", "|---|---|---|---|",
        ]  # fmt: skip
        for part in facts["parts"]:
            figures = {key: value for key, value in part.items() if type(value) in (int, float) and key != "seconds"}
            remark = part.get("why") or ", ".join(f"{key} {value:.4g}" for key, value in figures.items())
            lines.append(f"| {part['name']} | {part['result']} | {part['seconds']} | {remark.replace('|', '/')} |")
        lines += [
            "", "Tokens per second, medians of steps; PyTorch is eager, its memory what its allocator had in use.", "",
            "| | model | batch | assay | PyTorch | ratio | assay GiB | PyTorch GiB |", f"|{'---|' * 8}",
        ]  # fmt: skip
        for entry in facts["throughput"]:
            figures = [entry["assay"], entry["torch"]]
            speeds = [figure["tokens_per_s"] if isinstance(figure, dict) else None for figure in figures]
            memory = [figure.get("gpu_mib") if isinstance(figure, dict) else None for figure in figures]
            cells = [f"{entry['what']} {entry['dtype']}", entry["shape"], str(entry["batch"])]
            cells += [f"{speed:,.0f}" if speed else str(figure)[:60] for speed, figure in zip(speeds, figures)]
            cells += [f"{speeds[0] / speeds[1]:.2f}" if all(speeds) else ""]
            cells += [f"{mib / 1024:.1f}" if mib else "" for mib in memory]
            lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
        page = "\n".join([*lines, "", f"Not covered: {facts['not_covered']}.", ""])
        self.path.with_suffix(".md").write_text(page)
        return page
