//! Runs the real binary: a folder of its own for every test ([`Dir`]), a command in it ([`TestCommand`]), and what came
//! of it ([`Outcome`]), with the process killed when a test is left early or takes too long.
//!
//! The runs are of one size: 1 block × 32 wide, rows of 64 tokens, but the whole vocabulary, so 1.6 M parameters and
//! checkpoints of some 20 MB. Text is made up from a seed.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Seek};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// No command of these tests takes as long, even with all tests at once on two cores.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Parameters of the tests' model.
pub(crate) const NUM_PARAMETERS: u64 = 50_257 * 32 + 64 * 32 + (12 * 32 * 32 + 13 * 32) + 2 * 32;

/// A temporary folder that goes with the test.
pub(crate) struct Dir(TempDir);

impl Dir {
    /// An empty folder.
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// A folder with text to train on, and `recipe.yaml` for a run of `steps` steps in the folder `run`.
    pub(crate) fn with_recipe(steps: usize) -> Self {
        let dir = Self::new();
        dir.write("train.jsonl", documents(1, 400));
        dir.write("held_out.jsonl", documents(2, 40));
        dir.write("recipe.yaml", recipe(dir.root(), &dir.path("run"), steps));
        dir
    }

    /// The folder itself.
    pub(crate) fn root(&self) -> &Path {
        self.0.path()
    }

    /// A path inside.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    /// Writes a file and returns its path.
    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    /// Every file and folder inside, sorted, relative to the folder.
    pub(crate) fn listing(&self) -> Vec<PathBuf> {
        fn walk(dir: &Path, into: &mut Vec<PathBuf>) {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() && !path.is_symlink() {
                    walk(&path, into);
                }
                into.push(path);
            }
        }
        let mut paths = Vec::new();
        walk(self.root(), &mut paths);
        paths.sort();
        paths.iter().map(|path| path.strip_prefix(self.root()).unwrap().to_owned()).collect()
    }

    /// `assay` with arguments, to be run in this folder.
    pub(crate) fn assay(&self, args: &[&str]) -> TestCommand {
        TestCommand::new(env!("CARGO_BIN_EXE_assay"), self.root()).args(args)
    }

    /// Panics unless `inspect` finds the model whole and within the rules of these tests.
    pub(crate) fn assert_model_is_ok(&self, model: &Path) {
        let inspect = self.assay(&["inspect", "--json", "--sequence-length", "64"]).arg(model);
        let inspected = inspect.run().assert_exit(0).json();
        assert_eq!(inspected["ok"], true, "{inspected}");
    }

    /// `assay train recipe.yaml` with further arguments.
    pub(crate) fn train(&self, args: &[&str]) -> TestCommand {
        self.assay(&["train", "recipe.yaml"]).args(args)
    }
}

/// The recipe of the tests. Tests override single values by `--set`.
pub(crate) fn recipe(text_dir: &Path, run_dir: &Path, steps: usize) -> String {
    let (text, run) = (text_dir.display(), run_dir.display());
    format!(
        "name: tiny
rules: {{sequence_length: 64}}
model: {{layers: 1, heads: 2, width: 32}}
data: {{source: files, paths: [\"{text}/train.jsonl\"], held_out: [\"{text}/held_out.jsonl\"]}}
train: {{steps: {steps}, tokens_per_step: 128, micro_batch: 1, seed: 1, threads: 2}}
optimizer: {{learning_rate: 0.003}}
schedule: {{warmup_steps: 4}}
eval: {{every: 10, rows: 4}}
checkpoint: {{dir: \"{run}\", every: 10, keep_last: 2}}
"
    )
}

/// Lines of JSON, each a document of some 50 tokens with words that predict one another.
fn documents(seed: u64, count: usize) -> String {
    const WORDS: [&str; 16] = [
        "the", "miner", "trains", "a", "model", "on", "text", "and", "loses", "money", "when", "its", "run", "dies",
        "at", "night",
    ];
    let mut random = Random::new(seed);
    let mut lines = String::new();
    for _ in 0..count {
        let mut word = random.below(16);
        let mut text = String::new();
        for _ in 0..40 {
            text += WORDS[word as usize];
            text += " ";
            word = if random.below(4) == 0 { random.below(16) } else { (word + 1) % 16 };
        }
        lines += &serde_json::json!({ "text": text.trim_end() }).to_string();
        lines += "\n";
    }
    lines
}

/// Random numbers from a seed (SplitMix64).
pub(crate) struct Random(u64);

impl Random {
    /// The same seed gives the same numbers.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number from 0 up to, not including, `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }
}

/// A command that is not running yet.
pub(crate) struct TestCommand(Command);

impl TestCommand {
    /// Any program.
    pub(crate) fn new(program: &str, current_dir: &Path) -> Self {
        let mut command = Command::new(program);
        // Nothing of the caller's surroundings may change what is printed.
        command.env_remove("RUST_BACKTRACE").env_remove("RUST_LIB_BACKTRACE").env_remove("NO_COLOR");
        command.current_dir(current_dir).stdin(Stdio::null());
        Self(command)
    }

    /// Adds arguments.
    pub(crate) fn args(mut self, args: &[&str]) -> Self {
        self.0.args(args);
        self
    }

    /// Sets a variable of its environment.
    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.0.env(name, value);
        self
    }

    /// Adds a path as an argument.
    pub(crate) fn arg(mut self, path: &Path) -> Self {
        self.0.arg(path);
        self
    }

    /// Runs it under a shell that first executes `setup`, such as a limit.
    pub(crate) fn under_shell(self, setup: &str) -> Self {
        let mut shell = Self::new("sh", self.0.get_current_dir().unwrap());
        shell.0.arg("-c").arg(format!("{setup}; exec \"$0\" \"$@\"")).arg(self.0.get_program()).args(self.0.get_args());
        shell
    }

    /// Starts it.
    pub(crate) fn spawn(mut self) -> Running {
        // Files, not pipes: a process never waits for the test to read.
        let (out, err) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        self.0.stdout(out.try_clone().unwrap()).stderr(err.try_clone().unwrap());
        let line = format!("{:?}", self.0);
        Running { child: self.0.spawn().unwrap(), out, err, line, deadline: Instant::now() + TIMEOUT }
    }

    /// Runs it to its end.
    pub(crate) fn run(self) -> Outcome {
        self.spawn().wait()
    }

    /// Runs it to its end with nobody reading its stdout.
    pub(crate) fn run_with_closed_stdout(mut self) -> Outcome {
        let err = tempfile::tempfile().unwrap();
        self.0.stdout(Stdio::piped()).stderr(err.try_clone().unwrap());
        let line = format!("{:?}", self.0);
        let mut child = self.0.spawn().unwrap();
        drop(child.stdout.take());
        Running { child, out: tempfile::tempfile().unwrap(), err, line, deadline: Instant::now() + TIMEOUT }.wait()
    }
}

/// A command that runs; dropping it kills it.
pub(crate) struct Running {
    child: Child,
    out: File,
    err: File,
    line: String,
    deadline: Instant,
}

impl Running {
    /// Whether it still runs; panics when it has run for too long.
    pub(crate) fn is_running(&mut self) -> bool {
        let running = self.child.try_wait().unwrap().is_none();
        if running && Instant::now() > self.deadline {
            let (line, stderr) = (self.line.clone(), text(&mut self.err));
            panic!("{line} takes longer than {TIMEOUT:?}; stderr so far:\n{stderr}");
        }
        running
    }

    /// Waits until `condition` holds or the command ends; whether the condition held.
    pub(crate) fn wait_until(&mut self, mut condition: impl FnMut() -> bool) -> bool {
        loop {
            if condition() {
                return true;
            }
            if !self.is_running() {
                return false;
            }
            sleep(Duration::from_millis(1));
        }
    }

    /// What it has answered so far.
    pub(crate) fn stdout_so_far(&self) -> String {
        let mut bytes = vec![0; 1 << 16];
        // The process writes where the file's position is, which must stay.
        let len = self.out.read_at(&mut bytes, 0).unwrap();
        String::from_utf8(bytes[..len].to_vec()).unwrap()
    }

    /// Waits until it has written a word that begins so, and returns the word from there on, without the sentence's end.
    pub(crate) fn wait_for_word(&mut self, start: &str) -> String {
        loop {
            let out = self.stdout_so_far();
            if let Some(word) = out.split_whitespace().find_map(|word| word.find(start).map(|at| &word[at..])) {
                return word.trim_end_matches(['.', ',', ';', '`']).to_owned();
            }
            if !self.is_running() {
                panic!("it ended without a word {start}; it wrote {out}");
            }
            sleep(Duration::from_millis(5));
        }
    }

    /// Sends a signal by its name, such as "INT".
    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status().unwrap();
        assert!(status.success(), "kill -{name} failed");
    }

    /// Kills it as `kill -9` does.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.wait();
    }

    /// Waits for its end.
    pub(crate) fn wait(mut self) -> Outcome {
        while self.is_running() {
            sleep(Duration::from_millis(2));
        }
        let code = self.child.wait().unwrap().code();
        let outcome = Outcome {
            code,
            stdout: text(&mut self.out),
            stderr: text(&mut self.err),
            line: std::mem::take(&mut self.line),
        };
        assert!(!outcome.stderr.contains("panicked at"), "{outcome:?}");
        outcome
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail where it has ended already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn text(file: &mut File) -> String {
    file.rewind().unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    text
}

/// What a command did.
pub(crate) struct Outcome {
    /// Exit code; `None` when a signal ended it.
    pub(crate) code: Option<i32>,
    /// What it answered.
    pub(crate) stdout: String,
    /// What else it said.
    pub(crate) stderr: String,
    line: String,
}

impl std::fmt::Debug for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}\nexit code {:?}\nstdout:\n{}\nstderr:\n{}", self.line, self.code, self.stdout, self.stderr)
    }
}

impl Outcome {
    /// Panics unless it ended with this code.
    pub(crate) fn assert_exit(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:?}");
        self
    }

    /// Panics unless stderr holds the text; thousands separators do not count.
    pub(crate) fn assert_stderr_contains(self, part: &str) -> Self {
        let plain = self.stderr.replace([',', '_'], "");
        assert!(self.stderr.contains(part) || plain.contains(part), "no {part:?} in stderr of {self:?}");
        self
    }

    /// Panics unless stdout holds the text.
    pub(crate) fn assert_stdout_contains(self, part: &str) -> Self {
        assert!(self.stdout.contains(part), "no {part:?} in stdout of {self:?}");
        self
    }

    /// Panics unless stderr holds one of the texts.
    pub(crate) fn assert_stderr_contains_any(self, parts: &[&str]) -> Self {
        assert!(parts.iter().any(|part| self.stderr.contains(part)), "none of {parts:?} in stderr of {self:?}");
        self
    }

    /// The one JSON object that is all of stdout.
    pub(crate) fn json(&self) -> Value {
        let value: Value = serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"));
        assert!(value.is_object(), "{self:?}");
        value
    }
}

/// Steps and values, bit for bit, of one key of a run's `metrics.jsonl`.
pub(crate) fn recorded(run_dir: &Path, key: &str) -> Vec<(u64, u64)> {
    let text = fs::read_to_string(run_dir.join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter_map(|line| Some((line["step"].as_u64()?, line.get(key)?.as_f64()?.to_bits()))).collect()
}

/// The last step in a run's `metrics.jsonl`, 0 where there is none yet. For a file that is being written.
pub(crate) fn last_recorded_step(run_dir: &Path) -> u64 {
    let text = fs::read_to_string(run_dir.join("metrics.jsonl")).unwrap_or_default();
    let steps = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()?["step"].as_u64());
    steps.max().unwrap_or(0)
}

/// The step that a run's `latest` names, 0 where there is none yet.
pub(crate) fn latest_step(run_dir: &Path) -> u64 {
    let Ok(target) = fs::read_link(run_dir.join("latest")) else { return 0 };
    assert!(target.is_relative(), "latest must survive the move of its folder: {target:?}");
    target.to_str().unwrap().strip_prefix("step-").unwrap().parse().unwrap()
}

/// Panics unless two finished runs recorded the same and ended with the same weights, bit for bit.
pub(crate) fn assert_same_run(expected: &Path, actual: &Path) {
    for key in ["loss", "grad_norm", "learning_rate", "held_out_loss"] {
        let values = recorded(expected, key);
        assert!(!values.is_empty(), "{key} was never recorded");
        assert_eq!(values, recorded(actual, key), "{key}");
    }
    assert_eq!(latest_step(expected), latest_step(actual));
    for file in ["model.safetensors", "config.json", "generation_config.json"] {
        let read = |run: &Path| fs::read(run.join("latest").join(file)).unwrap();
        assert!(read(expected) == read(actual), "{file} differs");
    }
}
