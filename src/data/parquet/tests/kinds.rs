//! Whatever writers do with a column of text, its rows are read as they were written.

use std::fs::File;

use ::parquet::basic::Encoding;
use ::parquet::data_type::{ByteArray, ByteArrayType};
use ::parquet::file::properties::{WriterProperties, WriterVersion};
use ::parquet::file::reader::{FileReader, SerializedFileReader};
use ::parquet::file::writer::SerializedFileWriter;
use ::parquet::record::RowAccessor;
use ::parquet::schema::parser::parse_message_type;

use super::*;

/// Writes rows as the crate writes them, in row groups of 500.
fn write_as(path: &Path, rows: &[Row], is_nullable: bool, properties: WriterProperties) {
    let repetition = if is_nullable { "optional" } else { "required" };
    let schema = parse_message_type(&format!("message schema {{ {repetition} binary content; }}")).unwrap();
    let file = File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, Arc::new(schema), Arc::new(properties)).unwrap();
    for rows in rows.chunks(500) {
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let values: Vec<_> = rows.iter().flatten().map(|row| ByteArray::from(row.clone())).collect();
        let levels: Vec<i16> = rows.iter().map(|row| row.is_some().into()).collect();
        let levels = is_nullable.then_some(&levels[..]);
        column.typed::<ByteArrayType>().write_batch(&values, levels, None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    writer.close().unwrap();
}

fn check(folder: &TempDir, rows: &[Row], what: &str) {
    let (training, held_out) = open_folder(folder, 2);
    let rule = SetAside::new(2);
    assert_eq!(read(&training), texts(rows, |row| !rule.holds(row)), "{what}");
    assert_eq!(read(&held_out), texts(rows, |row| rule.holds(row)), "{what}");
}

#[test]
fn every_codec_encoding_and_kind_of_page() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("a.parquet");
    let all = rows(1, 2_300);
    let present: Vec<Row> = all.iter().filter(|row| row.is_some()).cloned().collect();
    let mut num_kinds = 0;
    for codec in codecs() {
        for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
            for encoding in
                [None, Some(Encoding::PLAIN), Some(Encoding::DELTA_LENGTH_BYTE_ARRAY), Some(Encoding::DELTA_BYTE_ARRAY)]
            {
                for (is_nullable, rows) in [(true, &all), (false, &present)] {
                    let properties = WriterProperties::builder()
                        .set_compression(codec)
                        .set_writer_version(version)
                        .set_data_page_row_count_limit(77)
                        .set_write_batch_size(11)
                        .set_dictionary_enabled(encoding.is_none());
                    let properties = encoding.into_iter().fold(properties, |all, encoding| all.set_encoding(encoding));
                    write_as(&path, rows, is_nullable, properties.build());
                    check(&folder, rows, &format!("{codec} {version:?} {encoding:?} {is_nullable}"));
                    num_kinds += 1;
                }
            }
        }
    }
    assert_eq!(num_kinds, 64);
}

#[test]
fn a_dictionary_that_grows_too_large_is_followed_by_plain_pages() {
    let folder = TempDir::new().unwrap();
    // Repeated words, so that there are runs in the dictionary's numbers.
    let rows: Vec<Row> =
        (0..4_000_usize).map(|row| Some(format!("word {}", if row % 7 < 4 { 3 } else { row }).into())).collect();
    let properties =
        WriterProperties::builder().set_dictionary_page_size_limit(2_000).set_data_page_row_count_limit(50);
    write_as(&folder.path().join("a.parquet"), &rows, true, properties.build());
    check(&folder, &rows, "a dictionary and plain pages");
}

#[test]
fn only_nulls_and_runs_of_them() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("a.parquet");
    let mut rows = vec![None; 3_000];
    write_as(&path, &rows, true, WriterProperties::builder().build());
    check(&folder, &rows, "nulls");
    rows[1_200..1_300].fill(Some(b"text".to_vec()));
    for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
        write_as(&path, &rows, true, WriterProperties::builder().set_writer_version(version).build());
        check(&folder, &rows, "runs of nulls");
    }
}

/// What `write_shard` writes is also what the crate reads.
#[test]
fn shards_of_the_tests_are_shards() {
    let folder = TempDir::new().unwrap();
    // The crate makes text of whatever is there, and panics where it is none.
    let is_text = |row: &Row| row.as_ref().is_none_or(|text| std::str::from_utf8(text).is_ok());
    let rows: Vec<Row> = rows(2, 2_800).into_iter().filter(is_text).take(2_600).collect();
    for codec in codecs() {
        let path = folder.path().join("a.parquet");
        write(&path, &rows, 300, codec);
        check(&folder, &rows, &codec.to_string());
        let reader = SerializedFileReader::new(File::open(&path).unwrap()).unwrap();
        assert_eq!(reader.metadata().num_row_groups(), 9);
        let mut expected = rows.iter();
        for (number, row) in reader.get_row_iter(None).unwrap().map(Result::unwrap).enumerate() {
            assert_eq!(row.get_long(0).unwrap(), number as i64);
            let text = row.get_string(1).map(|text| text.as_bytes().to_vec());
            assert_eq!(text.ok(), *expected.next().unwrap());
            let num_tags = row.get_list(2).map(|list| list.len());
            assert_eq!(num_tags.ok(), [None, Some(0), Some(2)][number % 3]);
        }
        assert!(expected.next().is_none());
    }
}
