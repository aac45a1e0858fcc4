//! Reading a recipe: a file and `--set` overrides become a [`Recipe`], or a sentence that says what is wrong and where.
//!
//! Overrides are laid on the untyped tree before it is typed, so that they may set whatever the file may. Every message
//! opens with `FILE:LINE:COLUMN` or, where an override is the cause, with the flag. What the values mean together
//! is checked in `resolve.rs`; its sentences find their place in the file through [`Source::located`].

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::position::{Part, Position, position};
use super::resolve::{Finding, Resolved};
use super::tree::{KeyPath, Malformed, Segment, Tree};
use super::{Recipe, typed};
use crate::error::input;
use crate::hub::huggingface::looks_like_token;

/// Larger files are not recipes.
const MAX_BYTES: u64 = 1 << 20;

/// Deeper keys than any recipe has.
const MAX_OVERRIDE_DEPTH: usize = 8;

/// Reads a recipe and applies overrides of the form `path.to.key=value`, the value in YAML.
///
/// Relative paths inside a recipe are relative to the current directory, not to the recipe. Errors are the user's to
/// mend (exit code 2).
pub fn load(path: &Path, overrides: &[String]) -> Result<Recipe> {
    Source::read(path, overrides)?.recipe()
}

/// Reads a recipe as [`load`] does and resolves it; violations are reported together, each with its place in the file.
pub fn load_resolved(path: &Path, overrides: &[String]) -> Result<Resolved> {
    let source = Source::read(path, overrides)?;
    let examined = source.recipe()?.examine();
    match examined.violations.as_slice() {
        [] => Ok(examined.resolved),
        violations => Err(source.refusal(violations)),
    }
}

/// A recipe's text with the overrides that go with it.
#[derive(Debug)]
pub struct Source {
    file: PathBuf,
    text: String,
    tree: Tree,
    overrides: Vec<Override>,
}

#[derive(Debug)]
struct Override {
    /// As typed after `--set`.
    typed: String,
    path: KeyPath,
}

impl Source {
    /// Reads the file, parses it into a tree and lays the overrides on it.
    pub fn read(path: &Path, overrides: &[String]) -> Result<Self> {
        let text = read_text(path)?;
        let file = path.to_owned();
        refuse_tokens(&file, &text, overrides)?;
        let tree = Tree::parse(&text).map_err(|malformed| {
            let Malformed { position, sentence } = malformed;
            input(format!("{}: {sentence}", place_in_file(&file, position)))
        })?;
        match &tree {
            Tree::Map(_) => {}
            Tree::Nothing => return Err(input(format!("{}: the recipe is empty", file.display()))),
            found => {
                let expected = "a recipe is a mapping of keys (`name: …`, `model: …`)";
                return Err(input(format!("{}: {expected}, found {found}", file.display())));
            }
        }
        let mut source = Self { file, text, tree, overrides: Vec::new() };
        for typed in overrides {
            source.lay(typed)?;
        }
        Ok(source)
    }

    fn lay(&mut self, typed: &str) -> Result<()> {
        let Some((dotted, value)) = typed.split_once('=') else {
            return Err(input(format!("--set {typed}: expected path.to.key=value, as in --set train.steps=100")));
        };
        let dotted = dotted.trim();
        let keys: Vec<&str> = dotted.split('.').collect();
        if keys.iter().any(|key| key.is_empty()) || keys.len() > MAX_OVERRIDE_DEPTH {
            return Err(input(format!("--set {typed}: `{dotted}` is no path to a key, such as train.steps")));
        }
        let value = Tree::parse(value)
            .map_err(|malformed| input(format!("--set {typed}: the value is no YAML: {}", malformed.sentence)))?;
        self.tree.set(&keys, value);
        self.overrides.push(Override { typed: typed.to_owned(), path: KeyPath::of_keys(dotted) });
        Ok(())
    }

    /// The typed recipe: unknown keys, wrong types and missing keys end here.
    pub fn recipe(&self) -> Result<Recipe> {
        typed::from_tree(&self.tree).map_err(|fault| {
            let place = self.place(&fault.path, fault.part);
            match fault.path.0.is_empty() {
                true => input(format!("{place}: {}", fault.sentence)),
                false => input(format!("{place}: {}: {}", fault.path, fault.sentence)),
            }
        })
    }

    /// A finding as one line: its place, its key, its sentence.
    pub fn located(&self, finding: &Finding) -> String {
        let place = self.place(&KeyPath::of_keys(finding.path), Part::Value);
        format!("{place}: {}: {}", finding.path, finding.sentence)
    }

    /// The error that reports all violations together.
    pub fn refusal(&self, violations: &[Finding]) -> anyhow::Error {
        match violations {
            [violation] => input(self.located(violation)),
            _ => {
                let lines: Vec<_> = violations.iter().map(|violation| self.located(violation)).collect();
                input(format!("{}: {} things to mend\n{}", self.file.display(), lines.len(), lines.join("\n")))
            }
        }
    }

    /// The override that is to blame for a node, else the node's place in the file, else the file.
    fn place(&self, path: &KeyPath, part: Part) -> String {
        let blamed = self.overrides.iter().rev().find(|set| {
            path.0.starts_with(&set.path.0) || (set.path.0.starts_with(&path.0) && self.made_by_override(&path.0))
        });
        match blamed {
            Some(set) => format!("--set {}", set.typed),
            None => place_in_file(&self.file, position(&self.text, path, part)),
        }
    }

    /// Whether the mapping at a path is there only because of an override (`--set name.x=1`, `--set modle.width=1`).
    fn made_by_override(&self, path: &[Segment]) -> bool {
        let in_file = Tree::parse(&self.text).ok();
        let before = in_file.as_ref().and_then(|tree| tree.get(path));
        !matches!(before, Some(Tree::Map(_)))
    }
}

fn place_in_file(file: &Path, position: Option<Position>) -> String {
    match position {
        Some(Position { line, column }) => format!("{}:{line}:{column}", file.display()),
        None => file.display().to_string(),
    }
}

/// Refuses a recipe that holds a token, before any other message could show it. Recipes are shown around and stored with runs.
fn refuse_tokens(file: &Path, text: &str, overrides: &[String]) -> Result<()> {
    let remedy = "take it out, revoke it if others have seen it, and put it into the environment variable HF_TOKEN";
    if let Some(index) = text.lines().position(looks_like_token) {
        return Err(input(format!(
            "{}:{}: a token of the hub has no place in a recipe: {remedy}",
            file.display(),
            index + 1
        )));
    }
    match overrides.iter().any(|typed| looks_like_token(typed)) {
        true => {
            Err(input(format!("--set: a token of the hub has no place in a command, which everybody sees: {remedy}")))
        }
        false => Ok(()),
    }
}

fn read_text(path: &Path) -> Result<String> {
    let shown = path.display();
    if path.is_dir() {
        return Err(input(format!("{shown} is a folder; a recipe is one YAML file")));
    }
    let file = File::open(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            input(format!("{shown}: there is no such recipe; the shipped ones lie in recipes/"))
        }
        _ => input(format!("{shown}: the recipe cannot be opened: {error}")),
    })?;
    let mut bytes = Vec::new();
    let read = file.take(MAX_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(|error| input(format!("{shown}: the recipe cannot be read: {error}")))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(input(format!("{shown} is larger than 1 MiB; a recipe is a short YAML file")));
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + valid.iter().filter(|byte| **byte == b'\n').count();
        input(format!("{shown}:{line}: the recipe is not UTF-8 text"))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::error::exit_code;
    use crate::recipe::Init;

    const GOOD: &str = "\
name: test
model:
  layers: 2
  heads: 2
  width: 64
data:
  source: sample
train:
  steps: 10
  tokens_per_step: 2_048
  micro_batch: 2
";

    /// Loads a text from a file `r.yaml`; an error without the folder in it.
    fn loaded(text: impl AsRef<[u8]>, overrides: &[&str]) -> Result<Recipe, String> {
        with_file(text, |path| {
            let overrides: Vec<_> = overrides.iter().map(|typed| (*typed).to_owned()).collect();
            load(path, &overrides)
        })
    }

    fn with_file<T>(text: impl AsRef<[u8]>, read: impl FnOnce(&Path) -> Result<T>) -> Result<T, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.yaml");
        std::fs::write(&path, text).unwrap();
        read(&path).map_err(|error| {
            assert_eq!(exit_code(&error), 2, "{error}");
            error.to_string().replace(&format!("{}/", dir.path().display()), "")
        })
    }

    fn refusal(old: &str, new: &str) -> String {
        assert!(GOOD.contains(old), "{old}");
        loaded(GOOD.replacen(old, new, 1), &[]).unwrap_err()
    }

    #[test]
    fn reads_a_short_recipe_with_its_defaults() {
        let recipe = loaded(GOOD, &[]).unwrap();
        assert_eq!((recipe.name.as_str(), recipe.train.tokens_per_step, recipe.init), ("test", 2048, Init::Scratch));
        assert_eq!((recipe.eval.every, recipe.optimizer.beta2, recipe.metrics.tensorboard), (250, 0.95, true));
        // A section whose keys are all commented out, a key without value, numbers in other notations.
        let text = format!("{GOOD}  threads:\noptimizer:\n  # eps: 1\n").replace("steps: 10", "steps: 1e1");
        let other = loaded(text, &[]).unwrap();
        assert_eq!((other.train.steps, other.train.threads, other.optimizer), (10, None, recipe.optimizer));
    }

    #[test]
    fn unknown_keys_are_refused_with_what_was_meant() {
        assert_eq!(
            refusal("width: 64", "widht: 64"),
            "r.yaml:5:3: model.widht: unknown key; did you mean `width`? Known here: `family`, `layers`, \
             `heads`, `kv_heads`, `width`, `mlp_width`, `context`, `config`, `dropout` and `backend`"
        );
        assert!(refusal("name: test", "nmae: test").starts_with("r.yaml:1:1: nmae: unknown key; did you mean `name`?"));
        assert!(
            refusal("steps: 10", "steps: 10\n  lr: 1")
                .contains("r.yaml:10:3: train.lr: unknown key; did you mean `optimizer.learning_rate`?")
        );
    }

    #[test]
    fn wrong_types_are_refused_where_they_stand() {
        for (old, new, expected) in [
            ("width: 64", "width: big", "r.yaml:5:10: model.width: expected a whole number, found the text \"big\""),
            (
                "name: test",
                "name: test\nrules: {block: -1}",
                "r.yaml:2:16: rules.block: expected a whole number, at least 0 and below 2^64, found the number -1",
            ),
            ("width: 64", "width: 6.5", "r.yaml:5:10: model.width: expected a whole number, found the number 6.5"),
            (
                "width: 64",
                "width: -5",
                "r.yaml:5:10: model.width: expected a whole number, at least 0 and below 2^64, found the number -5",
            ),
            ("width: 64", "width: 64_", "r.yaml:5:10: model.width: expected a whole number, found the text \"64_\""),
            ("width: 64", "width:", "r.yaml:5:9: model.width: expected a whole number, found nothing"),
            ("width: 64", "width: [1]", "r.yaml:5:10: model.width: expected a whole number, found a list"),
            (
                "width: 64",
                "width: 64\n  dropout: yes",
                "r.yaml:6:12: model.dropout: expected a number, found the text \"yes\"",
            ),
            (
                "name: test",
                "name: 12",
                "r.yaml:1:7: name: expected a text, found the number 12; put it in quotes if it is meant as a text",
            ),
            (
                "source: sample",
                "source: sampel",
                "r.yaml:7:11: data.source: unknown choice `sampel`; did you mean `sample`? There is `sample`, `files`, `refinedweb-rows`, `refinedweb-parquet` and `tokens`",
            ),
            (
                "source: sample",
                "source: files\n  paths: data",
                "r.yaml:8:10: data.paths: expected a list such as [a, b], found the text \"data\"",
            ),
            (
                "source: sample",
                "source: files\n  paths: [a, 7]",
                "r.yaml:8:14: data.paths[1]: expected a text, found the number 7; put it in quotes if it is meant as a text",
            ),
            ("name: test", "name: test\ninit: dir", "r.yaml:2:7: init: `dir` needs a value: write `{dir: …}`"),
            (
                "name: test",
                "name: test\ninit: {dir: a, scratch: b}",
                "r.yaml:2:7: init: expected exactly one of `scratch`, `leader`, `dir`, `uid` and `repo` here",
            ),
            (
                "name: test",
                "name: test\ninit: {dri: a}",
                "r.yaml:2:7: init: unknown choice `dri`; did you mean `dir`? There is `scratch`, `leader`, \
                 `dir`, `uid` and `repo`",
            ),
            (
                "name: test",
                "name: test\ninit: {dir: 3}",
                "r.yaml:2:13: init.dir: expected a text, found the number 3; put it in quotes if it is meant as a text",
            ),
            (
                "name: test",
                "name: test\nmetrics: 5",
                "r.yaml:2:10: metrics: expected a mapping of keys, found the number 5",
            ),
            (
                "name: test",
                "name: test\nmetrics: {tensorboard: 1}",
                "r.yaml:2:24: metrics.tensorboard: expected `true` or `false`, found the number 1",
            ),
            ("  width: 64\n", "", "r.yaml:3:3: model: the key `width` is missing here"),
            ("name: test\n", "", "r.yaml:1:1: the key `name` is missing here"),
        ] {
            assert_eq!(refusal(old, new), expected);
        }
    }

    #[test]
    fn files_that_are_no_recipes_are_refused() {
        assert_eq!(loaded("", &[]).unwrap_err(), "r.yaml: the recipe is empty");
        assert_eq!(loaded("# nothing\n", &[]).unwrap_err(), "r.yaml: the recipe is empty");
        assert!(loaded("- a\n", &[]).unwrap_err().contains("a recipe is a mapping of keys"));
        assert_eq!(loaded(b"name: a\nmodel: \xff\n", &[]).unwrap_err(), "r.yaml:2: the recipe is not UTF-8 text");
        assert!(loaded(vec![b'#'; (1 << 20) + 1], &[]).unwrap_err().contains("larger than 1 MiB"));
        let twice = refusal("width: 64", "width: 64\n  heads: 3");
        assert_eq!(twice, "r.yaml:6:3: model: the key `heads` is there twice; remove one of the two");
        let syntax = refusal("layers: 2", "layers: [2");
        assert!(syntax.starts_with("r.yaml:4:"), "{syntax}");
        let folder = load(Path::new(env!("CARGO_MANIFEST_DIR")), &[]).unwrap_err().to_string();
        assert!(folder.ends_with("is a folder; a recipe is one YAML file"), "{folder}");
        let missing = load(Path::new("no/such.yaml"), &[]).unwrap_err();
        assert_eq!(exit_code(&missing), 2);
        assert!(missing.to_string().starts_with("no/such.yaml: there is no such recipe"), "{missing}");
    }

    #[test]
    fn overrides_replace_what_the_file_says() {
        let overrides = [
            "train.steps=7",
            "model.width = 128",
            "init.dir=a/b",
            "data.paths=[x, y]",
            "train.threads=",
            "eval.rows=1_000",
        ];
        let recipe = loaded(GOOD.replace("micro_batch: 2", "micro_batch: 2\n  threads: 3"), &overrides).unwrap();
        assert_eq!((recipe.train.steps, recipe.model.width, recipe.train.threads), (7, 128, None));
        assert_eq!((recipe.init, recipe.eval.rows), (Init::Dir("a/b".into()), 1000));
        assert_eq!(recipe.data.paths, [PathBuf::from("x"), PathBuf::from("y")]);
        assert_eq!(loaded(GOOD.replace("steps: 10", "steps: ten"), &["train.steps=3"]).unwrap().train.steps, 3);
        assert_eq!(loaded(GOOD, &["train.steps=3", "train.steps=4"]).unwrap().train.steps, 4);
    }

    #[test]
    fn a_wrong_override_is_named_by_its_flag() {
        for (typed, expected) in [
            ("train.stesp=3", "--set train.stesp=3: train.stesp: unknown key; did you mean `steps`?"),
            ("trian.steps=3", "--set trian.steps=3: trian: unknown key; did you mean `train`?"),
            ("model.width=big", "--set model.width=big: model.width: expected a whole number, found the text \"big\""),
            ("name.x=1", "--set name.x=1: name: expected a text, found a mapping of keys"),
            ("train.steps", "--set train.steps: expected path.to.key=value"),
            ("=3", "--set =3: `` is no path to a key"),
            ("a..b=3", "--set a..b=3: `a..b` is no path to a key"),
            ("a.b.c.d.e.f.g.h.i=3", "--set a.b.c.d.e.f.g.h.i=3: `a.b.c.d.e.f.g.h.i` is no path to a key"),
            ("train.steps=[1", "--set train.steps=[1: the value is no YAML"),
        ] {
            let error = loaded(GOOD, &[typed]).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
        let error = loaded(GOOD.replace("  width: 64\n", ""), &["model.layers=3"]).unwrap_err();
        assert_eq!(error, "r.yaml:3:3: model: the key `width` is missing here");
    }

    #[test]
    fn violations_are_reported_together_with_their_places() {
        let text = GOOD.replace("width: 64", "width: 63\n  context: 512");
        let overrides = ["train.steps=0".to_owned()];
        let error = with_file(text, |path| load_resolved(path, &overrides)).unwrap_err();
        let lines: Vec<_> = error.lines().collect();
        assert_eq!(lines.len(), 5, "{error}");
        assert_eq!(lines[0], "r.yaml: 4 things to mend");
        assert_eq!(
            lines[1],
            "r.yaml:5:10: model.width: 63 is no multiple of the 2 heads; take 62 or 64, or other heads"
        );
        assert!(lines[2].starts_with("r.yaml:6:12: model.context: 512 positions"), "{error}");
        assert_eq!(lines[3], "--set train.steps=0: train.steps: 0 is too small; at least 1");
        assert!(lines[4].starts_with("r.yaml: train.sequence_length: rows of 1024 tokens"), "{error}");
    }

    /// Whatever one or two bytes of a recipe become, the answer is a recipe or an error of the user's (exit code 2).
    #[test]
    fn damaged_recipes_never_panic() {
        let mut state = 1_u64;
        let mut random = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below
        };
        let bytes = b"\0\t\n {}[]:,-&*!|>%@`'\"#?~<0e.\xff";
        for _ in 0..2_000 {
            let mut text = GOOD.as_bytes().to_vec();
            for _ in 0..1 + random(2) {
                let at = random(text.len());
                text[at] = bytes[random(bytes.len())];
            }
            let _ = with_file(&text, |path| load_resolved(path, &[]));
        }
    }
}
