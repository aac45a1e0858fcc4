//! Commits, of this server and of the folder hub, as clients make and see them.

use super::*;

#[test]
fn a_commit_changes_the_newest_one_and_nothing_else() {
    let world = World::new(Options::default());
    world.create("model", false);
    let first = world.newest();
    let made = world.commit(REPO, &[header(Some(&first)), file("a", b"1"), file("b", b"2")]).assert(200).json();
    let second = world.newest();
    assert_eq!(made["commitOid"], second.as_str());
    world.commit(REPO, &[header(Some(&first)), file("a", b"3")]).assert(412);
    let gone =
        world.commit(REPO, &[header(None), json!({ "key": "deletedFile", "value": { "path": "c" } })]).assert(404);
    assert_eq!(gone.header("x-error-code"), "EntryNotFound");
    assert_eq!(world.newest(), second);
    let lines = [header(Some(&second)), json!({ "key": "deletedFile", "value": { "path": "a" } }), file("c", b"")];
    world.commit(REPO, &lines).assert(200);
    let names = |commit: &str| {
        let files = world.hub.files(REPO, commit).unwrap();
        files.into_iter().map(|file| file.path).filter(|path| path != ".gitattributes").collect::<Vec<_>>()
    };
    assert_eq!(
        (names(&second), names(&world.newest())),
        (vec!["a".to_owned(), "b".into()], vec!["b".to_owned(), "c".into()])
    );

    // Pages by their links.
    let follow = |path: String| {
        let (mut found, mut next) = (Vec::new(), path);
        loop {
            let page = world.nobody_gets(&next).assert(200);
            found.extend(page.json().as_array().unwrap().clone());
            let Some(link) = page.header("link").strip_prefix('<') else { return found };
            next = link.split_once(">; rel=\"next\"").unwrap().0.to_owned();
        }
    };
    let tree = follow(format!("/api/models/{REPO}/tree/main?recursive=true&limit=1"));
    assert_eq!(
        tree.iter().map(|entry| entry["path"].as_str().unwrap()).collect::<Vec<_>>(),
        [".gitattributes", "b", "c"]
    );
    let commits = follow(format!("/api/models/{REPO}/commits/main?limit=2"));
    let ids: Vec<_> = commits.iter().map(|commit| commit["id"].as_str().unwrap()).collect();
    assert_eq!(ids, world.hub.commits(REPO).unwrap());
    assert_eq!((&commits[0]["title"], &commits[0]["message"]), (&json!("A model"), &json!("in words")));
    assert_eq!(follow(format!("/api/models/{REPO}/commits/{first}")).len(), 1);
}

#[test]
fn what_the_folder_hub_has_uploaded_is_served_even_if_it_wrote_no_sums_down() {
    let world = World::new(Options::default());
    let model = tempfile::tempdir().unwrap();
    let content = weights();
    fs::write(model.path().join("model.safetensors"), &content).unwrap();
    let commit = world.hub.upload(&Upload::new(REPO, model.path(), &["model.safetensors"], "by hand")).unwrap();
    let told = || {
        let tree = world.nobody_gets(&format!("/api/models/{REPO}/tree/{commit}")).assert(200).json();
        tree[0]["lfs"]["oid"].as_str().unwrap().to_owned()
    };
    assert_eq!(told(), sha256(&content));
    let line = world.dir.path().join("hub").join(REPO).join("commits.jsonl");
    fs::write(&line, format!("{}\n", json!({ "commit": commit, "message": "by hand" }))).unwrap();
    assert_eq!(world.hub.files(REPO, &commit).unwrap(), [RemoteFile::new("model.safetensors", 3_000_001)]);
    assert_eq!(told(), sha256(&content));
    assert_eq!(told(), sha256(&content));
    // A commit on top of it writes them down.
    world.commit(REPO, &[header(Some(&commit)), file("config.json", b"{}")]).assert(200);
    let files = world.hub.files(REPO, &world.newest()).unwrap();
    assert!(files.iter().all(|file| file.sum.is_some()) && files.len() == 2);
}

/// The crate that assay writes with.
#[test]
fn hf_hub_creates_uploads_lists_and_downloads() {
    use futures_util::TryStreamExt;
    use hf_hub::repository::{CommitOperation, RepoTreeEntry, RepoTypeModel};
    let world = World::new(Options::default());
    let cache = tempfile::tempdir().unwrap();
    let client = hf_hub::HFClient::builder().endpoint(world.endpoint()).token("t").cache_dir(cache.path());
    let client = client.build().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        for exist_ok in [false, true] {
            let create = client.create_repository().repo_id(REPO).repo_type(RepoTypeModel).private(true);
            let made = create.exist_ok(exist_ok).send().await.unwrap();
            assert_eq!(made.url, format!("{}/{REPO}", world.endpoint()));
        }
        let model = client.model("miner", "model");
        let commits: Vec<_> = model.list_commits().send().unwrap().try_collect().await.unwrap();
        let first = &commits[0].id;
        let add = |name: &str, content: &[u8]| CommitOperation::add_bytes(name, content.to_vec());
        let operations = vec![add("config.json", b"{}"), add("model.safetensors", &weights())];
        let commit = |operations| {
            let commit = model.create_commit().operations(operations).commit_message("A model");
            commit.parent_commit(first.to_owned()).send()
        };
        let made = commit(operations).await.unwrap().commit_oid.unwrap();
        assert_eq!(made, world.newest());
        let stale = commit(vec![CommitOperation::delete("config.json")]).await.unwrap_err();
        assert!(stale.to_string().contains("412"), "{stale}");
        let info = model.info().send().await.unwrap();
        assert_eq!((info.sha.as_deref(), info.private), (Some(made.as_str()), Some(true)));
        let tree = model.list_tree().revision(made.as_str()).recursive(true).send().unwrap();
        let entries: Vec<_> = tree.try_collect().await.unwrap();
        let sizes: Vec<_> = entries
            .iter()
            .map(|entry| match entry {
                RepoTreeEntry::File { path, size, .. } => (path.as_str(), *size),
                RepoTreeEntry::Directory { path, .. } => panic!("{path} is a folder"),
            })
            .collect();
        assert_eq!(sizes[1..], [("config.json", 2), ("model.safetensors", 3_000_001)]);
        let path = model.download_file().filename("model.safetensors").revision(made.as_str()).send().await.unwrap();
        assert!(fs::read(path).unwrap() == weights());
        model.update_settings().private(false).send().await.unwrap();
    });
    assert_eq!(world.hub.is_private(REPO).unwrap(), Some(false));
}
