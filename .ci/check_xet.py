#!/usr/bin/env python3
"""Uploads and downloads by Xet, against Hugging Face's own test store behind the hub that assay serves.

    check_xet.py [--current SITE_PACKAGES]

Builds that store (tests/xet, into target/xet) and the examples hub_over_xet and hub_copy. Then, with the huggingface_hub
that this Python has, and with the one in `--current`, and hf-xet:

- What assay uploads by Xet, Python downloads by commit as it was; and assay too.
- What Python uploads by Xet, assay downloads by commit as it was; a second upload of the same by assay makes no commit.
- A model with a change in its middle, uploaded again, makes the store grow by little more than the change.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve()
ROOT = HERE.parent.parent
TOKEN = "hf_" + "a" * 30
MODEL_BYTES = 6_000_000


def expect(what, found, expected):
    if found != expected:
        sys.exit(f"{what}: found {found!r}, expected {expected!r}")


def build():
    cargo = ["cargo", "build", "--locked", "--quiet"]
    environment = os.environ | {"CARGO_TARGET_DIR": str(ROOT / "target/xet")}
    subprocess.run([*cargo, "--manifest-path", ROOT / "tests/xet/Cargo.toml"], env=environment, check=True)
    subprocess.run([*cargo, "--release", "--example", "hub_over_xet", "--example", "hub_copy"], cwd=ROOT, check=True)


def make_model(folder, seed):
    folder.mkdir(parents=True)
    content = random.Random(seed).randbytes(MODEL_BYTES)
    (folder / "model.safetensors").write_bytes(content)
    (folder / "config.json").write_text(json.dumps({"seed": seed}))
    return content


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != ".gitattributes"}


def size_of(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


class Assay:
    """assay's client of the hub."""

    def __init__(self, endpoint, home):
        self.endpoint = endpoint
        # What hf-hub would find by itself is wrong: what it does is what assay tells it.
        self.environment = os.environ | {"HF_TOKEN": TOKEN, "HF_HOME": str(home), "HF_ENDPOINT": "http://127.0.0.1:9"}

    def run(self, *arguments):
        command = [ROOT / "target/release/examples/hub_copy", *arguments]
        return subprocess.run(command, env=self.environment, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()

    def upload(self, repo, folder):
        return self.run("upload", self.endpoint, repo, folder)

    def download(self, repo, commit, folder):
        self.run("download", self.endpoint, repo, commit, folder)
        return contents(Path(folder))


class Hub:
    """The hub with its store while the block lasts; its standard error is what it says of requests."""

    def __init__(self, folder):
        folder.mkdir()
        self.command = [ROOT / "target/release/examples/hub_over_xet", ROOT / "target/xet/debug/xet-store", folder]

    def __enter__(self):
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self.process.stdout.readline().strip()

    def __exit__(self, kind, *_):
        self.process.stdin.close()
        code = self.process.wait(timeout=20)
        if kind is None:
            expect("the hub's exit code", code, 0)


def python_client(step, folder, commit=None):
    """Runs in a process with the huggingface_hub to check."""
    import hf_xet  # without it, large files go up and down by plain requests
    from huggingface_hub import HfApi, snapshot_download

    if step == "upload":
        api = HfApi(token=TOKEN)
        api.create_repo("them/model", exist_ok=True)
        print(api.upload_folder(repo_id="them/model", folder_path=folder).oid)
    else:
        snapshot_download("me/model", revision=commit, local_dir=folder, token=TOKEN)


def run_python(site_packages, endpoint, home, **arguments):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    environment |= {"PYTHONPATH": site_packages} if site_packages else {}
    command = [sys.executable, HERE, "--client", json.dumps(arguments)]
    return subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def check(scratch, version):
    with Hub(scratch / "hub") as endpoint:
        assay = Assay(endpoint, scratch / "home-assay")
        content = make_model(scratch / "ours", 1)
        commit = assay.upload("me/model", scratch / "ours")
        stored = size_of(scratch / "hub/xet/xorbs")
        expect("the store holds the model", stored >= MODEL_BYTES, True)
        expect("what assay reads of what assay wrote", assay.download("me/model", commit, scratch / "a") == contents(scratch / "ours"), True)
        run_python(version, endpoint, scratch / "home", step="download", folder=str(scratch / "b"), commit=commit)
        expect("what Python reads of what assay wrote", contents(scratch / "b") == contents(scratch / "ours"), True)

        half = MODEL_BYTES // 2
        (scratch / "ours/model.safetensors").write_bytes(content[:half] + b"new" + content[half:])
        second = assay.upload("me/model", scratch / "ours")
        expect("another commit", second != commit, True)
        grown = size_of(scratch / "hub/xet/xorbs") - stored
        expect("little more is stored", 0 < grown < MODEL_BYTES // 4, True)
        expect("what assay reads of that", assay.download("me/model", second, scratch / "c") == contents(scratch / "ours"), True)
        expect("a third upload makes no commit", assay.upload("me/model", scratch / "ours"), second)

        make_model(scratch / "theirs", 2)
        theirs = run_python(version, endpoint, scratch / "home", step="upload", folder=str(scratch / "theirs"))
        expect("what Python wrote went by Xet", size_of(scratch / "hub/xet/xorbs") - stored - grown >= MODEL_BYTES, True)
        expect("what assay reads of what Python wrote", assay.download("them/model", theirs, scratch / "d") == contents(scratch / "theirs"), True)
        expect("assay's upload of the same makes no commit", assay.upload("them/model", scratch / "theirs"), theirs)
    print(f"{version or 'this Python'}: {MODEL_BYTES} bytes up and down by Xet, {grown} more for a change in the middle")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--current", metavar="SITE_PACKAGES", help="a folder with another huggingface_hub")
    parser.add_argument("--client", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.client:
        return python_client(**json.loads(arguments.client))
    build()
    for version in [None] + ([arguments.current] if arguments.current else []):
        with tempfile.TemporaryDirectory() as scratch:
            check(Path(scratch), version)


if __name__ == "__main__":
    main()
