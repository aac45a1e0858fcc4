//! Puts the kernels' PTX into the program: checks that `kernels/ptx` is what `scripts/build-kernels` made of the
//! kernels as they are now, and writes the table that `src/gpu/kernels.rs` includes. No CUDA is needed, and nothing is
//! compiled here.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, fs, io};

use sha2::{Digest, Sha256};

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=kernels");
    let folder = |name| PathBuf::from(env::var_os(name).unwrap_or_default());
    let kernels = folder("CARGO_MANIFEST_DIR").join("kernels");
    let written = table(&kernels).and_then(|table| {
        fs::write(folder("OUT_DIR").join("kernels.rs"), table)
            .map_err(|error| format!("The table of kernels: {error}."))
    });
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            println!("cargo::error={sentence}");
            ExitCode::FAILURE
        }
    }
}

/// Rust source of `MODULES`.
fn table(kernels: &Path) -> Result<String, String> {
    let read = |path: &Path| fs::read(path).map_err(|error| format!("{}: {error}.", path.display()));
    let common = read(&kernels.join("common.cuh"))?;
    let mut sources = fs::read_dir(kernels)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>())
        .map_err(|error| format!("{}: {error}.", kernels.display()))?;
    sources.retain(|path| path.extension().is_some_and(|extension| extension == "cu"));
    sources.sort();

    let mut table = String::from("/// All of them.\npub static MODULES: &[Module] = &[\n");
    for source in sources {
        let name = source.file_stem().unwrap_or_default().to_string_lossy();
        let stale = |what| format!("kernels/ptx/{name}.ptx {what}: run scripts/build-kernels and build again.");
        let text = fs::read_to_string(kernels.join(format!("ptx/{name}.ptx"))).map_err(|_| stale("is missing"))?;
        let mut hash = Sha256::new();
        hash.update(&common);
        hash.update(read(&source)?);
        if text.lines().next() != Some(&format!("// source {:x}", hash.finalize())) {
            return Err(stale(&format!("was not made of kernels/{name}.cu and kernels/common.cuh as they are now")));
        }
        let entries = entries(&text).ok_or_else(|| stale("has a kernel whose parameters are not understood"))?;
        let file = format!("concat!(env!(\"CARGO_MANIFEST_DIR\"), \"/kernels/ptx/{name}.ptx\")");
        write!(table, "Module {{ name: {name:?}, ptx: include_str!({file}), kernels: &[").map_err(|e| e.to_string())?;
        for (kernel, parameters) in entries {
            write!(table, "Kernel {{ name: {kernel:?}, parameters: {parameters:?} }}, ").map_err(|e| e.to_string())?;
        }
        table.push_str("] },\n");
    }
    table.push_str("];\n");
    Ok(table)
}

/// The kernels of a PTX text: their names, and a letter for each parameter (see `Kernel::parameters`).
fn entries(text: &str) -> Option<Vec<(&str, String)>> {
    let letter = |parameter: &str| match parameter.split_whitespace().nth(1)? {
        ".u64" => Some('l'),
        ".u32" => Some('i'),
        ".f32" => Some('f'),
        _ => None,
    };
    let mut entries = Vec::new();
    for entry in text.split(".entry ").skip(1) {
        let (name, rest) = entry.split_once('(')?;
        let (parameters, _) = rest.split_once(')')?;
        let parameters = parameters.split(',').filter(|parameter| !parameter.trim().is_empty());
        entries.push((name.trim(), parameters.map(letter).collect::<Option<String>>()?));
    }
    Some(entries)
}
