#!/usr/bin/env python3
"""Holds assay's key files against bittensor-wallet, Bittensor's own tool: each opens what the other wrote.

    check_wallet.py ASSAY

Plain files and encrypted ones, with passwords from every variable of the environment that either knows; the addresses
are the same, assay's signatures are valid for bittensor-wallet, and all three forms of the secret are of one key.
Exits 1 where that is not so.
"""

import json
import os
import pty
import select
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

from bittensor_wallet import Keypair, Wallet
from bittensor_wallet.keyfile import encrypt_keyfile_data, legacy_encrypt_keyfile_data

PASSWORD = "a good password, 1"


class Checker:
    def __init__(self, assay, wallets):
        self.assay = Path(assay).resolve()
        self.wallets = wallets
        self.checks = 0

    def wallet(self, hotkey):
        return Wallet(name="mine", hotkey=hotkey, path=str(self.wallets))

    @staticmethod
    def environment():
        """The environment without passwords."""
        return {name: value for name, value in os.environ.items() if not name.upper().startswith("BT_")}

    def run(self, verb, hotkey, *args, **variables):
        command = [self.assay, "wallet", verb, "--wallet-dir", self.wallets, "--wallet", "mine", "--hotkey", hotkey, *args]
        outcome = subprocess.run(
            command, env=self.environment() | variables, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        if outcome.returncode:
            sys.exit(f"{command} with {sorted(variables)}: exit code {outcome.returncode}\n{outcome.stderr}")
        return outcome.stdout.strip()

    def at_terminal(self, verb, hotkey, *typed):
        """What a terminal shows while a user answers questions, and the exit code."""
        child, terminal = pty.fork()
        if child == 0:
            place = ["--wallet-dir", self.wallets, "--wallet", "mine", "--hotkey", hotkey]
            os.execve(self.assay, [self.assay, "wallet", verb, *place], self.environment())
        shown, answers = b"", list(typed)
        while select.select([terminal], [], [], 60)[0]:
            try:
                part = os.read(terminal, 4096)
            except OSError:  # the other end is closed
                break
            shown += part
            if answers and shown.rstrip().endswith(b":"):
                deadline = time.monotonic() + 60
                while termios.tcgetattr(terminal)[3] & termios.ECHO:  # not before the terminal hides what is typed
                    if time.monotonic() > deadline:
                        sys.exit(f"{verb} {hotkey}: the terminal would show the password")
                    time.sleep(0.01)
                os.write(terminal, answers.pop(0).encode() + b"\n")
        return shown.decode(), os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def same(self, what, actual, expected):
        self.checks += 1
        if actual != expected:
            sys.exit(f"{what}: {actual} instead of {expected}")

    def assay_opens(self, hotkey, address, format, **variables):
        """Assay knows the hotkey's address and format and signs with it, and bittensor-wallet takes the signature."""
        shown = json.loads(self.run("show", hotkey, "--json"))
        self.same(f"{hotkey}: format", shown["format"], format)
        self.same(f"{hotkey}: address shown", shown["address"], address)
        verified = json.loads(self.run("verify", hotkey, "--json", **variables))
        self.same(f"{hotkey}: address", verified["address"], address)
        public, signature = Keypair(ss58_address=address), bytes.fromhex(verified["signature"][2:])
        self.same(f"{hotkey}: signature", public.verify(verified["text"].encode(), signature), True)
        self.same(f"{hotkey}: of another text", public.verify(b"another text", signature), False)

    def python_opens(self, hotkey, address, password=None):
        """Bittensor-wallet finds the hotkey's address in its file and in the one beside it, and signs with it."""
        wallet = self.wallet(hotkey)
        key = wallet.get_hotkey(password)
        self.same(f"{hotkey}: address for bittensor-wallet", key.ss58_address, address)
        self.same(f"{hotkey}: address beside it", wallet.get_hotkeypub().ss58_address, address)
        self.same(f"{hotkey}: signs", Keypair(ss58_address=address).verify(b"text", key.sign(b"text")), True)


def variable_of_today(wallet):
    """The variable of a hotkey's password, and its value, as bittensor-wallet makes them."""
    file = wallet.hotkey_file
    return {file.env_var_name(): file.save_password_to_env(PASSWORD)}


def main():
    with tempfile.TemporaryDirectory() as folder:
        check = Checker(sys.argv[1], Path(folder) / "wallets")

        address = check.run("new-hotkey", "plain")
        check.assay_opens("plain", address, "plain")
        check.python_opens("plain", address)
        path = check.wallets / "mine/hotkeys/plain"
        content = json.loads(path.read_text())
        for secret, key in {
            "secretPhrase": Keypair.create_from_mnemonic(content["secretPhrase"]),
            "secretSeed": Keypair.create_from_seed(content["secretSeed"]),
            "privateKey": Keypair.create_from_private_key(content["privateKey"]),
        }.items():
            check.same(f"{secret} of assay's file", key.ss58_address, address)

        sealed = check.run("new-hotkey", "sealed", "--encrypt", BT_COLD_PW_MINE=PASSWORD)
        check.python_opens("sealed", sealed, PASSWORD)
        check.assay_opens("sealed", sealed, "nacl", **variable_of_today(check.wallet("sealed")))

        theirs = check.wallet("theirs")
        theirs.create_new_hotkey(use_password=False, suppress=True)
        check.assay_opens("theirs", theirs.hotkey.ss58_address, "plain")

        theirs_sealed = check.wallet("theirs-sealed")
        theirs_sealed.create_new_hotkey(use_password=True, suppress=True, hotkey_password=PASSWORD)
        address = theirs_sealed.get_hotkey(PASSWORD).ss58_address
        check.assay_opens("theirs-sealed", address, "nacl", **variable_of_today(theirs_sealed))

        # A vault of bittensor-wallet's, and one of their encrypted files without a file beside it.
        plain = theirs.hotkey_file.data
        address = theirs.hotkey.ss58_address
        for name, data in {
            "vault": legacy_encrypt_keyfile_data(plain, PASSWORD),
            "box": encrypt_keyfile_data(plain, PASSWORD),
        }.items():
            file = check.wallets / "mine/hotkeys" / name
            file.touch(mode=0o600)
            file.write_bytes(bytes(data))
            verified = json.loads(check.run("verify", name, "--json", BT_COLD_PW_HOTKEYS=PASSWORD))
            check.same(f"{name}: address", verified["address"], address)

        # Typed: asked for again where it is wrong, and shown nowhere.
        shown, code = check.at_terminal("verify", "vault", "another password", PASSWORD)
        check.same("exit code at the terminal", code, 0)
        check.same("questions", shown.count("Password of"), 2)
        check.same("address at the terminal", address in shown, True)
        check.same("passwords shown", "another password" in shown or PASSWORD in shown, False)
    print(f"{check.checks} checks: bittensor-wallet and assay open each other's key files")


if __name__ == "__main__":
    main()
