//! A disk that fills up while a checkpoint is saved: a clear sentence, exit code 1, the checkpoint before untouched, and
//! once there is room the run goes on as if nothing had happened.
//!
//! With the right to mount, the run lies on a small tmpfs that a ballast file fills. Without it, a limit on the size of
//! files makes the same write fail, with another error from the system.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::util::{Dir, Outcome, assert_same_run, last_recorded_step, latest_step};

const STEPS: usize = 30;

/// A small file system, unmounted when dropped.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(at: PathBuf, size: &str) -> Option<Self> {
        fs::create_dir(&at).unwrap();
        let options = format!("size={size}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "assay-test"]).arg(&at).output();
        mounted.is_ok_and(|output| output.status.success()).then(|| Self(at))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        Command::new("umount").arg("--lazy").arg(&self.0).status().ok();
    }
}

/// Fills the file system but for `left` bytes.
fn write_ballast(path: &Path, left: usize) {
    let mut file = fs::File::create(path).unwrap();
    let chunk = vec![0; 64 << 10];
    while std::io::Write::write(&mut file, &chunk).is_ok_and(|num_bytes| num_bytes > 0) {}
    let len = file.metadata().unwrap().len();
    file.set_len(len.checked_sub(left as u64).unwrap()).unwrap();
}

#[test]
fn a_full_disk_while_saving_costs_nothing_but_the_steps_since_the_last_checkpoint() {
    let dir = Dir::with_recipe(STEPS);
    dir.train(&[]).run().assert_exit(0);

    let disk = Tmpfs::mount(dir.path("disk"), "128m");
    let run = dir.path("disk/run");
    let set = format!("checkpoint.dir={}", run.display());
    let start = ["--set", &set];
    let resume = ["--set", &set, "--resume"];

    // Some steps, and a checkpoint to fall back to.
    let mut running = dir.train(&start).spawn();
    assert!(running.wait_until(|| last_recorded_step(&run) >= 3), "{:?}", running.wait());
    running.signal("INT");
    running.wait().assert_exit(130);
    let saved = latest_step(&run);
    let files = || ["config.json", "model.safetensors"].map(|file| fs::read(run.join("latest").join(file)).unwrap());
    let before = files();

    // Room for 8 MB: the weights of the next checkpoint (6.5 MB) fit, its moments (13 MB) do not.
    let outcome: Outcome = if disk.is_some() {
        write_ballast(&dir.path("disk/ballast"), 8 << 20);
        let outcome = dir.train(&resume).run();
        fs::remove_file(dir.path("disk/ballast")).unwrap();
        outcome.assert_stderr_contains("No space left")
    } else {
        // In blocks of 512 bytes. Ignored, the signal becomes an error of the write.
        dir.train(&resume).under_shell("trap '' XFSZ; ulimit -f 16384").run().assert_stderr_contains("File too large")
    };
    let outcome = outcome.assert_exit(1).assert_stderr_contains("checkpoint");
    assert!(outcome.stderr.contains("error: "), "{outcome:?}");
    assert_eq!(latest_step(&run), saved, "{outcome:?}");
    assert!(files() == before, "the checkpoint before was touched");
    dir.assert_model_is_ok(&run.join("latest"));

    dir.train(&resume).run().assert_exit(0);
    assert_same_run(&dir.path("run"), &run);
}

/// What a run tells about itself is a by-product: without room for it the run goes on.
#[test]
fn records_that_cannot_be_written_cost_one_warning_each() {
    let dir = Dir::with_recipe(3);
    dir.train(&[]).run().assert_exit(0);
    let losses = crate::util::recorded(&dir.path("run"), "loss");

    let blocked = dir.path("blocked");
    fs::create_dir(&blocked).unwrap();
    std::os::unix::fs::symlink("/dev/full", blocked.join("metrics.jsonl")).unwrap();
    let set = format!("checkpoint.dir={}", blocked.display());
    let outcome = dir.train(&["--set", &set, "--resume"]).run().assert_exit(0);
    assert_eq!(outcome.stderr.matches("warning: metrics.jsonl").count(), 1, "{outcome:?}");
    assert_eq!(latest_step(&blocked), losses.len() as u64);
    for run in ["run", "blocked"] {
        assert!(dir.path(run).join("latest/model.safetensors").is_file());
    }
    let weights = |run: &str| fs::read(dir.path(run).join("latest/model.safetensors")).unwrap();
    assert!(weights("run") == weights("blocked"));
}
