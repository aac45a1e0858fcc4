//! kill -9 at any moment, also while saving: `latest` always names a complete checkpoint, and the run that is resumed
//! until it ends writes what an undisturbed run writes.

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::util::{Dir, Random, assert_same_run, last_recorded_step, latest_step};

const NUM_KILLS: usize = 20;
const STEPS: usize = 40;

/// Saves after every step, so that much of the time goes into saving.
fn arguments(run: &Path) -> Vec<String> {
    let dir = format!("checkpoint.dir={}", run.display());
    ["--set", "checkpoint.every=1", "--set", "model.dropout=0.1", "--set", &dir].map(str::to_owned).to_vec()
}

/// How long an undisturbed run takes until its first step is recorded, and from there for each step.
fn undisturbed(dir: &Dir, run: &Path) -> (Duration, Duration) {
    let arguments = arguments(run);
    let start = Instant::now();
    let mut running = dir.train(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).spawn();
    assert!(running.wait_until(|| last_recorded_step(run) > 0), "{:?}", running.wait());
    let first_step = start.elapsed();
    running.wait().assert_exit(0);
    (first_step, (start.elapsed() - first_step) / STEPS as u32)
}

#[test]
fn a_run_killed_at_random_moments_ends_as_one_that_was_left_alone() {
    let dir = Dir::with_recipe(STEPS);
    let expected = dir.path("undisturbed");
    let (startup, per_step) = undisturbed(&dir, &expected);
    let mut random = Random::new(2_405_920);
    let mut fraction = |of: Duration| of * random.below(1000) as u32 / 1000;

    let mut num_kills = 0;
    let mut num_runs = 0;
    // A run that ends before its twenty kills is followed by another one.
    while num_kills < NUM_KILLS {
        let run = dir.path(&format!("killed-{num_runs}"));
        num_runs += 1;
        let mut saved = 0;
        loop {
            let mut arguments = arguments(&run);
            if run.exists() {
                arguments.push("--resume".to_owned());
            }
            let mut running = dir.train(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).spawn();
            if num_kills < NUM_KILLS {
                // One kill in four while it starts, the others at some moment of the first steps and saves.
                if num_kills % 4 == 0 {
                    sleep(fraction(startup));
                } else {
                    let num_steps = 1 + num_kills as u64 % 2;
                    running.wait_until(|| last_recorded_step(&run) >= saved + num_steps);
                    sleep(fraction(per_step * 6 / 5));
                }
            }
            if num_kills < NUM_KILLS && running.is_running() {
                running.kill();
                num_kills += 1;
            } else {
                running.wait().assert_exit(0);
                break;
            }
            let latest = latest_step(&run);
            assert!(latest >= saved, "latest went back from step {saved} to {latest}");
            saved = latest;
            if latest > 0 {
                dir.assert_model_is_ok(&run.join("latest"));
            }
        }
        assert_same_run(&expected, &run);
        assert_no_litter(&run);
    }
}

/// Half-written checkpoints of the killed processes are gone, and no more are kept than the recipe says.
fn assert_no_litter(run: &Path) {
    let names = |dir: &Path| -> Vec<String> {
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    for dir in [run.to_owned(), run.join("state")] {
        let names = names(&dir);
        assert!(!names.iter().any(|name| name.contains("tmp") || name.contains("partial")), "{names:?}");
        let num_checkpoints = names.iter().filter(|name| name.starts_with("step-")).count();
        // Two by keep_last, and the best.
        assert!((1..=3).contains(&num_checkpoints), "{names:?}");
    }
}
