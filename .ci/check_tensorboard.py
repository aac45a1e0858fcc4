#!/usr/bin/env python3
"""Reads a run's TensorBoard events with TensorBoard's own reader and compares them with its metrics.jsonl.

    check_tensorboard.py RUN_DIR

Every value of every line of metrics.jsonl must be there as a scalar of that name and step, equal as f32, and nothing
else: what a resumed run computed again must have replaced what it had recorded before (only the evaluation of the very
step that a run resumed from may be there twice, and equal). Exits 1 where that is not so.
"""

import json
import math
import sys
from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def expected_scalars(path):
    scalars = {}
    for line in path.read_text().splitlines():
        record = json.loads(line)
        step = record.pop("step")
        record.pop("time")
        for tag, value in record.items():
            scalars.setdefault(tag, []).append((step, float(value)))
    return scalars


def same(a, b):
    a, b = np.float32(a), np.float32(b)
    return a == b or (math.isnan(a) and math.isnan(b))


def main():
    run_dir = Path(sys.argv[1])
    expected = expected_scalars(run_dir / "metrics.jsonl")
    if not expected:
        sys.exit(f"{run_dir}/metrics.jsonl is empty")
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0})
    events.Reload()
    # A dict: the same step and value twice is one entry, the same step with another value two.
    actual = {tag: list(dict.fromkeys((e.step, e.value) for e in events.Scalars(tag))) for tag in events.Tags()["scalars"]}

    wrong = [f"tag {tag}: only on one side" for tag in sorted(expected.keys() ^ actual.keys())]
    for tag in sorted(expected.keys() & actual.keys()):
        if [step for step, _ in expected[tag]] != [step for step, _ in actual[tag]]:
            wrong.append(f"tag {tag}: other steps: {actual[tag]} instead of {expected[tag]}")
            continue
        for (step, value), (_, read) in zip(expected[tag], actual[tag]):
            if not same(value, read):
                wrong.append(f"tag {tag}, step {step}: {read} instead of {value}")
    if wrong:
        sys.exit("\n".join(wrong[:20]))
    count = sum(len(values) for values in actual.values())
    print(f"{count} scalars of {len(actual)} tags read by TensorBoard equal metrics.jsonl")


if __name__ == "__main__":
    main()
