//! Shards for tests.

use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

use super::*;

const SCHEMA: &str = "message schema {
    optional binary content (UTF8);
    required int64 number;
    optional group links (LIST) { repeated group list { optional binary element (UTF8); } }
}";

/// A shard with those texts in row groups of so many rows; `number` counts from `first`, and each row has two links.
pub(super) fn write(texts: &[Option<&[u8]>], first: i64, rows_per_group: usize, codec: Compression) -> Vec<u8> {
    let properties = Arc::new(WriterProperties::builder().set_compression(codec).build());
    let schema = Arc::new(parse_message_type(SCHEMA).unwrap());
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, properties).unwrap();
    for (group, texts) in texts.chunks(rows_per_group).enumerate() {
        let mut row_group = writer.next_row_group().unwrap();
        let values: Vec<ByteArray> = texts.iter().flatten().map(|text| text.to_vec().into()).collect();
        let levels: Vec<i16> = texts.iter().map(|text| text.is_some().into()).collect();
        let mut column = row_group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&values, Some(&levels), None).unwrap();
        column.close().unwrap();
        let start = first + (group * rows_per_group) as i64;
        let numbers: Vec<i64> = (start..).take(texts.len()).collect();
        let mut column = row_group.next_column().unwrap().unwrap();
        column.typed::<Int64Type>().write_batch(&numbers, None, None).unwrap();
        column.close().unwrap();
        let links = vec![ByteArray::from("link"); 2 * texts.len()];
        let repeated: Vec<i16> = (0..links.len()).map(|at| (at % 2) as i16).collect();
        let mut column = row_group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&links, Some(&vec![3; links.len()]), Some(&repeated)).unwrap();
        column.close().unwrap();
        row_group.close().unwrap();
    }
    writer.into_inner().unwrap()
}
