//! Large files on their way in and out.

use super::*;

#[test]
fn a_model_goes_up_as_a_large_file_and_comes_down_whole_or_in_part() {
    let world = World::new(Options::default());
    world.create("model", false);
    let content = weights();
    let plan = json!({ "files": [{ "path": "model.safetensors", "size": content.len(), "sample": "" },
        { "path": "config.json", "size": 2, "sample": "" }] });
    let modes = world.post(&format!("/api/models/{REPO}/preupload/main"), &plan).assert(200).json();
    assert_eq!(
        (&modes["files"][0]["uploadMode"], &modes["files"][1]["uploadMode"]),
        (&json!("lfs"), &json!("regular"))
    );
    assert_eq!(modes["files"][0].get("oid"), None);

    let batch = world.batch(REPO, &content);
    assert_eq!(batch["transfer"], "basic");
    let actions = &batch["objects"][0]["actions"];
    let verify = || {
        let object = json!({ "oid": sha256(&content), "size": content.len() });
        world.post(actions["verify"]["href"].as_str().unwrap(), &object).status
    };
    assert_eq!(verify(), 404);
    // Clients send no token there.
    world.send("PUT", actions["upload"]["href"].as_str().unwrap(), &[], content.clone()).assert(200);
    assert_eq!(verify(), 200);
    assert_eq!(world.waiting(), [sha256(&content)]);
    assert_eq!(world.batch(REPO, &content)["objects"][0].get("actions"), None, "it is to be uploaded again");

    let first = world.newest();
    let lines = [header(Some(&first)), file("config.json", b"{}"), large("model.safetensors", &content)];
    let made = world.commit(REPO, &lines).assert(200).json();
    let commit = world.newest();
    assert_eq!(made["commitOid"], commit.as_str());
    assert!(world.waiting().is_empty());
    assert_eq!(world.batch(REPO, &content)["objects"][0].get("actions"), None, "it stands in a commit");
    let modes = world.post(&format!("/api/models/{REPO}/preupload/main"), &plan).assert(200).json();
    let blob = "9e26dfeeb6e641a33dae4961196235bdb965b21b"; // git hash-object of {}
    assert_eq!((&modes["files"][0]["oid"], &modes["files"][1]["oid"]), (&json!(sha256(&content)), &json!(blob)));

    let path = format!("/{REPO}/resolve/{commit}/model.safetensors");
    let whole = world.nobody_gets(&path).assert(200);
    assert!(whole.body == content);
    let etag = format!("\"{}\"", sha256(&content));
    for answer in [whole, world.send("HEAD", &path, &[], "").assert(200)] {
        assert_eq!(answer.header("etag"), etag);
        assert_eq!((answer.header("x-linked-etag"), answer.header("x-linked-size")), (etag.as_str(), "3000001"));
        assert_eq!((answer.header("x-repo-commit"), answer.header("content-length")), (commit.as_str(), "3000001"));
        assert_eq!(answer.header("accept-ranges"), "bytes");
    }
    let part = world.send("GET", &path, &[("range", "bytes=2000000-")], "").assert(206);
    assert!(part.body == content[2_000_000..]);
    assert_eq!(part.header("content-range"), "bytes 2000000-3000000/3000001");
    let part = world.send("GET", &path, &[("range", "bytes=0-9"), ("if-range", &etag)], "").assert(206);
    assert_eq!(part.body, &content[..10]);
    assert_eq!(
        world.send("GET", &path, &[("range", "bytes=0-9"), ("if-range", "\"x\"")], "").assert(200).body.len(),
        3_000_001
    );
    let outside = world.send("GET", &path, &[("range", "bytes=3000001-")], "").assert(416);
    assert_eq!(outside.header("content-range"), "bytes */3000001");
    assert!(world.send("GET", &path, &[("if-none-match", &etag)], "").assert(304).body.is_empty());
    let config = world.nobody_gets(&format!("/{REPO}/resolve/main/config.json")).assert(200);
    assert_eq!((config.header("etag"), config.body.as_slice()), (format!("\"{blob}\"").as_str(), b"{}".as_slice()));

    let absent = world.nobody_gets(&format!("/{REPO}/resolve/main/absent.json")).assert(404);
    assert_eq!((absent.header("x-error-code"), absent.header("x-repo-commit")), ("EntryNotFound", commit.as_str()));

    // The folder's own view: the sum is known without a look at the file.
    let files = world.hub.files(REPO, &commit).unwrap();
    let stored = files.iter().find(|file| file.path == "model.safetensors").unwrap();
    assert_eq!(stored.sum, Some(Checksum::Sha256(Sha256::digest(&content).into())));
}

#[test]
fn what_was_uploaded_waits_for_its_commit_across_a_restart() {
    let mut world = World::new(Options::default());
    world.create("model", false);
    let content = weights();
    let address = world.address(&content);
    world.send("PUT", &address, &[], content.clone()).assert(200);
    world.restart();
    assert_eq!(world.batch(REPO, &content)["objects"][0].get("actions"), None);
    // An address is good for the server that gave it.
    let stale = address.replacen(&address[..address.find("/lfs").unwrap()], "", 1);
    world.send("PUT", &stale, &[], content.clone()).assert(403);
    world.commit(REPO, &[header(None), large("model.safetensors", &content)]).assert(200);
    assert!(world.nobody_gets(&format!("/{REPO}/resolve/main/model.safetensors")).body == content);

    // After a day it goes, and after a few minutes what a server that was killed has left of one.
    let other = b"other".repeat(1000);
    world.send("PUT", &world.address(&other), &[], other.clone()).assert(200);
    fs::write(world.lfs().join(".tmp-x"), "half").unwrap();
    let lfs = world.lfs();
    let age = |name: &str, seconds| {
        let times = fs::FileTimes::new().set_modified(std::time::SystemTime::now() - Duration::from_secs(seconds));
        fs::File::open(lfs.join(name)).unwrap().set_times(times).unwrap();
    };
    age(&sha256(&other), 24 * 3600 - 60);
    age(".tmp-x", 660);
    world.restart();
    assert_eq!(world.waiting(), [sha256(&other)]);
    age(&sha256(&other), 24 * 3600 + 60);
    world.restart();
    assert!(world.waiting().is_empty());
}

#[test]
fn an_upload_that_is_not_the_promised_file_leaves_nothing() {
    let world = World::new(Options::default());
    world.create("model", false);
    let content = weights();
    let address = world.address(&content);
    let put = |address: &str, content: &[u8]| world.send("PUT", address, &[], content).status;
    assert_eq!(put(&address, &content[1..]), 413);
    assert_eq!(put(&address, &[&content[..], b"x"].concat()), 413);
    let mut other = content.clone();
    other[2_000_000] ^= 1;
    assert_eq!(put(&address, &other), 400);
    assert_eq!(put(&address.replace("size=3000001", "size=3000000"), &content[1..]), 403);
    assert_eq!(put(&address.replace(&sha256(&content), &sha256(&other)), &other), 403);
    assert_eq!(put(&address.replace("until=", "until=9"), &content), 403);
    assert_eq!(put(&address.replace("signature=", "signature=0"), &content), 403);
    assert_eq!(put(&format!("{}/lfs/..%2f..%2fx?{}", world.endpoint(), address.split_once('?').unwrap().1), b"x"), 403);

    // A client that dies half-way, with and without having told how much would come.
    let (host, path) = address.strip_prefix("http://").unwrap().split_once('/').unwrap();
    for length in ["Content-Length: 3000001", "Transfer-Encoding: chunked"] {
        let mut socket = TcpStream::connect(host).unwrap();
        write!(socket, "PUT /{path} HTTP/1.1\r\nHost: {host}\r\n{length}\r\n\r\n186a0\r\n").unwrap();
        socket.write_all(&content[..100_000]).unwrap();
        let start = Instant::now();
        while world.waiting().is_empty() {
            assert!(start.elapsed() < Duration::from_secs(10), "nothing was begun");
            sleep(Duration::from_millis(2));
        }
        drop(socket);
        while !world.waiting().is_empty() {
            assert!(start.elapsed() < Duration::from_secs(10), "{:?} stays", world.waiting());
            sleep(Duration::from_millis(2));
        }
    }
    world.commit(REPO, &[header(None), large("model.safetensors", &content)]).assert(400);
    let huge = json!({ "operation": "upload", "objects": [{ "oid": "0".repeat(64), "size": 1_u64 << 60 },
        { "oid": "../../x", "size": 1 }] });
    let answer = world.post(&format!("/{REPO}.git/info/lfs/objects/batch"), &huge).assert(200).json();
    assert_eq!(
        (&answer["objects"][0]["error"]["code"], &answer["objects"][1]["error"]["code"]),
        (&json!(507), &json!(422))
    );
}
