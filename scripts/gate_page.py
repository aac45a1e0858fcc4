"""What scripts/gpu-gate found, as a page."""

VARIANTS = {"gelu-epilogue": ": assay, GELU in products"}


def row(*cells):
    return f"| {' | '.join(str(cell).replace('|', '/').replace(chr(10), ' ') for cell in cells)} |"


def head(*cells):
    return [row(*cells), f"|{'---|' * len(cells)}"]


def figure(value):
    return "" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def speed(entry):
    """Tokens per second, or why there are none; nothing where none were wanted."""
    return figure(entry["tokens_per_s"]) if isinstance(entry, dict) else str(entry or "")[:60]


def of(entry, key, scale=1.0):
    value = entry.get(key) if isinstance(entry, dict) else None
    return "" if value is None else f"{value * scale:.1f}"


def parts(facts):
    yield from head("part", "result", "s", "")
    for part in facts["parts"]:
        figures = {key: value for key, value in part.items() if type(value) in (int, float) and key != "seconds"}
        remark = part.get("why") or ", ".join(f"{key} {value:.4g}" for key, value in figures.items())
        yield row(part["name"], part["result"], part["seconds"], remark)


def acceptance(facts):
    yield from head("to be reached", "figure", "limit", "holds", "")
    for line in facts["acceptance"]:
        holds = {True: "yes", False: "no", None: "not measured"}[line["holds"]]
        yield row(line["line"], figure(line["figure"]), figure(line["limit"]), holds, line["remark"])


def throughput(facts):
    programs = ("assay", "PyTorch", "ratio", "TFLOP/s", "GiB", "PyTorch's", "compile s", "SDPA")
    yield from head("", "model", "batch", *programs)
    for entry in facts["throughput"]:
        ours, theirs = entry["assay"], entry["torch"]
        name = f"{entry['what']} {entry['dtype']}" + VARIANTS.get(entry.get("variant"), "")
        cells = [name, entry["shape"], entry["batch"], speed(ours), speed(theirs)]
        cells += [f"{entry['ratio']:.2f}" if "ratio" in entry else ""]
        cells += [of(ours, "tokens_per_s", entry["flops_per_token"] / 1e12)]
        cells += [of(ours, "gpu_mib", 1 / 1024), of(theirs, "gpu_mib", 1 / 1024)]
        compiled = theirs.get("compile", "") if isinstance(theirs, dict) else ""
        cells += [f"{compiled} {of(theirs, 'compile_s')}".strip(), theirs.get("sdpa", "") if compiled else ""]
        yield row(*cells)


def ceilings(facts):
    yield from head("ceilings of the card", "by assay", "by PyTorch")
    told = facts["ceilings"]
    ours = [shape["assay"] for shape in told["shapes"] if isinstance(shape.get("assay"), dict)]
    theirs = told.get("torch") if isinstance(told.get("torch"), dict) else {}
    names = {"copy_gb_per_s": "copy, GB/s"}
    names |= {f"product_{dtype}_tflops": f"{dtype} product, TFLOP/s" for dtype in ("bf16", "f32")}
    for key, name in names.items():
        yield row(name, figure(ours[0].get(key) if ours else None), figure(theirs.get(key)))
    for shape in told["shapes"]:
        own = shape["assay"].get("attention") or {} if isinstance(shape.get("assay"), dict) else {}
        backends = shape["torch"]["backends"] if isinstance(shape.get("torch"), dict) else {}
        for direction in ("forward", "backward"):
            key = f"{direction}_tflops"
            beside = [f"{name} {figure(took[key])}" for name, took in backends.items() if isinstance(took, dict)]
            name = f"attention {direction}, batch {shape['batch']}, TFLOP/s"
            yield row(name, figure(own.get(key)), ", ".join(beside))


def products(facts):
    yield from head("product", "m, n, k", "first, µs", "TFLOP/s", "best, µs", "TFLOP/s", "its rank", "batch")
    for shape in facts["ceilings"]["shapes"]:
        for told in shape["assay"].get("products") or [] if isinstance(shape.get("assay"), dict) else []:
            times = [figure(told.get(key)) for key in ("first_us", "tflops", "best_us", "best_tflops")]
            sizes = ", ".join(map(str, told.get("sizes", [])))
            yield row(told.get("name"), sizes, *times, told.get("best_rank"), shape["batch"])


def operations(facts):
    yield from head("operation", "calls", "ms", "share", "GFLOP", "GB", "floor by data sheet, ms")
    told = facts["operations"]["operations"]
    sums = {key: sum(one.get(key) or 0 for one in told) for key in ("calls", "seconds", "share", "gflop", "gb")}
    floors = [one.get("floor_seconds") for one in told]
    sums |= {"name": "all", "floor_seconds": None if None in floors else sum(floors)}
    for one in [*told, sums]:
        ms = [figure(one[key] * 1e3) if one.get(key) is not None else "" for key in ("seconds", "floor_seconds")]
        work = [figure(one.get(key)) for key in ("gflop", "gb")]
        yield row(one.get("name"), one.get("calls"), ms[0], f"{of(one, 'share', 100)} %", *work, ms[1])


def section(title, rows, facts):
    """A table under its title; one of figures that have another form must not cost the page."""
    try:
        return ["", *([title, ""] if title else []), *rows(facts)]
    except Exception as error:
        return ["", f"{rows.__name__}: {type(error).__name__}: {error}"]


def page(facts):
    title, passed = facts["card"], "Everything that was to be proved has passed."
    if facts["rehearsal"]:
        title, passed = "Rehearsal without a GPU", "The script works; nothing was proved or measured of a GPU."
    verdict = {True: passed, False: "Something has not passed.", None: "Nothing was to be proved."}[facts["correct"]]
    lines = [
        f"# {title}", "",
        f"{facts['date']} (UTC), driver {facts['driver']}, {facts['assay']}, commit {facts['commit']},",
        f"PyTorch {facts['torch']}. {verdict}",
    ]  # fmt: skip
    lines += section("", parts, facts) + section("", acceptance, facts)
    if facts["throughput"]:
        lines += section("Tokens per second: medians of a round's steps, and of those the median.", throughput, facts)
    if shapes := facts["ceilings"]["shapes"]:
        lines += section("", ceilings, facts)
        if any(isinstance(shape.get("assay"), dict) for shape in shapes):
            lines += section("", products, facts)
    if step := facts["operations"]:
        lines += section(f"One step of training, {step['shape']}, batch {step['batch']}.", operations, facts)
    return "\n".join([*lines, "", f"Not covered: {facts['not_covered']}.", ""])
