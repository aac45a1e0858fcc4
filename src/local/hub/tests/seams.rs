//! The seams for tests, and the end of a server.

use super::*;

/// Cuts the connection at the so manieth sight of a request, and at all later ones.
struct Killer {
    left: Mutex<usize>,
}

impl Observer for Killer {
    fn sees(&self, _: Moment, _: &Method, _: &str) -> Fate {
        let mut left = self.left.lock().unwrap();
        let alive = *left > 0;
        *left = left.saturating_sub(1);
        if alive { Fate::GoOn } else { Fate::Cut }
    }
}

#[test]
fn an_observer_can_end_everything_before_and_after_each_request() {
    for left in 0..=6 {
        let world =
            World::new(Options { observer: Some(Arc::new(Killer { left: Mutex::new(left) })), ..Options::default() });
        let create = || {
            let body = json!({ "organization": "miner", "name": "model" }).to_string().into_bytes();
            let headers = [(AUTHORIZATION.as_str(), "Bearer t"), ("content-type", "application/json")];
            world.try_send("POST", "/api/repos/create", &headers, body)
        };
        let commit = || {
            let body = format!("{}\n{}", header(None), file("a", b"1")).into_bytes();
            let headers = [(AUTHORIZATION.as_str(), "Bearer t")];
            world.try_send("POST", &format!("/api/models/{REPO}/commit/main"), &headers, body)
        };
        let answers = [create().map(|answer| answer.status), commit().map(|answer| answer.status)];
        let expected = [(left >= 2).then_some(200), (left >= 4).then_some(200)];
        assert_eq!(answers, expected, "{left}");
        // A request that was cut before it was handled changed nothing, one that was cut afterwards did.
        let num_commits = usize::from(left >= 1) + usize::from(left >= 3);
        assert_eq!(world.hub.commits(REPO).unwrap().len(), num_commits, "{left}");
    }
}

#[test]
fn an_observer_can_answer_in_the_servers_place() {
    struct Busy;
    impl Observer for Busy {
        fn sees(&self, _: Moment, _: &Method, path: &str) -> Fate {
            match path.ends_with("refs") {
                true => Fate::Say(Box::new(
                    (axum::http::StatusCode::TOO_MANY_REQUESTS, [("retry-after", "1")]).into_response(),
                )),
                false => Fate::GoOn,
            }
        }
    }
    let world = World::new(Options { observer: Some(Arc::new(Busy)), ..Options::default() });
    world.create("model", false);
    assert_eq!(world.nobody_gets(&format!("/api/models/{REPO}/refs")).assert(429).header("retry-after"), "1");
    world.nobody_gets(&format!("/api/models/{REPO}")).assert(200);
}

#[test]
fn large_files_come_from_the_xet_store_where_there_is_one() {
    struct Store(Vec<u8>);
    impl Xet for Store {
        fn access(&self) -> XetAccess {
            XetAccess { cas_url: "http://127.0.0.1:1".to_owned(), access_token: "x".to_owned(), expires: 7 }
        }
        fn hash(&self, sum: &str) -> Option<String> {
            (sum == sha256(&self.0)).then(|| "abc".to_owned())
        }
        fn fetch(&self, sum: &str, to: &Path) -> Result<bool> {
            // One file that is what it should be, and one that is not.
            fs::write(to, if sum == sha256(&self.0) { &self.0 } else { b"other".as_slice() })?;
            Ok(true)
        }
    }
    let content = weights();
    let world = World::new(Options { xet: Some(Arc::new(Store(content.clone()))), ..Options::default() });
    world.create("model", false);
    assert_eq!(world.batch(REPO, &content)["transfer"], "xet");
    let token = world.get(&format!("/api/models/{REPO}/xet-write-token/main")).assert(200);
    assert_eq!(token.json(), json!({ "casUrl": "http://127.0.0.1:1", "accessToken": "x", "exp": 7 }));
    world.nobody_gets(&format!("/api/models/{REPO}/xet-write-token/main")).assert(401);
    world.commit(REPO, &[header(None), large("model.safetensors", b"wrong")]).assert(400);
    world.commit(REPO, &[header(None), large("model.safetensors", &content)]).assert(200);
    assert!(world.waiting().is_empty());
    let path = format!("/{REPO}/resolve/main/model.safetensors");
    let answer = world.nobody_gets(&path).assert(200);
    assert!(answer.body == content);
    assert_eq!(answer.header("x-xet-hash"), "abc");
    let refresh =
        format!("<{}/api/models/{REPO}/xet-read-token/{}>; rel=\"xet-auth\"", world.endpoint(), world.newest());
    assert_eq!(answer.header("link"), refresh);
    let tree = world.get(&format!("/api/models/{REPO}/tree/main")).assert(200).json();
    assert_eq!(tree[1]["xetHash"], "abc");
}

#[test]
fn a_dropped_server_is_gone_and_a_port_in_use_is_the_users_error() {
    let mut world = World::new(Options::default());
    let address = world.server.as_ref().unwrap().address();
    let error = HubServer::start(Arc::clone(&world.hub), address.port(), Options::default()).err().unwrap();
    assert_eq!(exit_code(&error), 2);
    assert!(error.to_string().contains("is in use"), "{error}");
    let start = Instant::now();
    drop(world.server.take());
    assert!(start.elapsed() < Duration::from_secs(3));
    assert!(TcpStream::connect(address).is_err());
}
