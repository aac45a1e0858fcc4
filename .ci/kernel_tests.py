"""What .ci/mutate-kernels and .ci/sanitize-kernels share: the executable of the library's tests."""
import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def build():
    """Builds the library's tests, as `cargo test --release` does, and returns their executable."""
    command = ["cargo", "test", "--release", "--locked", "--lib", "--no-run", "--message-format=json"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit("the tests do not build")
    for line in done.stdout.splitlines():
        message = json.loads(line)
        if message.get("reason") == "compiler-artifact" and message["target"]["name"] == "assay" and message["executable"]:
            return message["executable"]
    sys.exit("cargo names no executable of the tests")
