#!/usr/bin/env python3
"""Writes and reads the hub folder over HTTP, as `assay local serve --hub` serves it, with Python's huggingface_hub and
transformers.

    check_hub.py ASSAY_BINARY [--current SITE_PACKAGES] [--model FOLDER]

With the huggingface_hub that this Python has, and with the one in `--current`, each in a process of its own:

- A repository is created, twice; a folder with a random GPT-2 is uploaded as one commit; the tree, sizes, sums and commits
  that the hub tells are those of the folder; the model loads by its commit, and the reference's hash of it is the folder's.
- A snapshot is the folder byte by byte; a download that was cut off goes on with the bytes that are missing.
- A commit on top of a commit that is not the newest is refused with 412, and so is a path with a folder in it with 400.
- A private repository is there for whoever has a token and for nobody else, until it is made public; a token that is not
  the named one is refused.
- What the one wrote, the other reads.
- The rival of an embedded network, fetched by the reference's own steps, has the hash that stands on the ledger.

With `--model`, a folder that `assay train` has written with the recipe of the quickstart:

- `assay publish` publishes it over HTTP, hidden until it is committed; then the reference's own steps, without a token, give
  the hash that stands on the ledger, and the page tells of the training.
- A model that huggingface_hub has uploaded and somebody has committed is scored by `assay compare`.
"""

import argparse
import hashlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve()
TOKEN = "hf_" + "a" * 30
MODEL_FILES = {"config.json", "generation_config.json", "model.safetensors"}


def expect(what, found, expected):
    if found != expected:
        sys.exit(f"{what}: found {found!r}, expected {expected!r}")


def expect_error(what, error, status, work):
    """Does what must fail with an exception of that name and an answer of that status."""
    try:
        work()
    except Exception as found:
        response = getattr(found, "response", None)
        names = [kind.__name__ for kind in type(found).__mro__]
        if error not in names or response is None or response.status_code != status:
            sys.exit(f"{what}: found {type(found).__name__} ({found}), expected {error} with status {status}")
        return
    sys.exit(f"{what}: nothing failed, expected {error}")


def make_model(folder, seed):
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(vocab_size=128, n_positions=32, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(folder, safe_serialization=True)
    (folder / "README.md").write_text("---\ntags: [test]\n---\nA random model.\n")


def check_written(api, repo, commit, folder):
    """What the hub tells of a commit against the folder that was uploaded."""
    from huggingface_hub import snapshot_download

    contents = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    info = api.model_info(repo, revision=commit, files_metadata=True)
    expect("the newest commit", info.sha, commit)
    siblings = {file.rfilename: file for file in info.siblings if file.rfilename != ".gitattributes"}
    expect("the files", set(siblings), set(contents))
    tree = {file.path: file for file in api.list_repo_tree(repo, revision=commit, recursive=True)}
    expect("the tree", set(tree), set(contents) | {".gitattributes"})
    some = {file.path: file for file in api.get_paths_info(repo, ["config.json", "model.safetensors", "no"], revision=commit)}
    expect("some paths", set(some), {"config.json", "model.safetensors"})
    for name, content in contents.items():
        for file in [siblings[name], tree[name], some.get(name, tree[name])]:
            expect(f"the size of {name}", file.size, len(content))
            if name.endswith(".safetensors"):
                expect(f"the sum of {name}", (file.lfs.sha256, file.lfs.size), (hashlib.sha256(content).hexdigest(), len(content)))
            else:
                blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
                expect(f"the sum of {name}", (file.lfs, file.blob_id), (None, blob))
    with tempfile.TemporaryDirectory() as cache:
        snapshot = Path(snapshot_download(repo, revision=commit, cache_dir=cache))
        expect("the snapshot's files", {path.name for path in snapshot.iterdir()}, set(contents) | {".gitattributes"})
        for name, content in contents.items():
            expect(f"the snapshot's {name}", (snapshot / name).read_bytes() == content, True)


def check_loaded(repo, commit, folder):
    """Loads a model by its commit, as it is, and hashes it as the reference does."""
    import torch
    from reference_hash import hash_of_directory, reference_hash
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as cache, tempfile.TemporaryDirectory() as fetched:
        loaded = AutoModelForCausalLM.from_pretrained(repo, revision=commit, cache_dir=cache).state_dict()
        original = AutoModelForCausalLM.from_pretrained(folder).state_dict()
        expect("the tensors", set(loaded), set(original))
        expect("equal tensors", all(torch.equal(loaded[name], original[name]) for name in loaded), True)
        for name in MODEL_FILES:
            Path(fetched, name).write_bytes((folder / name).read_bytes())
        with tempfile.TemporaryDirectory() as fresh:
            expect("the reference's hash", reference_hash(repo, commit, fresh), hash_of_directory(Path(fetched)))


def check_resumed(endpoint, repo, commit, folder):
    """A download goes on where it was cut: its first half, which was put there, is not what the hub has."""
    import huggingface_hub
    from huggingface_hub.file_download import http_get

    content = (folder / "model.safetensors").read_bytes()
    half = bytes(len(content) // 2)
    with tempfile.TemporaryDirectory() as cache:
        part = Path(cache, "part")
        part.write_bytes(half)
        with part.open("ab") as file:
            url = huggingface_hub.hf_hub_url(repo, "model.safetensors", revision=commit, endpoint=endpoint)
            http_get(url, file, resume_size=len(half), expected_size=len(content))
        expect("the resumed half", part.read_bytes() == half + content[len(half) :], True)
        if int(huggingface_hub.__version__.split(".")[0]) >= 1:
            return  # from there on, a new process starts anew
        blobs = Path(cache, f"models--{repo.replace('/', '--')}", "blobs")
        blobs.mkdir(parents=True)
        (blobs / f"{hashlib.sha256(content).hexdigest()}.incomplete").write_bytes(half)
        found = Path(huggingface_hub.hf_hub_download(repo, "model.safetensors", revision=commit, cache_dir=cache)).read_bytes()
        expect("the half that another process resumed", found == half + content[len(half) :], True)


def write(endpoint, namespace, folder):
    """The first of the client's processes: returns what it has written."""
    from huggingface_hub import CommitOperationAdd, HfApi

    api, nobody = HfApi(endpoint, token=TOKEN), HfApi(endpoint, token=False)
    repo, hidden = f"{namespace}/model", f"{namespace}/hidden"
    expect("the user", api.whoami()["type"], "user")
    expect_error("creating without a token", "HfHubHTTPError", 401, lambda: nobody.create_repo(repo))
    expect_error("a repository that is not there", "RepositoryNotFoundError", 404, lambda: api.model_info(repo))
    expect("the created repository", api.create_repo(repo).repo_id, repo)
    expect("the same again", api.create_repo(repo, exist_ok=True).repo_id, repo)
    expect_error("creating it once more", "HfHubHTTPError", 409, lambda: api.create_repo(repo))

    first = api.model_info(repo).sha
    made = api.upload_folder(repo_id=repo, folder_path=folder, commit_message="A model\n\nwith words", parent_commit=first)
    commit = made.oid
    expect("the commits", [(one.commit_id, one.title) for one in api.list_repo_commits(repo)], [(commit, "A model"), (first, "initial commit")])
    expect("the branches", [(ref.name, ref.target_commit) for ref in api.list_repo_refs(repo).branches], [("main", commit)])
    same = api.upload_folder(repo_id=repo, folder_path=folder, commit_message="again")
    expect("the commit of the same again", same.oid, commit)
    check_written(nobody, repo, commit, folder)
    check_loaded(repo, commit, folder)
    check_resumed(endpoint, repo, commit, folder)
    expect_error("another revision", "RevisionNotFoundError", 404, lambda: api.model_info(repo, revision="f" * 40))
    expect_error("another file", "EntryNotFoundError", 404, lambda: api.hf_hub_download(repo, "no.txt", revision=commit))

    def add(path, parent=None):
        operation = CommitOperationAdd(path_in_repo=path, path_or_fileobj=b"text")
        return api.create_commit(repo, [operation], commit_message="more", parent_commit=parent).oid

    expect_error("an old parent", "HfHubHTTPError", 412, lambda: add("more.txt", first))
    expect_error("a folder", "BadRequestError", 400, lambda: add("folder/more.txt"))
    newest = add("more.txt", commit)
    api.delete_file("more.txt", repo)
    expect("the number of commits", len(api.list_repo_commits(repo)), 4)
    expect("a file that was deleted", api.file_exists(repo, "more.txt"), False)
    expect("the same file earlier", api.file_exists(repo, "more.txt", revision=newest), True)

    api.create_repo(hidden, private=True)
    api.upload_folder(repo_id=hidden, folder_path=folder)
    expect("the owner's view", api.model_info(hidden).private, True)
    expect_error("a stranger's view", "RepositoryNotFoundError", 401, lambda: nobody.model_info(hidden))
    expect_error("a stranger's download", "RepositoryNotFoundError", 401, lambda: nobody.hf_hub_download(hidden, "config.json"))
    api.update_repo_settings(hidden, private=False)
    expect("everybody's view", nobody.model_info(hidden).private, False)
    return {"repo": repo, "commit": commit, "folder": str(folder)}


def client(step, endpoint, **arguments):
    """What a process of the other parts does; its answer goes to the file `answer`."""
    import huggingface_hub

    print(f"{step} with huggingface_hub {huggingface_hub.__version__}")
    if step == "write":
        folder = Path(arguments["folder"])
        make_model(folder, len(arguments["namespace"]))
        written = write(endpoint, arguments["namespace"], folder)
        Path(arguments["answer"]).write_text(json.dumps(written))
    elif step == "read":
        repo, commit, folder = arguments["repo"], arguments["commit"], Path(arguments["folder"])
        check_written(huggingface_hub.HfApi(endpoint, token=False), repo, commit, folder)
        check_loaded(repo, commit, folder)
    elif step == "upload":
        api = huggingface_hub.HfApi(endpoint, token=TOKEN)
        api.create_repo(arguments["repo"])
        uploaded = api.upload_folder(repo_id=arguments["repo"], folder_path=arguments["folder"])
        Path(arguments["answer"]).write_text(json.dumps(uploaded.oid))
    elif step == "wrong token":
        api, other = huggingface_hub.HfApi(endpoint, token=TOKEN), huggingface_hub.HfApi(endpoint, token="hf_other")
        expect("the user", api.whoami()["type"], "user")
        api.create_repo("a/b", exist_ok=True)
        expect_error("a wrong token", "HfHubHTTPError", 401, lambda: other.create_repo("a/c"))
        expect_error("a wrong token", "HfHubHTTPError", 401, lambda: other.model_info("a/b"))


class Server:
    """`assay local serve --hub` while the block lasts."""

    def __init__(self, assay, folder, *options):
        self.command = [assay, "local", "serve", "--hub", "0", "--dir", folder, *options]

    def __enter__(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        found = re.search(r"HF_ENDPOINT=(http://127\.0\.0\.1:\d+)", line)
        if not found:
            self.process.kill()
            sys.exit(f"the server said {line!r}")
        return found.group(1)

    def __exit__(self, kind, *_):
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=10)
        if kind is None:
            expect("the server's exit code", code, 0)


def clean_environment(site_packages, endpoint, home):
    """The environment of a process whose huggingface_hub is that of a folder, or this Python's."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home)}
    environment |= {f"HF_HUB_DISABLE_{what}": "1" for what in ("XET", "TELEMETRY", "PROGRESS_BARS")}
    return environment | ({"PYTHONPATH": site_packages} if site_packages else {})


def run_client(site_packages, endpoint, home, step, **arguments):
    """Runs a step in a process of its own."""
    text = json.dumps({"step": step, "endpoint": endpoint} | arguments)
    command = [sys.executable, HERE, "--client", text]
    if subprocess.run(command, env=clean_environment(site_packages, endpoint, home)).returncode != 0:
        sys.exit(f"the step {step!r} failed ({site_packages or 'this Python'})")


def check_python(assay, versions, scratch):
    with Server(assay, scratch / "local") as endpoint:
        written = []
        for number, version in enumerate(versions):
            answer = scratch / f"written-{number}.json"
            names = {"namespace": "n" * (number + 1), "folder": str(scratch / f"model-{number}"), "answer": str(answer)}
            run_client(version, endpoint, scratch / "home", "write", **names)
            written.append(json.loads(answer.read_text()))
        for version, other in zip(versions, reversed(written)):
            run_client(version, endpoint, scratch / "home", "read", **other)
    with Server(assay, scratch / "other", "--token", TOKEN) as endpoint:
        for version in versions:
            run_client(version, endpoint, scratch / "home", "wrong token")


def committed(local, hotkey):
    """The only commitment of a hotkey on the ledger of an embedded network."""
    with sqlite3.connect(f"file:{local}/ledger.sqlite?mode=ro", uri=True) as connection:
        ((text,),) = connection.execute("SELECT bytes FROM commitments WHERE hotkey = ?", (hotkey,))
    return bytes(text).decode()


def check_committed(assay, versions, scratch):
    """The reference's hash of what `assay local init` has published is the one that it has committed to the chain."""
    local = scratch / "network"
    subprocess.run([assay, "--quiet", "local", "init", "--local", local], check=True, stdout=subprocess.DEVNULL)
    namespace, name, commit, expected = committed(local, "unigram").split(":")
    with Server(assay, local) as endpoint:
        for version in versions:
            command = [sys.executable, HERE.parent / "reference_hash.py", f"{namespace}/{name}", commit, "--endpoint", endpoint]
            environment = clean_environment(version, endpoint, scratch / "home")
            subprocess.run([*command, "--expect", expected], check=True, env=environment)


def check_assay(assay, versions, model, scratch):
    """assay publishes, and Python reads it; Python uploads, and assay reads that."""
    from huggingface_hub import HfApi

    local = scratch / "published"
    quiet = {"check": True, "stdout": subprocess.DEVNULL}
    subprocess.run([assay, "--quiet", "local", "init", "--local", local], **quiet)
    with Server(assay, local, "--token", TOKEN) as endpoint:
        environment = {**clean_environment(None, endpoint, scratch / "home"), "HF_TOKEN": TOKEN}
        keys = {"kind": "huggingface", "repo": "me/model", "cache": str(local / "cache")}
        settings = [f"hub.{key}={value}" for key, value in keys.items()]
        settings += [f"chain.ledger={local / 'ledger.sqlite'}", "publish.visibility=private-until-committed"]
        recipe = ["--recipe", HERE.parent.parent / "recipes/quickstart.yaml"]
        recipe += [argument for setting in settings for argument in ("--set", setting)]

        publish = [assay, "--quiet", "publish", model, "--json", *recipe]
        published = json.loads(subprocess.run(publish, check=True, stdout=subprocess.PIPE, env=environment).stdout)
        commit, expected = committed(local, "miner").split(":")[2:]
        expect("what assay says of it", (published["commit"], published["hash"]), (commit, expected))
        for version in versions:
            command = [sys.executable, HERE.parent / "reference_hash.py", "me/model", commit, "--endpoint", endpoint]
            stranger = clean_environment(version, endpoint, scratch / "home")
            subprocess.run([*command, "--expect", expected], env=stranger, **quiet)
        nobody = HfApi(endpoint, token=False)
        page = Path(nobody.hf_hub_download("me/model", "README.md", revision=published["commit"], cache_dir=scratch / "page"))
        expect("the page", all(part in page.read_text() for part in ("library_name: transformers", "Recipe `quickstart`")), True)

        answer = scratch / "uploaded.json"
        run_client(None, endpoint, scratch / "home", "upload", repo="py/model", folder=str(model), answer=str(answer))
        subprocess.run([assay, "--quiet", "local", "register", "python", "--local", local], **quiet)
        text = f"py:model:{json.loads(answer.read_text())}:{published['hash']}"
        subprocess.run([assay, "--quiet", "chain", "commit", text, "--hotkey", "python", "--local", local], **quiet)
        compare = [assay, "--quiet", "compare", "--batches", "4", "--json", *recipe]
        compared = json.loads(subprocess.run(compare, check=True, stdout=subprocess.PIPE, env=environment).stdout)
        losses = {found["hotkey"]: found["average_loss"] for found in compared["models"]}
        expect("the models that are scored", set(losses), {"unigram", "miner", "python"})
        expect("the loss of the same model", losses["python"], losses["miner"])
        print(f"assay: published {published['commitment']}, scored {losses}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("assay", nargs="?", help="the binary")
    parser.add_argument("--current", metavar="SITE_PACKAGES", help="a folder with another huggingface_hub and transformers")
    parser.add_argument("--model", type=Path, help="a folder that `assay train` has written")
    parser.add_argument("--client", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.client:
        return client(**json.loads(arguments.client))
    versions = [None] + ([arguments.current] if arguments.current else [])
    with tempfile.TemporaryDirectory() as scratch:
        check_python(arguments.assay, versions, Path(scratch))
        check_committed(arguments.assay, versions, Path(scratch))
        if arguments.model:
            check_assay(arguments.assay, versions, arguments.model.resolve(), Path(scratch))


if __name__ == "__main__":
    main()
