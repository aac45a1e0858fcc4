#!/usr/bin/env python3
"""Reads a folder of parquet shards over HTTP, as `assay local serve --dataset` serves it, with Python's huggingface_hub.

    check_dataset.py ASSAY_BINARY [--current SITE_PACKAGES]

With the huggingface_hub that this Python has, and with the one in `--current`, each in a process of its own:

- Whatever the data set is called, its files are those of the folder that end in .parquet and are not hidden, with their sizes.
- A shard is the folder's byte by byte, whole as a download and in ranges as a file of the hub's file system.
- Another file or revision is not there; a commit leads to the same files as the branch.
- The viewer's refusals have its codes, and a folder without shards is the user's error.
"""

import argparse
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve()
REPO = "someone/text"
SHARDS = ("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "extra.parquet")


def expect(what, found, expected):
    if found != expected:
        sys.exit(f"{what}: found {found!r}, expected {expected!r}")


def expect_error(what, error, work):
    try:
        work()
    except Exception as found:
        names = [kind.__name__ for kind in type(found).__mro__]
        if error not in names:
            sys.exit(f"{what}: found {type(found).__name__} ({found}), expected {error}")
        return
    sys.exit(f"{what}: nothing failed, expected {error}")


def make_folder(folder):
    """Files that end in .parquet: the hub does not look into them."""
    for number, path in enumerate([*SHARDS, "notes.txt", ".hidden.parquet", ".cache/part.parquet"]):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        block = hashlib.sha256(path.encode()).digest()
        (folder / path).write_bytes(block * (1 + 40_000 * number))


def client(endpoint, folder):
    import huggingface_hub
    from huggingface_hub import HfApi, HfFileSystem

    print(f"reading with huggingface_hub {huggingface_hub.__version__}")
    folder, api = Path(folder), HfApi(endpoint, token=False)
    expect("the files", sorted(api.list_repo_files(REPO, repo_type="dataset")), sorted(SHARDS))
    info = api.dataset_info(REPO)
    expect("the name", info.id, REPO)
    tree = api.list_repo_tree("another/name", repo_type="dataset", revision=info.sha, recursive=True)
    sizes = {entry.path: entry.size for entry in tree if hasattr(entry, "size")}
    expect("the sizes", sizes, {path: (folder / path).stat().st_size for path in SHARDS})

    for path in SHARDS:
        arguments = {"repo_type": "dataset", "filename": path, "revision": info.sha}
        copy = Path(api.hf_hub_download(REPO, **arguments))
        expect(f"the content of {path}", copy.read_bytes() == (folder / path).read_bytes(), True)
    last = (folder / SHARDS[2]).read_bytes()
    files = HfFileSystem(endpoint=endpoint, token=False)
    expect("the folder", sorted(files.ls(f"datasets/{REPO}/data", detail=False)), [f"datasets/{REPO}/{path}" for path in SHARDS[:2]])
    found = files.glob(f"datasets/{REPO}/**/*.parquet")
    expect("what a glob finds", sorted(found), [f"datasets/{REPO}/{path}" for path in SHARDS])
    with files.open(f"datasets/{REPO}/{SHARDS[2]}", "rb", block_size=1 << 16) as file:
        for start, length in ((1, 7), (1_000_003, 70_000), (len(last) - 5, 5)):
            file.seek(start)
            expect(f"the bytes from {start} on", file.read(length) == last[start : start + length], True)

    gone = {"repo_type": "dataset", "filename": "gone.parquet"}
    expect_error("another file", "EntryNotFoundError", lambda: api.hf_hub_download(REPO, **gone))
    expect_error("another revision", "RevisionNotFoundError", lambda: api.dataset_info(REPO, revision="f" * 40))


def ask(url):
    """The status, the headers and the JSON of an answer."""
    try:
        answer = urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url)
    except urllib.error.HTTPError as refusal:
        answer = refusal
    with answer:
        return answer.status, answer.headers, json.load(answer)


def check_refusals(endpoint):
    url = f"{endpoint}/rows?dataset={REPO}&config=default&split=train"
    status, headers, answer = ask(f"{url}&length=101")
    expect("too many rows", (status, headers["X-Error-Code"]), (422, "InvalidParameter"))
    expect("its words", answer, {"error": "Parameter 'length' must not be greater than 100"})
    status, headers, _ = ask(url.replace("train", "test"))
    expect("another split", (status, headers["X-Error-Code"]), (404, "ResponseNotFound"))
    # The shards of this check are none.
    status, headers, _ = ask(url)
    expect("rows of what is no shard", (status, headers["X-Error-Code"]), (500, "UnexpectedApiError"))


class Server:
    """`assay local serve --dataset` while the block lasts."""

    def __init__(self, assay, folder):
        self.command = [assay, "local", "serve", "--dataset", "0", "--shards", folder]

    def __enter__(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        found = re.search(r"`data\.endpoint: (http://127\.0\.0\.1:\d+)`", line)
        if not found:
            self.process.kill()
            sys.exit(f"the server said {line!r}")
        return found.group(1)

    def __exit__(self, kind, *_):
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=10)
        if kind is None:
            expect("the server's exit code", code, 0)


def run_client(site_packages, endpoint, folder, home):
    """Runs the client in a process of its own, which has nothing in its cache."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home)}
    environment |= {f"HF_HUB_DISABLE_{what}": "1" for what in ("TELEMETRY", "PROGRESS_BARS")}
    if site_packages:
        environment["PYTHONPATH"] = site_packages
    command = [sys.executable, HERE, "--client", json.dumps({"endpoint": endpoint, "folder": str(folder)})]
    if subprocess.run(command, env=environment).returncode != 0:
        sys.exit(f"reading failed ({site_packages or 'this Python'})")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("assay", nargs="?", help="the binary")
    parser.add_argument("--current", metavar="SITE_PACKAGES", help="a folder with another huggingface_hub")
    parser.add_argument("--client", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.client:
        return client(**json.loads(arguments.client))
    with tempfile.TemporaryDirectory() as scratch:
        scratch, empty = Path(scratch), subprocess.DEVNULL
        (scratch / "empty").mkdir()
        refused = subprocess.run(Server(arguments.assay, scratch / "empty").command, stdout=empty, stderr=empty)
        expect("the exit code without shards", refused.returncode, 2)
        folder = scratch / "shards"
        make_folder(folder)
        with Server(arguments.assay, folder) as endpoint:
            for number, version in enumerate([None] + ([arguments.current] if arguments.current else [])):
                run_client(version, endpoint, folder, scratch / f"home-{number}")
            check_refusals(endpoint)


if __name__ == "__main__":
    main()
