//! Lists of token ids in a file, for scoring exactly these sequences: a JSON list of lists.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::error::input;

/// Reads a JSON list of lists of token ids, such as `[[464, 3290], [50256]]`. Whether an id belongs to a model's
/// vocabulary is the model's business: one beyond it makes a loss infinite, as in the reference.
pub fn read_token_lists(path: &Path) -> Result<Vec<Vec<u32>>> {
    let shown = path.display();
    if !path.exists() {
        return Err(input(format!("{shown} does not exist")));
    }
    if path.is_dir() {
        return Err(input(format!("{shown} is a folder: name a file that holds a JSON list of lists of token ids")));
    }
    let json = fs::read(path).with_context(|| format!("cannot read {shown}"))?;
    serde_json::from_slice(&json).map_err(|error| {
        input(format!("{shown}: not a JSON list of lists of token ids (whole numbers from 0): {error}"))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::error::exit_code;

    fn read(json: &str) -> Result<Vec<Vec<u32>>> {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("tokens.json");
        fs::write(&path, json).unwrap();
        read_token_lists(&path)
    }

    #[test]
    fn lists_of_ids_are_read_as_they_are() {
        assert_eq!(read(" [[1, 50256], [], [4294967295]]\n").unwrap(), [vec![1, 50_256], vec![], vec![u32::MAX]]);
        assert_eq!(read("[]").unwrap(), [[0; 0]; 0]);
    }

    #[test]
    fn anything_else_is_refused_with_its_position() {
        for (json, reason) in [
            ("[[1, -1]]", "invalid value: integer `-1`, expected u32 at line 1 column 7"),
            ("[[1],\n [1.0]]", "invalid type: floating point `1.0`, expected u32 at line 2 column 5"),
            ("[[4294967296]]", "invalid value: integer `4294967296`, expected u32 at line 1 column 12"),
            ("[[\"1\"]]", "invalid type: string \"1\", expected u32 at line 1 column 5"),
            ("[1]", "invalid type: integer `1`, expected a sequence at line 1 column 2"),
            ("{}", "invalid type: map, expected a sequence at line 1 column 0"),
            ("[[1]", "EOF while parsing a list at line 1 column 4"),
            ("[[1]] 2", "trailing characters at line 1 column 7"),
            ("", "EOF while parsing a value at line 1 column 0"),
        ] {
            let error = read(json).unwrap_err();
            assert_eq!(exit_code(&error), 2);
            assert!(format!("{error}").ends_with(&format!("(whole numbers from 0): {reason}")), "{json}: {error}");
        }
        let error = read_token_lists(Path::new("gone.json")).unwrap_err();
        assert_eq!((exit_code(&error), format!("{error}").as_str()), (2, "gone.json does not exist"));
    }
}
