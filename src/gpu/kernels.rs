//! The kernels as this program carries them: PTX, compiled ahead of time from `kernels/*.cu` by
//! `scripts/build-kernels`, checked by `build.rs`, and compiled for the card at hand by its driver.

/// The kernels of one file.
pub struct Module {
    /// The file's name without its end.
    pub name: &'static str,
    /// For compute capability 8.0 and what follows.
    pub ptx: &'static str,
    /// What is in it.
    pub kernels: &'static [Kernel],
}

/// One kernel.
pub struct Kernel {
    /// What it is launched by; no two have the same.
    pub name: &'static str,
    /// A letter per parameter: `l` for 64 bits (pointers too), `i` for 32, `f` for a float.
    pub parameters: &'static str,
}

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::HashSet;

    use sha2::{Digest, Sha256};

    use super::*;
    use crate::golden::repository;

    fn source(name: &str) -> String {
        std::fs::read_to_string(repository().join("kernels").join(name)).unwrap()
    }

    /// Whether an export is of this kernel; in a macro only the name's beginning and end are written out.
    fn exports(export: &str, kernel: &str) -> bool {
        let (beginning, end) = (export.split("##").next().unwrap(), export.rsplit("##").next().unwrap());
        if export.contains("##") { kernel.starts_with(beginning) && kernel.ends_with(end) } else { kernel == export }
    }

    #[test]
    fn every_exported_kernel_is_in_the_table_once_and_nothing_else_is() {
        for Module { name, kernels, .. } in MODULES {
            let text = source(&format!("{name}.cu"));
            let exported = text.lines().filter_map(|line| line.trim().strip_prefix("EXPORT(")?.split(')').next());
            let exported: Vec<&str> = exported.collect();
            for export in &exported {
                assert!(kernels.iter().any(|kernel| exports(export, kernel.name)), "{name}.ptx lacks {export}");
            }
            for Kernel { name: kernel, .. } in *kernels {
                assert!(exported.iter().any(|export| exports(export, kernel)), "{name}.cu does not export {kernel}");
            }
        }
        let files = std::fs::read_dir(repository().join("kernels")).unwrap();
        let files = files.filter(|file| file.as_ref().unwrap().path().extension().is_some_and(|end| end == "cu"));
        assert_eq!(files.count(), MODULES.len());
        let names: Vec<&str> = MODULES.iter().flat_map(|module| module.kernels).map(|kernel| kernel.name).collect();
        assert_eq!(names.iter().collect::<HashSet<_>>().len(), names.len(), "a name is taken twice");
    }

    #[test]
    fn the_text_is_made_of_the_sources_and_understood_by_old_drivers() {
        for module in MODULES {
            let hash = Sha256::digest(source("common.cuh") + &source(&format!("{}.cu", module.name)));
            let mut lines = module.ptx.lines();
            assert_eq!(lines.next().unwrap(), format!("// source {hash:x}"));
            assert_eq!([lines.next(), lines.next()], [Some(".version 8.0"), Some(".target sm_80")]);
        }
    }

    #[test]
    fn parameters_are_read_from_the_text() {
        let kernels = || MODULES.iter().flat_map(|module| module.kernels);
        let cast = kernels().find(|kernel| kernel.name == "cast_f32_to_bf16").unwrap();
        assert_eq!(cast.parameters, "lll");
    }
}
