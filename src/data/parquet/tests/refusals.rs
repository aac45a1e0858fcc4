//! What the user has to mend is said in a sentence.

use std::fs::File;

use ::parquet::file::properties::WriterProperties;
use ::parquet::file::writer::SerializedFileWriter;
use ::parquet::schema::parser::parse_message_type;

use super::*;
use crate::error::exit_code;

fn refusal(place: Place, options: Options, folder: &TempDir) -> String {
    let error = open(place, options).err().unwrap();
    assert_eq!(exit_code(&error), 2, "{error}");
    error.to_string().replace(folder.path().to_str().unwrap(), "DIR")
}

fn refused(folder: &TempDir, path: &str, text_key: &str, shards: &[&str]) -> String {
    let mut options = options(folder, 2);
    options.text_key = text_key.to_owned();
    options.shards = shards.iter().map(|glob| (*glob).to_owned()).collect();
    refusal(Place::Folder(vec![folder.path().join(path)]), options, folder)
}

/// A file of a schema without rows.
fn write_empty(path: &Path, schema: &str) {
    let schema = Arc::new(parse_message_type(&format!("message schema {{ {schema} }}")).unwrap());
    let properties = Arc::new(WriterProperties::builder().build());
    SerializedFileWriter::new(File::create(path).unwrap(), schema, properties).unwrap().close().unwrap();
}

#[test]
fn columns_that_hold_no_text() {
    let folder = TempDir::new().unwrap();
    write_empty(
        &folder.path().join("a.parquet"),
        "optional group meta { required binary content; } required int32 id; repeated binary words; optional binary text;",
    );
    assert_eq!(
        refused(&folder, ".", "content", &[]),
        "a.parquet of DIR/. has no column \"content\"; its columns are \"meta\", \"id\", \"words\", \"text\". Name the one that \
         holds text by data.text_key."
    );
    for (column, kind) in [("meta", "other columns"), ("id", "no text"), ("words", "lists")] {
        assert_eq!(
            refused(&folder, ".", column, &[]),
            format!(
                "the column {column:?} of a.parquet of DIR/. holds {kind}; name one that holds text by data.text_key."
            )
        );
    }
    assert!(refused(&folder, ".", "text", &[]).starts_with("no row of DIR/. is set aside"));
}

#[test]
fn shards_that_are_not_there() {
    let folder = TempDir::new().unwrap();
    std::fs::create_dir(folder.path().join("empty")).unwrap();
    std::fs::write(folder.path().join("a.txt"), "a").unwrap();
    write(&folder.path().join("a.parquet"), &rows(1, 2_000), 1_000, codecs()[1]);
    assert_eq!(refused(&folder, "none", "content", &[]), "data.paths: DIR/none does not exist");
    assert_eq!(refused(&folder, "a.txt", "content", &[]), "data.paths: DIR/a.txt is no .parquet file");
    for path in ["empty", "*.jsonl"] {
        assert_eq!(
            refused(&folder, path, "content", &[]),
            format!("data.paths: there is no .parquet file in DIR/{path}")
        );
    }
    assert_eq!(
        refused(&folder, ".", "content", &["a*", "b*"]),
        "data.shards: \"b*\" matches no shard of DIR/., of which the first is a.parquet"
    );
    assert!(refused(&folder, ".", "content", &["[a"]).starts_with("data.shards: \"[a\" is not a valid glob: "));
    let nothing = refusal(Place::Folder(Vec::new()), options(&folder, 2), &folder);
    assert_eq!(nothing, "data.paths is empty; name .parquet files, folders of them or globs");
}

#[test]
fn text_that_cannot_be_split() {
    let folder = TempDir::new().unwrap();
    write(&folder.path().join("a.parquet"), &rows(1, 1_000), 500, codecs()[1]);
    write(&folder.path().join("b.parquet"), &rows(1, 1_000), 500, codecs()[1]);
    assert!(refused(&folder, "a.parquet", "content", &[]).starts_with("all rows of DIR/a.parquet are set aside"));
    assert_eq!(
        refused(&folder, ".", "content", &["b*"]),
        "no row of DIR/. (1 of 2 shards) is set aside, so that there is no held-out loss: select more of its shards \
         (data.shards), or set more rows aside by a smaller data.held_out_every"
    );
}

#[test]
fn row_groups_that_memory_cannot_hold() {
    let group = footer::Group { rows: 10, offset: 4, bytes: 9, text_bytes: 99, codec: Codec::Zstd };
    let all =
        |group| Group::all(&Indexed::with_groups(vec![group]), 0, 0, "a.parquet of x/y").map(|groups| groups.len());
    assert_eq!(all(group).unwrap(), 1);
    for large in [
        footer::Group { text_bytes: MAX_TEXT_BYTES + 1, ..group },
        footer::Group { bytes: MAX_TEXT_BYTES + 1, ..group },
        footer::Group { rows: MAX_ROWS + 1, ..group },
    ] {
        let error = all(large).unwrap_err();
        assert_eq!(exit_code(&error), 2);
        assert!(error.to_string().starts_with("row group 0 of a.parquet of x/y has "), "{error}");
    }
}
