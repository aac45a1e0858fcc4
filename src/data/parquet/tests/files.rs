//! Which rows are of which part and in which order, and what is said of them.

use super::*;

/// Three shards in two folders, of 2,000, 1,700 and 900 rows in row groups of 700, and all their rows.
fn shards() -> (TempDir, Vec<Row>) {
    let folder = TempDir::new().unwrap();
    std::fs::create_dir(folder.path().join("data")).unwrap();
    let rows = rows(3, 4_600);
    let [zstd, snappy, gzip] = [3, 1, 2].map(|codec| codecs()[codec]);
    write(&folder.path().join("data/part-0.parquet"), &rows[..2_000], 700, zstd);
    write(&folder.path().join("data/part-1.parquet"), &rows[2_000..3_700], 700, snappy);
    write(&folder.path().join("other.parquet"), &rows[3_700..], 700, gzip);
    std::fs::write(folder.path().join("data/notes.txt"), "no shard").unwrap();
    (folder, rows)
}

#[test]
fn rows_are_counted_over_the_whole_data_set() {
    let (folder, rows) = shards();
    for every in [2, 3] {
        let rule = SetAside::new(every);
        let (training, held_out) = open_folder(&folder, every);
        assert_eq!(read(&training), texts(&rows, |row| !rule.holds(row)));
        assert_eq!(read(&held_out), texts(&rows, |row| rule.holds(row)));
        for globs in [&["part-1.parquet"][..], &["*-1*", "data/part-1.*"]] {
            let mut options = options(&folder, every);
            options.shards = globs.iter().map(|glob| (*glob).to_owned()).collect();
            let (training, held_out) = open(Place::Folder(vec![folder.path().to_owned()]), options).unwrap();
            let is_selected = |row| (2_000..3_700).contains(&row);
            assert_eq!(read(&training), texts(&rows, |row| is_selected(row) && !rule.holds(row)));
            assert_eq!(read(&held_out), texts(&rows, |row| is_selected(row) && rule.holds(row)));
        }
    }
}

#[test]
fn row_groups_without_a_row_of_the_part_are_no_shards_of_it() {
    let (folder, _) = shards();
    // Set aside are rows 0 to 999 and 3,000 to 3,999; row groups begin at 0, 700, 1400, 2000, 2700, 3400, 3700 and 4400.
    let (training, held_out) = open_folder(&folder, 3);
    assert_eq!((training.num_shards(), held_out.num_shards()), (6, 5));
    let held: u64 = (0..6).map(|shard| training.held_bytes(shard).unwrap()).sum();
    let len: u64 = read(&training).iter().map(|text| text.len() as u64).sum();
    assert!(held > len, "{held} bytes for {len} of text");
}

#[test]
fn a_seed_permutes_each_row_group_and_any_position_is_gone_on_from() {
    let (folder, _) = shards();
    let (training, _) = open_folder(&folder, 3);
    let documents = |shard, from, seed| -> Vec<String> {
        training.documents(shard, from, seed).unwrap().map(Result::unwrap).collect()
    };
    for shard in 0..training.num_shards() {
        let in_order = documents(shard, 0, None);
        let shuffled = documents(shard, 0, Some(7));
        assert_ne!(shuffled, in_order);
        assert_ne!(shuffled, documents(shard, 0, Some(8)));
        let sorted = |mut texts: Vec<String>| {
            texts.sort_unstable();
            texts
        };
        assert_eq!(sorted(shuffled.clone()), sorted(in_order.clone()));
        for from in [1, 17, in_order.len() - 1, in_order.len(), in_order.len() + 1] {
            assert_eq!(documents(shard, from as u64, None), in_order[from.min(in_order.len())..]);
            assert_eq!(documents(shard, from as u64, Some(7)), shuffled[from.min(in_order.len())..]);
        }
    }
    // Two of 700 rows: not the same order in both.
    let order = |shard, seed| {
        let (in_order, shuffled) = (documents(shard, 0, None), documents(shard, 0, Some(seed)));
        let place = |text: &String| in_order.iter().position(|other| other == text).unwrap();
        shuffled.iter().filter(|text| text.len() > 20).take(5).map(place).collect::<Vec<_>>()
    };
    assert_ne!(order(1, 7), order(2, 7));
}

/// The order of a seed stays: a change here changes what every resumed run reads next.
#[test]
fn the_order_of_a_seed_is_fixed_for_good() {
    let folder = TempDir::new().unwrap();
    let rows: Vec<Row> = (0..1_008).map(|row: u32| Some(row.to_string().into_bytes())).collect();
    write(&folder.path().join("a.parquet"), &rows, 1_000, codecs()[0]);
    let (training, _) = open_folder(&folder, 2);
    let numbers: Vec<String> = training.documents(0, 0, Some(42)).unwrap().map(Result::unwrap).collect();
    assert_eq!(numbers.join(" "), "1002 1006 1005 1001 1007 1004 1003 1000");
}

#[test]
fn what_was_done_is_counted() {
    let (folder, rows) = shards();
    let options = options(&folder, 3);
    let stages = Arc::clone(&options.stages);
    let (training, held_out) = open(Place::Folder(vec![folder.path().to_owned()]), options).unwrap();
    let texts = [read(&training), read(&held_out)].concat();
    assert_eq!(stages.documents(), texts.len() as u64);
    assert_eq!(stages.skipped(), (rows.len() - texts.len()) as u64);
    assert_eq!(stages.done(Stage::Decode).bytes, texts.iter().map(|text| text.len() as u64).sum::<u64>());
    let (network, decode) = (stages.done(Stage::Network), stages.done(Stage::Decode));
    assert!(network.bytes > 0 && network.bytes < decode.bytes && network.at_work == 0 && decode.at_work == 0);
}

#[test]
fn the_records_name_what_is_read() {
    let (folder, _) = shards();
    let place = || Place::Folder(vec![folder.path().to_owned()]);
    let (training, held_out) = open_folder(&folder, 3);
    let record = training.record().unwrap();
    assert_eq!(held_out.record().unwrap(), record);
    let numbers =
        ["shards", "selected_shards", "row_groups", "rows", "rows_set_aside"].map(|key| record[key].as_u64().unwrap());
    assert_eq!(numbers, [3, 3, 8, 4_600, 2_000]);
    assert_eq!((record.get("paths"), record["column"].as_str()), (None, Some("content")));
    let mut fewer = options(&folder, 3);
    fewer.shards = vec!["data/*".to_owned()];
    let (fewer, _) = open(place(), fewer).unwrap();
    let others = fewer.record().unwrap();
    let numbers =
        ["shards", "selected_shards", "row_groups", "rows", "rows_set_aside"].map(|key| others[key].as_u64().unwrap());
    assert_eq!(numbers, [3, 2, 6, 3_700, 1_700]);
    let selected = |record: &Map<String, Value>| record[SELECTED_ROWS].to_string();
    assert_eq!([selected(&record), selected(&others)], ["[[0,4600]]", "[[0,3700]]"]);
    assert_ne!(others["index_sha256"], record["index_sha256"]);
    assert_eq!(fewer.name(), format!("{} (2 of 3 shards)", folder.path().display()));
}

#[test]
fn files_and_globs_name_shards_as_folders_do() {
    let (folder, rows) = shards();
    let path = |name: &str| folder.path().join(name);
    for paths in [vec![path("data"), path("other.parquet")], vec![path("data/*.parquet"), path("data"), path("o*")]] {
        let (training, _) = open(Place::Folder(paths), options(&folder, 3)).unwrap();
        assert_eq!(read(&training), texts(&rows, |row| !SetAside::new(3).holds(row)));
    }
}

#[test]
fn a_glob_over_folders_has_their_order_and_names() {
    let (folder, rows) = (TempDir::new().unwrap(), rows(8, 4_000));
    let parts = ["data/b/train-0.parquet", "data/a/train-1.parquet", "data/.a/train-0.parquet", "data/a/.x.parquet"];
    for (part, rows) in parts.iter().zip(rows.chunks(1_000)) {
        let path = folder.path().join(part);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        write(&path, rows, 500, codecs()[1]);
    }
    // a/train-1 before b/train-0, and nothing that is hidden.
    let expected = [&rows[1_000..2_000], &rows[..1_000]].concat();
    for glob in ["data/*/train-*.parquet", "data/*", "data"] {
        let place = || Place::Folder(vec![folder.path().join(glob)]);
        let (training, held_out) = open(place(), options(&folder, 2)).unwrap();
        assert_eq!(
            (read(&held_out), read(&training)),
            (texts(&expected[..1_000], |_| true), texts(&expected[1_000..], |_| true)),
            "{glob}"
        );
        let mut options = options(&folder, 2);
        options.shards = vec!["b/*".to_owned()];
        assert!(open(place(), options).err().unwrap().to_string().starts_with("no row of "), "{glob}");
    }
}

#[test]
fn a_document_of_ten_megabytes_and_empty_ones() {
    let folder = TempDir::new().unwrap();
    let mut rows = vec![Some(Vec::new()); 3_000];
    rows[1_500] = Some(b"word".repeat(2_500_000));
    rows[1_501] = Some("é".repeat(5_000_000).into_bytes());
    for codec in codecs() {
        write(&folder.path().join("a.parquet"), &rows, 1_000, codec);
        let (training, held_out) = open_folder(&folder, 2);
        assert_eq!(read(&training), texts(&rows[1_000..2_000], |_| true));
        assert_eq!(read(&held_out).len(), 2_000);
    }
}
