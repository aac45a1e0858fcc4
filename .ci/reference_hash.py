#!/usr/bin/env python3
"""The hash of a published model as the subnet's validators compute it: they fetch it by its commit with transformers, put the
files in the place of the links of the snapshot, and hash the folder.

    reference_hash.py REPO COMMIT [--endpoint URL] [--expect HASH]

Prints the hash; exit code 1 if it is not the expected one. A token is taken from HF_TOKEN.
"""

import argparse
import base64
import hashlib
import os
import shutil
import sys
import tempfile
from pathlib import Path


def digest_of_file(path):
    """SHA-256 of a file's content, in base64."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return base64.b64encode(digest.digest()).decode()


def files_in_order(folder):
    """The files of a folder by name, then those of its folders, by name; names are sorted by code points."""
    entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
    files = [entry for entry in entries if not entry.is_dir()]
    for entry in entries:
        if entry.is_dir() and not entry.is_symlink():
            files += files_in_order(entry)
    return files


def hash_of_directory(folder):
    """SHA-256 over the base64 texts of the files' SHA-256, in base64."""
    texts = "".join(digest_of_file(path) for path in files_in_order(folder))
    return base64.b64encode(hashlib.sha256(texts.encode()).digest()).decode()


def realize_links(folder):
    """Moves the files of links into the links' places; of two links to one file, the second has none left."""
    for path in files_in_order(folder):
        if path.is_symlink():
            target = path.resolve(strict=True)
            path.unlink()
            shutil.move(target, path)


def reference_hash(repo, commit, cache):
    """Downloads a model by its commit into a folder that nobody else uses, and hashes what transformers fetched."""
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(repo, revision=commit, cache_dir=cache, use_safetensors=True)
    snapshot = Path(cache, f"models--{repo.replace('/', '--')}", "snapshots", commit)
    realize_links(snapshot)
    return hash_of_directory(snapshot)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repo", help="namespace/name")
    parser.add_argument("commit", help="40 hexadecimal digits")
    parser.add_argument("--endpoint", help="address of the hub; default HF_ENDPOINT, or Hugging Face")
    parser.add_argument("--expect", metavar="HASH", help="the hash that stands on the chain")
    arguments = parser.parse_args()
    if arguments.endpoint:
        os.environ["HF_ENDPOINT"] = arguments.endpoint  # before the library is loaded, which reads it once
    with tempfile.TemporaryDirectory() as cache:
        found = reference_hash(arguments.repo, arguments.commit, cache)
    print(found)
    if arguments.expect is not None and found != arguments.expect:
        sys.exit(f"{arguments.repo} at {arguments.commit} hashes to {found}, expected {arguments.expect}")


if __name__ == "__main__":
    main()
