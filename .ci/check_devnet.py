#!/usr/bin/env python3
"""Reads and writes the embedded network as the node that `assay local serve` makes of it, with py-substrate-interface.

    check_devnet.py ASSAY_BINARY

For each of the chain's programs that the node can look like:

- Keys, Uids and CommitmentOf are what the ledger holds: its validator, the rival with its commitment, a registered address.
- A commitment that is signed here with the seed of a key file is in a final block, reads back byte for byte, and stands on
  the ledger (SQLite); the next one fails by the name that this program has for it, and so does one of a stranger.
- What was committed here, `assay chain` reads over the same protocol; what it commits with a key file that it made, is read
  here.
- SIGTERM ends the node with exit code 0.
"""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

from substrateinterface import Keypair, SubstrateInterface

NETUID = 9
BLOCK_SECONDS = 0.5
KEY_FILE = Path(__file__).parent.parent / "tests/golden/chain/keyfiles/hotkey_plain_2024.json"
TEXT = "somebody:model:0123456789abcdef0123456789abcdef01234567:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="
ERRORS = {143: ("RateLimitExceeded", "CannotCommit"), 185: ("CommitmentSetRateLimitExceeded", "AccountNotAllowedCommit")}


def expect(what, found, expected):
    if found != expected:
        sys.exit(f"{what}: found {found!r}, expected {expected!r}")


def on_ledger(ledger, hotkey):
    with sqlite3.connect(f"file:{ledger}?mode=ro", uri=True) as connection:
        query = "SELECT block, bytes FROM commitments WHERE hotkey = ? ORDER BY block, id"
        return [(block, bytes(text).decode()) for block, text in connection.execute(query, (hotkey,))]


def commitment(node, address):
    """Block and text of what an account has committed."""
    found = node.query("Commitments", "CommitmentOf", [NETUID, address]).value
    if found is None:
        return None
    (field,) = found["info"]["fields"]
    ((kind, text),) = field.items()
    # The library gives bytes that are a text as that text, and others in hexadecimal.
    text = bytes.fromhex(text[2:]).decode() if text.startswith("0x") else text
    expect("the length that the field is named after", kind, f"Raw{len(text.encode())}")
    return found["block"], text


def commit(node, key, text):
    fields = [[{f"Raw{len(text)}": "0x" + text.encode().hex()}]]
    call = node.compose_call("Commitments", "set_commitment", {"netuid": NETUID, "info": {"fields": fields}})
    extrinsic = node.create_signed_extrinsic(call, key, era={"period": 32})
    return node.submit_extrinsic(extrinsic, wait_for_finalization=True)


def check(node, spec, ledger, key):
    address = {name: Keypair.create_from_uri(f"//{name}").ss58_address for name in ("validator", "unigram", "Stranger")}
    node.init_runtime()
    expect("the program's version", node.runtime_version, spec)
    keys = {uid.value: account.value for uid, account in node.query_map("SubtensorModule", "Keys", [NETUID])}
    expect("Keys", keys[0], address["validator"])
    expect("Keys", keys[1], address["unigram"])
    expect("Keys", key.ss58_address in keys.values(), True)
    for uid, account in keys.items():
        expect(f"Uids of uid {uid}", node.query("SubtensorModule", "Uids", [NETUID, account]).value, uid)
    expect("SubnetworkN", node.query("SubtensorModule", "SubnetworkN", [NETUID]).value, len(keys))
    expect("Incentive", node.query("SubtensorModule", "Incentive", [NETUID]).value[1], 65535)

    expect("the rival's commitment", [commitment(node, address["unigram"])], on_ledger(ledger, "unigram"))
    expect("a commitment before it is made", commitment(node, key.ss58_address), None)
    receipt = commit(node, key, TEXT)
    expect("the transaction's success", (receipt.is_success, receipt.error_message), (True, None))
    block = node.get_block_number(receipt.block_hash)
    expect("the commitment", commitment(node, key.ss58_address), (block, TEXT))
    expect("the commitment on the ledger", on_ledger(ledger, key.ss58_address), [(block, TEXT)])
    events = [event.value["event_id"] for event in receipt.triggered_events]
    expect("the events", events, ["Commitment", "TransactionFeePaid", "ExtrinsicSuccess"])
    for signer, name in zip((key, Keypair.create_from_uri("//Stranger")), ERRORS[spec]):
        receipt = commit(node, signer, "again")
        expect("the error", (receipt.is_success, receipt.error_message["name"]), (False, name))
    expect("the ledger afterwards", on_ledger(ledger, key.ss58_address), [(block, TEXT)])
    return block


def check_client(node, assay, url, ledger, key, own, state):
    """What assay's client and Python's make of each other's commitments. `own`: folder of a wallet with a hotkey of assay's."""

    def chain(*arguments):
        command = [assay, "--quiet", "chain", *arguments, "--endpoint", url, "--json"]
        answer = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | {"ASSAY_HOME": state})
        return json.loads(answer.stdout)

    ((block, text),) = on_ledger(ledger, key.ss58_address)
    found = chain("commitment", key.ss58_address)
    expect("Python's commitment, by assay", found, {"hotkey": key.ss58_address, "block": block, "text": text})
    own_text = TEXT.replace("somebody", "another")
    committed = chain("commit", own_text, "--hotkey-file", f"{own}/hotkeys/default")
    expect("assay's commitment", committed["text"], own_text)
    expect("assay's commitment, by Python", commitment(node, committed["hotkey"]), (committed["block"], own_text))
    expect("all commitments", {found["hotkey"] for found in chain("commitments")} >= {key.ss58_address, committed["hotkey"]}, True)
    neurons = chain("neurons")
    keys = {uid.value: account.value for uid, account in node.query_map("SubtensorModule", "Keys", [NETUID])}
    expect("the neurons", {neuron["uid"]: neuron["hotkey"] for neuron in neurons}, keys)
    incentive = node.query("SubtensorModule", "Incentive", [NETUID]).value
    expect("their incentives", [neuron["incentive"] for neuron in neurons], incentive)


def main():
    assay = sys.argv[1]
    key = Keypair.create_from_seed(json.loads(KEY_FILE.read_text())["secretSeed"], ss58_format=42)
    for spec in ERRORS:
        with tempfile.TemporaryDirectory() as local:
            ledger = f"{local}/ledger.sqlite"
            subprocess.run([assay, "--quiet", "local", "init", "--block-seconds", str(BLOCK_SECONDS), "--local", local], check=True, stdout=subprocess.DEVNULL)
            register = [assay, "local", "register", key.ss58_address, "--local", local]
            subprocess.run(register, check=True, stdout=subprocess.DEVNULL)
            subprocess.run([assay, "wallet", "new-hotkey", "--wallet-dir", local], check=True, stdout=subprocess.DEVNULL)
            own = json.loads(Path(local, "default/hotkeys/default").read_text())["ss58Address"]
            subprocess.run([assay, "local", "register", own, "--local", local], check=True, stdout=subprocess.DEVNULL)
            serve = [assay, "local", "serve", "--rpc", "0", "--dir", local, "--spec", str(spec)]
            with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as server:
                try:
                    url = re.search(r"ws://127\.0\.0\.1:\d+", server.stdout.readline()).group()
                    with SubstrateInterface(url=url, ss58_format=42) as node:
                        block = check(node, spec, ledger, key)
                        check_client(node, assay, url, ledger, key, f"{local}/default", f"{local}/state")
                finally:
                    server.send_signal(signal.SIGTERM)
                expect("the node's exit code", server.wait(timeout=10), 0)
        print(f"version {spec}: committed at block {block}, read back, and refused the next one")


main()
