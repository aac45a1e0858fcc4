//! What strangers ask for, and what they may not see.

use super::*;

#[test]
fn commits_of_strangers_are_refused_before_anything_is_written() {
    let world = World::new(Options::default());
    world.create("model", false);
    let before = world.newest();
    for path in ["folder/x", "../x", "/etc/x", "", ".", "..", "a\\b", "a\0b", "a\nb", &"n".repeat(256)] {
        let answer = world.commit(REPO, &[header(None), file(path, b"x")]).assert(400);
        assert!(answer.json()["error"].as_str().unwrap().contains("no plain name of a file"), "{path:?}");
        world.commit(REPO, &[header(None), large(path, b"x")]).assert(400);
        let plan = json!({ "files": [{ "path": path, "size": 1 }] });
        world.post(&format!("/api/models/{REPO}/preupload/main"), &plan).assert(400);
    }
    let bad_base64 = json!({ "key": "file", "value": { "path": "a", "content": "*", "encoding": "base64" } });
    let bad_sum = json!({ "key": "lfsFile", "value": { "path": "a", "algo": "sha256", "oid": "../../x", "size": 1 } });
    let unknown = json!({ "key": "copyFile", "value": { "path": "a" } });
    for line in [bad_base64, bad_sum, unknown] {
        world.commit(REPO, &[header(None), line]).assert(400);
    }
    for text in ["", "{", "[]\n", "null", &file("a", b"x").to_string(), &"\n{}".repeat(3)] {
        world.commit_text(REPO, text).assert(400);
    }
    let long = json!({ "key": "header", "value": { "summary": "x".repeat(70_000) } });
    world.commit(REPO, &[long, file("a", b"x")]).assert(400);
    world.commit_text(REPO, &" ".repeat((96 << 20) + 1)).assert(413);
    world.post("/api/repos/create", &json!({ "name": "x".repeat(1 << 20) })).assert(413);
    assert_eq!(world.newest(), before);
    for (organization, name) in [("..", "x"), (".lfs", "x"), ("a/b", "x"), ("a", "../b"), ("", "x"), ("a", "")] {
        world.post("/api/repos/create", &json!({ "organization": organization, "name": name })).assert(400);
    }
    assert_eq!(fs::read_dir(world.dir.path()).unwrap().count(), 1);
}

#[test]
fn no_path_leads_out_of_a_commit() {
    let world = World::new(Options::default());
    world.create("model", false);
    fs::write(world.dir.path().join("secret"), "secret").unwrap();
    let commit = world.newest();
    let dir = world.dir.path().join("hub").join(REPO);
    std::os::unix::fs::symlink("../../../../secret", dir.join(&commit).join("link")).unwrap();
    for path in [
        "link",
        "..%2fcommits.jsonl",
        "..%2f..%2f..%2f..%2fsecret",
        "%2fetc%2fpasswd",
        "a%00b",
        "x/../.gitattributes",
        "%2e%2e",
    ] {
        let url = format!("/{REPO}/resolve/{commit}/{path}");
        // As it is: a client would tidy it up.
        let host = world.server.as_ref().unwrap().address();
        let mut socket = TcpStream::connect(host).unwrap();
        write!(socket, "GET {url} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 404") && !answer.contains("\r\n\r\nsecret"), "{path}: {answer}");
    }
    for revision in ["dev", "refs%2Fpr%2F1", &"f".repeat(40), &commit[..39]] {
        let answer = world.get(&format!("/{REPO}/resolve/{revision}/.gitattributes"));
        assert_eq!((answer.status, answer.header("x-error-code")), (404, "RevisionNotFound"), "{revision}");
    }
    for repo in ["..%2f../x", "../..", ".lfs/x", "%2e%2e/model"] {
        assert!([400, 404].contains(&world.get(&format!("/api/models/{repo}")).status), "{repo}");
    }
}

#[test]
fn who_may_not_see_a_repository_cannot_tell_it_from_one_that_is_not_there() {
    let world = World::new(Options { token: Some("t".to_owned()), ..Options::default() });
    world.create("model", true);
    world.commit(REPO, &[header(None), file("config.json", b"{}")]).assert(200);
    let paths = |repo: &str| {
        let models = format!("/api/models/{repo}");
        vec![
            models.clone(),
            format!("{models}/tree/main"),
            format!("{models}/refs"),
            format!("{models}/commits/main"),
            format!("/{repo}/resolve/main/config.json"),
        ]
    };
    for (hidden, absent) in paths(REPO).iter().zip(paths("miner/absent")) {
        let (hidden_answer, absent_answer) = (world.nobody_gets(hidden), world.nobody_gets(&absent));
        assert_eq!((hidden_answer.status, hidden_answer.header("x-error-code")), (401, "RepoNotFound"), "{hidden}");
        assert_eq!((absent_answer.status, absent_answer.body), (401, hidden_answer.body), "{absent}");
        world.get(hidden).assert(200);
        assert_eq!(world.get(&absent).assert(404).header("x-error-code"), "RepoNotFound");
        let wrong = world.send("GET", hidden, &[("authorization", "Bearer T")], "").assert(401);
        assert_eq!(wrong.header("x-error-message"), "Invalid credentials in Authorization header");
    }
    let settings = format!("/api/models/{REPO}/settings");
    let anonymous = |method, path: &str| {
        world.send(
            method,
            path,
            &[("content-type", "application/json")],
            json!({ "private": false, "name": "x" }).to_string(),
        )
    };
    anonymous("PUT", &settings).assert(401);
    world.send_json("PUT", &settings, &json!({ "visibility": "public" })).assert(200);
    assert_eq!(world.nobody_gets(&format!("/api/models/{REPO}")).assert(200).json()["private"], false);
    // To see is not to write.
    anonymous("PUT", &settings).assert(401);
    anonymous("POST", "/api/repos/create").assert(401);
    world.send("POST", &format!("/api/models/{REPO}/commit/main"), &[], header(None).to_string()).assert(401);
    let batch = json!({ "operation": "upload", "objects": [] }).to_string();
    let json_type = [("content-type", "application/json")];
    world.send("POST", &format!("/{REPO}.git/info/lfs/objects/batch"), &json_type, batch).assert(401);
    world.send_json("PUT", &settings, &json!({ "private": true })).assert(200);
    world.nobody_gets(&format!("/api/models/{REPO}")).assert(401);
    world.nobody_gets("/api/whoami-v2").assert(401);
}

#[test]
fn pages_of_elsewhere_cannot_ask() {
    let world = World::new(Options::default());
    let who = |headers: &[(&str, &str)]| {
        let headers = [&[(AUTHORIZATION.as_str(), "Bearer t")], headers].concat();
        world.send("GET", "/api/whoami-v2", &headers, "").status
    };
    assert_eq!(who(&[("origin", "http://localhost:1")]), 200);
    assert_eq!(who(&[("origin", "http://evil.example")]), 403);
    assert_eq!(who(&[("origin", "null")]), 403);
    assert_eq!(who(&[("host", "evil.example")]), 403);
    assert_eq!(who(&[("host", "localhost:7")]), 200);
}
