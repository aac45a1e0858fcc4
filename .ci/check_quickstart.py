#!/usr/bin/env python3
"""Checks what the quickstart learned: a held-out loss at least 0.2 nats below the held-out pages' unigram cross-entropy.

    check_quickstart.py RUN_DIR

Reads `held_out_loss` and `unigram_cross_entropy` (computed by the run over the very same pages) from metrics.jsonl.
"""

import json
import sys
from pathlib import Path

MARGIN_NATS = 0.2


def main():
    lines = [json.loads(line) for line in (Path(sys.argv[1]) / "metrics.jsonl").read_text().splitlines()]
    held_out = [line["held_out_loss"] for line in lines if "held_out_loss" in line]
    unigram = [line["unigram_cross_entropy"] for line in lines if "unigram_cross_entropy" in line]
    if not (held_out and unigram):
        sys.exit("metrics.jsonl lacks held_out_loss or unigram_cross_entropy")
    print(f"held-out loss {held_out[-1]:.4f}, unigram {unigram[-1]:.4f}, to be at least {MARGIN_NATS} below it")
    sys.exit(not held_out[-1] <= unigram[-1] - MARGIN_NATS)


if __name__ == "__main__":
    main()
