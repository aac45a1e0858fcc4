//! What is taken of a list, and what is not.

use serde_json::{Value, json};

use super::server::{Reply, Server};
use super::*;
use crate::error::exit_code;
use crate::hub::Checksum;

fn entry(path: &str) -> Value {
    json!({"type": "file", "path": path, "size": 3, "oid": "ab".repeat(20)})
}

/// A server whose tree is in these pages.
fn tree(pages: Vec<Value>) -> Server {
    Server::start(move |request| {
        let index = request.path.split_once("cursor=").map_or(0, |(_, index)| index.parse().unwrap());
        let reply = Reply::new(200, pages[index].to_string());
        match index + 1 < pages.len() {
            true => reply.header("link", format!("<{}?cursor={}>; rel=\"next\"", tree_path(), index + 1)),
            false => reply,
        }
    })
}

fn tree_path() -> String {
    format!("/api/models/{REPO}/tree/{}", commit())
}

#[test]
fn files_come_with_sizes_and_sums_from_all_pages() {
    let large = json!({
        "type": "file", "path": "model.safetensors", "size": 3_088_000_000_u64, "oid": "cd".repeat(20), "xetHash": "x",
        "lfs": {"oid": "ef".repeat(32), "size": 3_088_000_000_u64, "pointerSize": 135},
    });
    let folder = json!({"type": "directory", "path": "a", "size": 0, "oid": "ab".repeat(20)});
    let bare = json!({"type": "file", "path": "b", "size": 5});
    let server = tree(vec![json!([large, folder]), json!([]), json!([entry("a/b"), bare])]);
    let hub = client(&server);
    let files = hub.files(REPO, &commit()).unwrap();
    let file = |path: &str, bytes, sum| RemoteFile { path: path.to_owned(), bytes, sum };
    let expected = [
        file("a/b", 3, Some(Checksum::GitBlob([0xab; 20]))),
        file("b", 5, None),
        file("model.safetensors", 3_088_000_000, Some(Checksum::Sha256([0xef; 32]))),
    ];
    assert_eq!(files, expected);
    assert_eq!(server.requests()[0].path, format!("{}?recursive=true", tree_path()));
}

#[test]
fn a_list_without_end_is_refused_before_it_takes_memory() {
    let entries = |num: usize| json!((0..num).map(|index| entry(&index.to_string())).collect::<Vec<_>>());
    assert_eq!(client(&tree(vec![entries(5000)])).files(REPO, &commit()).unwrap().len(), 5000);
    let many = vec!["{\"type\":\"file\",\"path\":\"a\"}"; 500_000].join(",");
    let many = Reply::new(200, format!("[{many}]"));
    let million = vec!["{\"type\":\"file\",\"path\":\"a\",\"size\":1}"; 1_000_000].join(",");
    let million = Reply::new(200, format!("[{million}]"));
    let endless = Reply::new(200, "[]").header("link", format!("<{}>; rel=\"next\"", tree_path()));
    for (what, server) in [
        ("one page", tree(vec![entries(10_001)])),
        ("two pages", tree(vec![entries(6000), entries(6000)])),
        ("a million", Server::start(move |_| million.clone())),
        ("half a million", Server::start(move |_| many.clone())),
        ("pages without end", Server::start(move |_| endless.clone())),
    ] {
        let error = client(&server).files(REPO, &commit()).unwrap_err();
        assert_eq!(exit_code(&error), 4, "{what}: {error}");
        assert!(server.requests().len() <= 1000, "{what}");
    }
}

#[test]
fn a_data_set_may_have_more_files_than_a_model() {
    let files = |id: &str, num: usize| {
        let entries = json!((0..num).map(|index| entry(&index.to_string())).collect::<Vec<_>>()).to_string();
        let revision = format!("/api/datasets/{id}/revision/main");
        let server = Server::start(move |request| match request.path == revision {
            true => Reply::new(200, json!({"sha": commit()}).to_string()),
            false => Reply::new(200, entries.clone()),
        });
        dataset::Dataset::open(options(&server), id, "main").unwrap().files()
    };
    assert_eq!(files("lab/web", 10_001).unwrap().len(), 10_001);
    let error = files("lab/web", 100_001).unwrap_err();
    assert!(exit_code(&error) == 4 && error.to_string().ends_with("they are more than 100,000."), "{error}");
}

#[test]
fn all_pages_of_a_list_together_are_bounded() {
    let page = format!("[{}]", " ".repeat(6 << 20));
    let endless = Reply::new(200, page).header("link", format!("<{}>; rel=\"next\"", tree_path()));
    let server = Server::start(move |_| endless.clone());
    let error = client(&server).files(REPO, &commit()).unwrap_err();
    assert!(exit_code(&error) == 4 && error.to_string().ends_with("has more than 16777216 bytes"), "{error}");
    assert_eq!(server.requests().len(), 3);
}

#[test]
fn a_list_that_contradicts_itself_or_leads_away_is_none() {
    let with = |change: &dyn Fn(&mut Value)| {
        let mut entry = entry("a");
        change(&mut entry);
        entry
    };
    for (what, expected, entries) in [
        ("twice", 4, json!([entry("a"), entry("b"), entry("a")])),
        ("no sum", 3, json!([with(&|entry| entry["oid"] = json!("xyz"))])),
        ("no sum, nearly one", 3, json!([with(&|entry| entry["oid"] = json!(format!("0x{}", "a".repeat(38))))])),
        ("no large sum", 3, json!([with(&|entry| entry["lfs"] = json!({"oid": "ab", "size": 3}))])),
        ("a negative size", 3, json!([with(&|entry| entry["size"] = json!(-1))])),
        ("half a byte", 3, json!([with(&|entry| entry["size"] = json!(0.5))])),
        ("no path", 3, json!([{"type": "file", "size": 3}])),
    ] {
        let error = client(&tree(vec![entries])).files(REPO, &commit()).unwrap_err();
        assert_eq!(exit_code(&error), expected, "{what}: {error}");
    }
    let elsewhere = Server::start(|_| Reply::new(200, "[]").header("link", "<http://127.0.0.1:1/a>; rel=\"next\""));
    let error = client(&elsewhere).files(REPO, &commit()).unwrap_err();
    assert!(error.to_string().contains("goes on at another server"), "{error}");
}

#[test]
fn commits_and_who_sees_them_are_told_or_that_there_are_none() {
    let (first, second) = ("a".repeat(40), "b".repeat(40));
    let (newest, both) = (json!({"sha": second, "private": true}), json!([{"id": second}, {"id": first}]));
    let server = Server::start(move |request| match request.path.as_str() {
        "/api/models/miner/model/revision/main" | "/api/models/miner/model" => Reply::new(200, newest.to_string()),
        "/api/models/miner/model/commits/main" => Reply::new(200, both.to_string()),
        "/api/models/miner/odd/revision/main" | "/api/models/miner/odd" => Reply::new(200, "{\"sha\":\"../../etc\"}"),
        path if path.contains("gated") => Reply::refusal(403, "GatedRepo"),
        _ => Reply::refusal(404, "RepoNotFound"),
    });
    let hub = client(&server);
    assert_eq!(hub.newest_commit(REPO).unwrap(), Some("b".repeat(40)));
    assert_eq!(hub.commits(REPO).unwrap(), ["b".repeat(40), "a".repeat(40)]);
    assert_eq!(hub.is_private(REPO).unwrap(), Some(true));
    assert_eq!(hub.newest_commit("miner/none").unwrap(), None);
    assert_eq!(hub.commits("miner/none").unwrap(), Vec::<String>::new());
    assert_eq!(hub.is_private("miner/none").unwrap(), None);
    assert_eq!(exit_code(&hub.newest_commit("miner/odd").unwrap_err()), 3);
    assert_eq!(exit_code(&hub.is_private("miner/odd").unwrap_err()), 3, "it does not tell");
    assert_eq!(exit_code(&hub.commits("miner/gated").unwrap_err()), 4);
    // Names that lead elsewhere are never sent.
    let num_requests = server.requests().len();
    for (repo_id, commit) in
        [("../model", commit()), ("a/b/c", commit()), (REPO, "main".to_owned()), (REPO, "../..".to_owned())]
    {
        assert_eq!(exit_code(&hub.files(repo_id, &commit).unwrap_err()), 2, "{repo_id} {commit}");
    }
    assert_eq!(server.requests().len(), num_requests);
}
