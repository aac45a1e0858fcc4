"""What scripts/gpu-gate's figures are held to: each line with its figure, its limit and whether it holds, or null where
nothing was measured that tells."""

PEAK_TFLOPS = 989  # dense bf16 products of an H100 or H200 SXM, by NVIDIA's data sheet
SXM = ("NVIDIA H100 80GB HBM3", "NVIDIA H200")
CARD_BYTES = 80e9
BATCHES = (16, 32, 8)  # of which the best is judged, the most telling first
F32_BATCH = 8
DOES_NOT_FIT = "does not fit"


def judged(facts):
    """All of throughput but experiments."""
    return [entry for entry in facts["throughput"] if entry.get("variant") is None]


def entries_of(facts, what, dtype, shape="772M"):
    keys = {"what": what, "dtype": dtype, "shape": shape}
    return [entry for entry in judged(facts) if all(entry[key] == value for key, value in keys.items())]


def fastest(entries, program):
    """The entry in which a program was fastest, or None."""
    measured = [entry for entry in entries if isinstance(entry.get(program), dict)]
    return max(measured, key=lambda entry: entry[program]["tokens_per_s"], default=None)


def best(facts):
    """Of each kind of work, each program at the batch that suits it best, and the ratio of those."""
    kinds, found = dict.fromkeys((entry["what"], entry["dtype"], entry["shape"]) for entry in judged(facts)), []
    for kind in kinds:
        line = dict(zip(("what", "dtype", "shape"), kind))
        for program in ("assay", "torch"):
            entry = fastest(entries_of(facts, *kind), program)
            line[program] = entry and {"batch": entry["batch"], **entry[program]}
        if line["assay"] and line["torch"]:
            line["ratio"] = line["assay"]["tokens_per_s"] / line["torch"]["tokens_per_s"]
        found.append(line)
    return found


def batches_told(facts, what, dtype, program):
    """Those at which it is known how fast a program is, or that it does not fit."""
    told = [(entry["batch"], entry.get(program)) for entry in entries_of(facts, what, dtype)]
    return sorted(batch for batch, figure in told if isinstance(figure, dict) or figure == DOES_NOT_FIT)


def speed_up(facts, what, dtype, limit):
    """Ours at its best batch over PyTorch at its own; which batch is best is known when all are measured."""
    name = "training in bf16" if what == "train" else f"scoring in {dtype}"
    wanted, where = sorted(BATCHES), "each at its best batch"
    if dtype == "f32":
        wanted, where = [F32_BATCH], f"at batch {F32_BATCH}"
    line = {"line": f"{name}, 772M, times torch.compile's speed, {where}", "limit": limit}
    told = {program: batches_told(facts, what, dtype, program) for program in ("assay", "torch")}
    if not all(set(wanted) <= set(batches) for batches in told.values()):
        seen = [", ".join(map(str, batches)) or "none" for batches in told.values()]
        wanted = ", ".join(map(str, wanted))
        return line | {"remark": f"of batches {wanted} measured: assay {seen[0]}, PyTorch {seen[1]}"}
    for found in best(facts):
        if (found["what"], found["dtype"], found["shape"]) == (what, dtype, "772M") and "ratio" in found:
            line |= {"figure": found["ratio"], "holds": found["ratio"] >= limit}
            line["remark"] = f"batch {found['assay']['batch']}, PyTorch's {found['torch']['batch']}"
            if found["torch"].get("compile") == "none":
                line |= {"holds": None, "remark": "PyTorch was not compiled: " + "; ".join(found["torch"]["given_up"])}
            elif found["torch"].get("compile") == "blocks":
                line["remark"] += "; PyTorch compiled block by block"
    return line


def share_of_peak(facts):
    line = {"line": f"training, 772M, share of {PEAK_TFLOPS} TFLOP/s", "limit": 0.44, "goal": 0.5}
    entry = fastest(entries_of(facts, "train", "bf16"), "assay")
    if entry and facts["card"] not in SXM:
        line["remark"] = "the card is no H100 or H200 SXM"
    elif entry:
        share = entry["assay"]["tokens_per_s"] * entry["flops_per_token"] / PEAK_TFLOPS / 1e12
        line |= {"figure": share, "holds": share >= line["limit"]}
        line["remark"] = f"batch {entry['batch']}; the goal, 0.5, is {'' if share >= line['goal'] else 'not '}reached"
    return line


def attention(facts, direction, limit):
    """Ours at the batch where it is slowest, beside PyTorch's there."""
    line, key = {"line": f"attention {direction}, TFLOP/s, causal", "limit": limit}, f"{direction}_tflops"
    told = [shape for shape in facts["ceilings"]["shapes"] if isinstance(shape.get("assay"), dict)]
    told = [(shape["assay"].get("attention", {}).get(key), shape) for shape in told]
    told = [pair for pair in told if pair[0] is not None]
    if told:
        figure, shape = min(told, key=lambda pair: pair[0])
        theirs = shape["torch"]["backends"] if isinstance(shape.get("torch"), dict) else {}
        beside = [f"{name} {took[key]:.0f}" for name, took in theirs.items() if isinstance(took, dict)]
        line |= {"figure": figure, "holds": figure >= limit}
        line["remark"] = f"batch {shape['batch']}; PyTorch's {', '.join(beside) or 'not measured'}"
    return line


def memory_estimate(facts):
    """The largest deviation of all trainings of 772M: beside a small model, the kernels that cuBLASLt loads would
    weigh."""
    part = part_of(facts, "memory")
    told = [part, *(entry.get("assay") for entry in entries_of(facts, "train", "bf16"))]
    told = [each for each in told if isinstance(each, dict) and each.get("gpu_estimate_mib")]
    off = [abs(each["gpu_mib"] / each["gpu_estimate_mib"] - 1) for each in told]
    line = {"line": "memory of training, 772M, deviation from the estimate", "limit": 0.03}
    line |= {"figure": max(off), "holds": max(off) <= 0.03} if off else {}
    if part.get("nvidia_smi_mib") and part.get("gpu_estimate_mib"):
        seen = f"{part['nvidia_smi_mib']:.0f} MiB, where {part['gpu_estimate_mib']:.0f} were estimated"
        line["remark"] = f"nvidia-smi saw {seen}"
    return line


def batch_32_fits(facts):
    line = {"line": "training, 772M, batch 32, GB of the card's memory", "limit": CARD_BYTES / 1e9}
    for entry in entries_of(facts, "train", "bf16"):
        ours = entry.get("assay")
        if entry["batch"] == 32 and isinstance(ours, dict) and ours.get("gpu_mib"):
            taken = ours["gpu_mib"] * 2**20
            line |= {"figure": taken / 1e9, "holds": taken <= CARD_BYTES}
        elif entry["batch"] == 32 and ours == DOES_NOT_FIT:
            line |= {"holds": False, "remark": ours}
    return line


def part_of(facts, name):
    return next((part for part in facts["parts"] if part["name"].split(",")[0] == name), {"result": "not run"})


def same_bits(facts):
    part = part_of(facts, "determinism")
    holds = {"passed": True, "failed": False}.get(part["result"])
    return {"line": "two runs give the same bits", "holds": holds, "remark": f"part determinism: {part['result']}"}


def golden_steps(facts):
    part, test = part_of(facts, "decoder"), "thirty_golden_steps"
    line = {"line": "30 golden steps hold", "remark": f"part decoder: {part['result']}"}
    if any(test in name for name in part.get("names", [])):
        line["holds"] = not any(test in name for name in part.get("failures", []))
    return line


LINES = [
    (speed_up, "train", "bf16", 1.1), (share_of_peak,),
    (speed_up, "score", "f32", 1.2), (speed_up, "score", "bf16", 1.2),
    (attention, "forward", 180), (attention, "backward", 110),
    (memory_estimate,), (batch_32_fits,), (same_bits,), (golden_steps,),
]  # fmt: skip


def acceptance(facts):
    lines = []
    for judge, *rest in LINES:
        line = {"line": " ".join(map(str, [judge.__name__, *rest]))}
        line |= {"figure": None, "limit": None, "holds": None, "remark": ""}
        try:
            line |= judge(facts, *rest)
        except Exception as error:  # figures of another form must not cost the others
            line["remark"] = f"{type(error).__name__}: {error}"
        # What a rehearsal shows is of no card.
        lines.append(line | ({"holds": None} if facts["rehearsal"] else {}))
    return lines
