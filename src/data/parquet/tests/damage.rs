//! Damaged and hostile files: errors, and neither panics nor other texts.

use super::*;
use crate::error::exit_code;

fn decode(chunk: &[u8], codec: Codec, rows: u64, text_bytes: u64) -> Result<Texts, String> {
    let told = Told { rows, text_bytes, codec, is_nullable: true };
    chunk::decode(Bytes::copy_from_slice(chunk), &told, |_| true).map_err(|trouble| match trouble {
        store::Trouble::Damaged(reason) | store::Trouble::Unsupported(reason) => reason,
        store::Trouble::Other(error) => panic!("{error}"),
    })
}

/// Every byte of a file is changed in turn: in the text, which has checksums, that is always found.
#[test]
fn no_changed_byte_of_text_is_read() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("a.parquet");
    let rows = rows(5, 1_060);
    write(&path, &rows, 1_000, codecs()[3]);
    let (training, _) = open_folder(&folder, 2);
    let expected = read(&training);
    let chunk =
        training.text.groups[1].offset..training.text.groups[1].offset + u64::from(training.text.groups[1].bytes);
    let whole = std::fs::read(&path).unwrap();
    let mut random = fastrand::Rng::with_seed(1);
    let (mut num_found, mut num_header_bits) = (0, 0);
    for position in chunk.clone() {
        let mut damaged = whole.clone();
        damaged[position as usize] ^= 1 << random.u32(..8);
        std::fs::write(&path, &damaged).unwrap();
        match training.documents(0, 0, None) {
            Err(error) => {
                assert_eq!(exit_code(&error), 2);
                let text = error.to_string();
                assert!(text.starts_with("row group 1 of a.parquet of ") && text.contains(" is damaged: "), "{text}");
                num_found += 1;
            }
            // Of the header's bits some mean nothing, such as the encoding of the levels that no column of text has.
            Ok(documents) => {
                assert_eq!(documents.map(Result::unwrap).collect::<Vec<_>>(), expected, "{position}");
                num_header_bits += 1;
            }
        }
    }
    assert!(num_found > 500 && num_header_bits < 10, "{num_found} {num_header_bits}");
    for position in chunk.end as usize..whole.len() {
        let mut damaged = whole.clone();
        damaged[position] ^= 1 << random.u32(..8);
        std::fs::write(&path, &damaged).unwrap();
        // A footer has no checksum: it may be read as another one, which is a matter of the transport.
        if let Ok((training, _)) = open(Place::Folder(vec![path.clone()]), options(&folder, 2)) {
            (0..training.num_shards()).for_each(|shard| drop(training.documents(shard, 0, None)));
        }
    }
}

#[test]
fn files_that_are_cut_off_or_none() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("a.parquet");
    write(&path, &rows(5, 2_000), 1_000, codecs()[1]);
    let whole = std::fs::read(&path).unwrap();
    let encrypted = [&whole[..whole.len() - 1], b"E"].concat();
    let long = [&whole[..whole.len() - 8], &[0xff, 0xff, 0xff, 0x7f], b"PAR1"].concat();
    for (bytes, reason) in [
        (&b""[..], "is damaged: it is no parquet file"),
        (b"PAR1", "is damaged: it is no parquet file"),
        (&whole[..whole.len() - 1], "is damaged: it does not end as a parquet file does"),
        (&whole[whole.len() / 2..], "its footer tells of text beyond its end"),
        (&encrypted, "is encrypted"),
        (&long, "is damaged: its footer is longer than the file"),
    ] {
        std::fs::write(&path, bytes).unwrap();
        let error = open(Place::Folder(vec![path.clone()]), options(&folder, 2)).err().unwrap();
        assert_eq!(exit_code(&error), 2);
        assert!(error.to_string().contains(reason), "{error}: {reason}");
    }
    // Changed after it was opened.
    std::fs::write(&path, &whole).unwrap();
    let (training, _) = open_folder(&folder, 2);
    std::fs::write(&path, &whole[1..]).unwrap();
    let error = training.documents(0, 0, None).err().unwrap();
    assert!(exit_code(&error) == 2 && error.to_string().contains("was changed while it was read"), "{error}");
}

#[test]
fn noise_is_never_text() {
    let mut random = fastrand::Rng::with_seed(9);
    for round in 0..20_000 {
        let len = random.usize(0..80);
        let mut bytes: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(len).collect();
        // Every second time they are the values of a page, in each encoding and of each version.
        if round % 2 == 0 {
            bytes.truncate(31);
            let size = 2 * bytes.len() as u8;
            let encoding = random.choice([0, 4, 12, 14, 16]).unwrap();
            let head = match random.bool() {
                true => vec![0x15, 0, 0x15, size, 0x15, size, 0x2c, 0x15, 8, 0x15, encoding, 0, 0],
                false => vec![0x15, 6, 0x15, size, 0x15, size, 0x5c, 0x15, 8, 0x35, encoding, 0x15, 2, 0, 0],
            };
            bytes = [head, bytes].concat();
        }
        for codec in [Codec::None, Codec::Snappy, Codec::Gzip, Codec::Zstd] {
            if let Ok(texts) = decode(&bytes, codec, 4, 1_000) {
                assert_eq!(texts.texts.len() as u64 + texts.num_skipped, 4);
            }
        }
        let _ = footer::read(&Bytes::from(bytes), "content", 1_000, "noise");
    }
}

/// The header of a page of plain values, without a checksum.
fn page(compressed: &[u8], bytes: u32, num_values: u32) -> Vec<u8> {
    let varint = |number: u64| {
        let number = number * 2;
        [
            number as u8 | 0x80,
            (number >> 7) as u8 | 0x80,
            (number >> 14) as u8 | 0x80,
            (number >> 21) as u8 | 0x80,
            (number >> 28) as u8,
        ]
    };
    let field = |number: u64| [&[0x15][..], &varint(number)].concat();
    let sizes = [field(0), field(bytes.into()), field(compressed.len() as u64)].concat();
    let data = [field(num_values.into()), field(0), field(3), field(3)].concat();
    [&sizes[..], &[0x2c], &data, &[0, 0], compressed].concat()
}

#[test]
fn a_page_without_a_value_may_be_compressed_to_nothing() {
    // A page of the second version: two bytes of levels, which say that one row is null, and nothing else.
    let page = [0x15, 6, 0x15, 4, 0x15, 4, 0x5c, 0x15, 2, 0x35, 0, 0x15, 4, 0, 0, 2, 0];
    for codec in [Codec::None, Codec::Snappy, Codec::Gzip, Codec::Zstd] {
        let texts = decode(&page, codec, 1, 2).unwrap();
        assert_eq!((texts.texts.len(), texts.num_skipped), (0, 1), "{codec:?}");
    }
}

#[test]
fn a_dictionary_may_have_more_values_than_there_are_rows() {
    let values = [[1, 0, 0, 0, b'a'], [1, 0, 0, 0, b'b'], [1, 0, 0, 0, b'c']].concat();
    let dictionary = [&[0x15, 4, 0x15, 30, 0x15, 30, 0x4c, 0x15, 6, 0x15, 0, 0, 0][..], &values].concat();
    // One row, which is there: the value of number 2, in a run of numbers of two bits.
    let body = [2, 0, 0, 0, 2, 1, 2, 2, 2];
    let data = [&[0x15, 0, 0x15, 18, 0x15, 18, 0x2c, 0x15, 2, 0x15, 16, 0x15, 6, 0x15, 6, 0, 0][..], &body].concat();
    let texts = decode(&[dictionary, data].concat(), Codec::None, 1, 24).unwrap();
    assert_eq!(texts.texts, [&b"c"[..]]);
}

#[test]
fn sizes_that_are_only_claimed_are_not_believed() {
    // Two values, empty and "ab", and the levels that both are there.
    let plain = [&[2, 0, 0, 0, 3, 3][..], &[0, 0, 0, 0, 2, 0, 0, 0], b"ab"].concat();
    let len = plain.len() as u32;
    let texts = decode(&page(&plain, len, 2), Codec::None, 2, len.into()).unwrap();
    assert_eq!(texts.texts, [&b""[..], b"ab"]);
    let huge = i32::MAX as u32;
    let gzip = |bytes: &[u8]| {
        let mut compressed = Vec::new();
        let mut encoder = flate2::read::GzEncoder::new(bytes, flate2::Compression::fast());
        std::io::Read::read_to_end(&mut encoder, &mut compressed).unwrap();
        compressed
    };
    for (chunk, codec, text_bytes, reason) in [
        (page(&plain, len, 2), Codec::None, len - 1, "its pages are larger than its footer tells"),
        (page(&plain, len + 1, 2), Codec::None, 99, "a page decompresses to another size than its header tells"),
        (page(&plain, huge, 2), Codec::Zstd, 99, "its pages are larger than its footer tells"),
        (page(&plain, len, 3), Codec::None, len, "it has more values than its footer tells rows"),
        (page(&plain, len, 1), Codec::None, len, "it has 1 rows where its footer tells 2"),
        (page(&plain, len, huge), Codec::None, len, "it has more values than its footer tells rows"),
        (page(&plain[..9], 9, 2), Codec::None, len, "the values of a page do not fit into it"),
        (page(&plain, len, 2)[..50].to_vec(), Codec::None, len, "a page is cut off"),
        (
            page(&gzip(&vec![0; 1 << 20]), len, 2),
            Codec::Gzip,
            len,
            "a page decompresses to another size than its header tells",
        ),
        (
            page(&zstd::bulk::compress(&vec![0; 1 << 20], 1).unwrap(), len, 2),
            Codec::Zstd,
            len,
            "a page cannot be decompressed",
        ),
        (
            page(&snap::raw::Encoder::new().compress_vec(&vec![0; 1 << 20]).unwrap(), len, 2),
            Codec::Snappy,
            len,
            "a page cannot be",
        ),
    ] {
        let error = decode(&chunk, codec, 2, text_bytes.into()).unwrap_err();
        assert!(error.starts_with(reason), "{error}: {reason}");
    }
}
