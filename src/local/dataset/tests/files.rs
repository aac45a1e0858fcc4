//! The data set as Hugging Face would have it.

use serde_json::json;

use super::*;

fn world() -> World {
    let [a, b, c] = [10, 2_500_000, 30].map(noise);
    World::new(&[
        ("data/train-00000.parquet", a),
        ("data/train-00001.parquet", b),
        ("last.parquet", c),
        ("data/notes.txt", noise(5)),
        (".cache/hidden.parquet", noise(5)),
        ("data/.part.parquet", noise(5)),
    ])
}

fn paths(listed: &Value) -> Vec<(&str, &str)> {
    let entries = listed.as_array().unwrap().iter();
    entries.map(|entry| (entry["type"].as_str().unwrap(), entry["path"].as_str().unwrap())).collect()
}

#[test]
fn the_tree_has_shards_and_the_folders_that_lead_to_them() {
    let world = world();
    let all = [
        ("directory", "data"),
        ("file", "data/train-00000.parquet"),
        ("file", "data/train-00001.parquet"),
        ("file", "last.parquet"),
    ];
    let listed = world.get(&format!("{TREE}?recursive=true")).assert(200).json();
    assert_eq!(paths(&listed), all);
    assert_eq!(world.get(&format!("{TREE}?recursive=True&expand=False")).assert(200).json(), listed);
    assert_eq!(paths(&world.get(TREE).assert(200).json()), [all[0], all[3]]);
    assert_eq!(paths(&world.get(&format!("{TREE}/data")).assert(200).json()), all[1..3]);
    let commit = world.commit();
    let other = format!("/api/datasets/someone/else/tree/{commit}?recursive=true");
    assert_eq!(world.get(&other).assert(200).json(), listed);

    let (shard, sum) = (&listed[2], listed[2]["lfs"]["oid"].as_str().unwrap());
    assert_eq!((&shard["size"], &shard["lfs"]["size"]), (&json!(2_500_000), &json!(2_500_000)));
    assert_eq!((sum.len(), shard["oid"].as_str().unwrap().len()), (64, 40));
    assert_ne!(sum, listed[1]["lfs"]["oid"].as_str().unwrap());

    let info = world.get("/api/datasets/any/name/revision/main").assert(200).json();
    assert!(crate::hub::names::is_commit(&commit));
    assert_eq!((&info["id"], &info["sha"], &info["private"]), (&json!("any/name"), &json!(commit), &json!(false)));
    assert_eq!(info["siblings"].as_array().unwrap().len(), 3);

    let asked = json!({ "paths": ["last.parquet", "data", "gone"] }).to_string();
    let found = world.send("POST", "/api/datasets/any/name/paths-info/main", &[], &asked).unwrap().assert(200).json();
    assert_eq!(found, json!([listed[3], listed[0]]));
}

#[test]
fn the_tree_comes_in_pages_of_one_commit() {
    let world = World::of(
        &["c d.parquet", "a.parquet", "b.parquet"].map(|name| (name, noise(1))),
        Options { page_entries: 2, ..Options::default() },
    );
    let first = world.get(&format!("{TREE}?recursive=true")).assert(200);
    assert_eq!(paths(&first.json()), [("file", "a.parquet"), ("file", "b.parquet")]);
    let link = first.header("link").to_owned();
    let next = link.strip_prefix('<').unwrap().strip_suffix(">; rel=\"next\"").unwrap();
    assert!(
        next.starts_with(&format!("{}/api/datasets/any/name/tree/{}?", world.endpoint(), world.commit())),
        "{next}"
    );
    let second = world.get(next).assert(200);
    assert_eq!((paths(&second.json()), second.header("link")), (vec![("file", "c d.parquet")], ""));
    let single = world.get(&format!("{TREE}?limit=1&cursor=1")).assert(200);
    assert_eq!(paths(&single.json()), [("file", "b.parquet")]);
    assert!(single.header("link").contains("limit=1&cursor=2>"));
    assert_eq!(world.get(&format!("{TREE}?cursor=99")).assert(200).json(), json!([]));
}

#[test]
fn shards_come_whole_and_in_ranges() {
    let world = world();
    let (content, url) = (noise(2_500_000), address("data/train-00001.parquet"));
    let whole = world.get(&url).assert(200);
    assert!(whole.body == content);
    let told = world.send("HEAD", &url, &[], "").unwrap().assert(200);
    assert_eq!((told.header("content-length"), told.header("accept-ranges")), ("2500000", "bytes"));
    assert_eq!(told.header("x-repo-commit"), world.commit());
    let listed = world.get(&format!("{TREE}?recursive=true")).json();
    let etag = format!("\"{}\"", listed[2]["lfs"]["oid"].as_str().unwrap());
    assert_eq!((told.header("etag"), told.header("x-linked-etag")), (etag.as_str(), etag.as_str()));

    for (range, start, end) in
        [("bytes=0-0", 0, 1), ("bytes=1999999-", 1_999_999, 2_500_000), ("bytes=-7", 2_499_993, 2_500_000)]
    {
        let part = world.get_with(&url, "range", range).assert(206);
        assert!(part.body == content[start..end], "{range}");
        assert_eq!(part.header("content-range"), format!("bytes {start}-{}/2500000", end - 1));
        assert_eq!(part.header("etag"), etag);
    }
    let beyond = world.get_with(&url, "range", "bytes=2500000-").assert(416);
    assert_eq!(beyond.header("content-range"), "bytes */2500000");
    let with_tag =
        |tag: &str| world.send("GET", &url, &[("range", "bytes=0-0"), ("if-range", tag)], "").unwrap().status;
    assert_eq!((with_tag(&etag), with_tag("\"other\"")), (206, 200));
}

#[test]
fn what_is_not_there_is_refused_as_hugging_face_does() {
    let world = world();
    for path in
        ["gone.parquet", "data/notes.txt", "data/.part.parquet", ".cache/hidden.parquet", "data", "..%2Flast.parquet"]
    {
        let answer = world.get(&address(path)).assert(404);
        assert_eq!(
            (answer.header("x-error-code"), answer.header("x-repo-commit")),
            ("EntryNotFound", world.commit().as_str()),
            "{path}"
        );
    }
    assert_eq!(world.get(&format!("{TREE}/gone")).assert(404).header("x-error-code"), "EntryNotFound");
    let other = "f".repeat(40);
    for path in [
        format!("/api/datasets/any/name/tree/{other}"),
        format!("/api/datasets/any/name/revision/{other}"),
        format!("/datasets/any/name/resolve/{other}/last.parquet"),
    ] {
        world.get(&path).assert_refusal(404, "RevisionNotFound", &format!("Invalid rev id: {other}"));
    }
    world.get("/api/models/any/name").assert(404);
}

#[test]
fn a_shard_that_changes_is_not_given_until_the_server_starts_again_with_another_commit() {
    let mut world = world();
    let (url, commit) = (address("last.parquet"), world.commit());
    let etag = world.get(&url).assert(200).header("etag").to_owned();
    fs::write(world.path("last.parquet"), noise(31)).unwrap();
    let answer = world.get(&url).assert(500);
    assert!(answer.json()["error"].as_str().unwrap().contains("start it again"));
    world.restart();
    assert_ne!(world.commit(), commit);
    let answer = world.get(&url).assert(200);
    assert_eq!(answer.body, noise(31));
    assert_ne!(answer.header("etag"), etag);
}

#[test]
fn links_to_shards_are_shards_and_a_folder_without_any_is_the_users_error() {
    let world = world();
    let dir = tempfile::tempdir().unwrap();
    let refused = |path: &std::path::Path, sentence: &str| {
        let error = DatasetServer::start(path, 0, Options::default()).err().unwrap();
        assert_eq!(exit_code(&error), 2);
        assert!(error.to_string().contains(sentence), "{error}");
    };
    fs::create_dir(dir.path().join("folder.parquet")).unwrap();
    std::os::unix::fs::symlink(world.path("data"), dir.path().join("data")).unwrap();
    refused(dir.path(), "holds no shards");
    refused(&dir.path().join("gone"), "there is no folder");
    std::os::unix::fs::symlink(world.path("last.parquet"), dir.path().join("link.parquet")).unwrap();
    let server = DatasetServer::start(dir.path(), 0, Options::default()).unwrap();
    assert_eq!(server.num_shards(), 1);
    let answer = world.get(&format!("{}{}", server.endpoint(), address("link.parquet"))).assert(200);
    assert_eq!(answer.body, noise(30));
}

#[test]
fn pages_of_elsewhere_cannot_ask() {
    let world = world();
    let url = address("last.parquet");
    world.get_with(&url, "origin", "http://evil.example").assert(403);
    world.get_with(&url, "host", "evil.example").assert(403);
    world.get_with(&url, "origin", &world.endpoint()).assert(200);
    world.get_with("/rows", "origin", "null").assert(403);
}
