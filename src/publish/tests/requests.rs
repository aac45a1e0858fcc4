//! Prepared on one machine, committed on another.

use super::*;
use crate::gate::roster::Roster;
use crate::publish::request::{self, DecidedOn, Request, Terms};

impl Fixture {
    fn prepare(&self, model: &str, decided_on: Option<DecidedOn>) -> Result<Request> {
        let model_dir = self.dir.path().join(model);
        let order = self.order(&model_dir);
        request::prepare(&self.network, &order, &self.hold(), decided_on, &quiet())
    }

    fn terms(&self) -> Terms<'_> {
        Terms { criteria: &self.criteria, waits: false, visibility: self.visibility, repo_id: None }
    }

    fn commit(&self, request: &Request) -> Result<Published> {
        request::commit(&self.network, request, &self.terms(), &self.hold(), &quiet())
    }

    /// A request after a change in its file.
    fn changed(&self, request: &Request, from: &str, to: &str) -> Result<Request> {
        let path = self.dir.path().join("request.json");
        request.write(&path)?;
        let text = fs::read_to_string(&path)?;
        assert!(text.contains(from), "{text}");
        fs::write(&path, text.replace(from, to))?;
        Request::read(&path)
    }
}

#[test]
fn what_is_prepared_is_uploaded_and_committed_later_once() {
    let fixture = Fixture::new();
    let request = fixture.prepare("a", None).unwrap();
    let (commits, texts) = fixture.written();
    assert_eq!((commits.len(), texts.len()), (1, 0));
    assert_eq!(fixture.prepare("a", None).unwrap().commitment, request.commitment);
    // As it comes out of its file.
    let request = fixture.changed(&request, "miner", "miner").unwrap();
    let published = fixture.commit(&request).unwrap();
    assert!(!published.before);
    fixture.assert_published_once("committed");
    assert_eq!(fixture.commit(&request).unwrap(), Published { before: true, ..published });
    fixture.assert_published_once("committed twice");
    let error = fixture.prepare("a", None).unwrap_err();
    assert_eq!(exit_code(&error), 4, "{error:#}");
}

#[test]
fn a_request_whose_field_has_changed_is_not_committed() {
    let fixture = Fixture::new();
    fixture.ledger.register("rival").unwrap();
    let own = vec!["miner".to_owned()];
    let roster = Roster::of(&fixture.network.chain.snapshot().unwrap(), &own).fingerprint();
    let request = fixture.prepare("a", Some(DecidedOn { own, roster })).unwrap();
    let id = format!("rival:model:{}:hash", "0".repeat(40));
    fixture.ledger.commit("rival", id.as_bytes()).unwrap();
    let error = fixture.commit(&request).unwrap_err();
    assert_eq!(exit_code(&error), 4);
    assert!(error.to_string().contains("the field has changed since the decision at block"), "{error}");
    assert_eq!(fixture.written().1.len(), 0);
}

#[test]
fn a_request_that_is_older_than_what_stands_does_not_replace_it() {
    let fixture = Fixture::new();
    let request = fixture.prepare("a", None).unwrap();
    let newer = format!("me:other:{}:hash", "0".repeat(40));
    fixture.ledger.commit("miner", newer.as_bytes()).unwrap();
    let error = fixture.commit(&request).unwrap_err();
    assert_eq!(exit_code(&error), 4);
    assert!(error.to_string().contains("miner has committed something else at block"), "{error}");
    assert_eq!(fixture.written().1, [newer]);
}

#[test]
fn a_request_that_says_what_is_not_so_is_refused() {
    let fixture = Fixture::new();
    let request = fixture.prepare("a", None).unwrap();
    let id = request.id().unwrap();
    let (hash, commit) = (id.hash.unwrap(), id.commit.unwrap());
    let other_hash = format!("A{}", &hash[1..]);
    let foreign = format!("\"genesis\": \"0x{}\"", "7".repeat(64));
    for (from, to, code, sentence) in [
        // Another model, of the same size and shape, than the one that the hub has.
        (hash.as_str(), other_hash.as_str(), 1, "is not what was uploaded"),
        ("\"genesis\": null", foreign.as_str(), 2, "the request is for subnet 9 of the chain that begins with"),
        ("\"miner\"", "\"stranger\"", 2, "is not registered"),
        ("\"miner\"", "\"../../miner\"", 2, "is not registered"),
        (commit.as_str(), "None", 2, "names no model at a commit"),
        ("me:model", "transfer everything", 2, "is no model id"),
        ("\"format\": 1", "\"format\": 2", 2, "is of version 2 of the format"),
        ("\"netuid\"", "\"subnet\"", 2, "is no request: unknown field `subnet`"),
    ] {
        let refused = fixture.changed(&request, from, to).and_then(|request| fixture.commit(&request)).unwrap_err();
        assert_eq!(exit_code(&refused), code, "{refused:#}");
        assert!(format!("{refused:#}").contains(sentence), "{refused:#}");
        assert_eq!(fixture.written().1.len(), 0);
    }
}

#[test]
fn a_request_shows_only_the_repository_that_the_key_s_machine_means() {
    let mut fixture = Fixture::seen(Visibility::PrivateUntilCommitted);
    let request = fixture.prepare("a", None).unwrap();
    assert_eq!(fixture.is_private(), Some(true));
    let commit = |visibility, repo_id| {
        let terms = Terms { visibility, repo_id, ..fixture.terms() };
        request::commit(&fixture.network, &request, &terms, &fixture.hold(), &quiet())
    };
    let error = commit(Visibility::Public, None).unwrap_err();
    assert!(exit_code(&error) == 2 && error.to_string().contains("is private in"), "{error}");
    let error = commit(Visibility::PrivateUntilCommitted, Some("me/other")).unwrap_err();
    assert!(exit_code(&error) == 2 && error.to_string().contains("but hub.repo is me/other"), "{error}");
    assert_eq!((fixture.written().1.len(), fixture.is_private()), (0, Some(true)));
    // Without the token such a repository is none.
    let empty = FolderHub::create(&fixture.dir.path().join("empty")).unwrap();
    let hub = std::mem::replace(&mut fixture.network.hub, Box::new(empty));
    let error = fixture.commit(&request).unwrap_err();
    assert!(exit_code(&error) == 2 && error.to_string().contains("HF_TOKEN"), "{error}");
    fixture.network.hub = hub;
    let terms = Terms { repo_id: Some("me/model"), ..fixture.terms() };
    request::commit(&fixture.network, &request, &terms, &fixture.hold(), &quiet()).unwrap();
    fixture.assert_published_once("committed");
}
