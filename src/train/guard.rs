//! Keeps numbers that are not finite away from the weights.
//!
//! A step whose loss or gradient norm is infinite or not a number is skipped: weights and moments stay as they are and
//! the run goes on with the next batch. Several in a row mean that the run is lost, and it is stopped before it burns
//! more money; its last checkpoint is from before.

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

/// So many skipped steps in a row end the run.
const MAX_SKIPPED_IN_A_ROW: u64 = 10;

/// Counts skipped steps; part of the checkpoint, so that a resumed run decides the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Guard {
    /// In all.
    pub skipped: u64,
    /// Since the last step that was not.
    pub in_a_row: u64,
}

impl Guard {
    /// Whether the step may touch the weights.
    pub fn admits(&mut self, step: u64, loss: f64, gradient_norm: f64) -> Result<bool> {
        if loss.is_finite() && gradient_norm.is_finite() {
            self.in_a_row = 0;
            return Ok(true);
        }
        self.skipped += 1;
        self.in_a_row += 1;
        if self.in_a_row >= MAX_SKIPPED_IN_A_ROW {
            bail!(
                "the loss ({loss}) or the gradient norm ({gradient_norm}) was not finite in {} steps in a row, the last \
                 of them step {step}: the run has diverged; lower optimizer.learning_rate or lengthen \
                 schedule.warmup_steps, and go on from an earlier checkpoint with `init: {{dir: …}}`",
                self.in_a_row
            );
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn steps_that_are_not_finite_are_skipped_and_ten_in_a_row_end_the_run() {
        let mut guard = Guard::default();
        assert!(guard.admits(1, 2.0, 1.0).unwrap());
        for (loss, norm) in [(f64::NAN, 1.0), (2.0, f64::INFINITY), (f64::INFINITY, f64::NAN)] {
            assert!(!guard.admits(2, loss, norm).unwrap());
        }
        assert_eq!(guard, Guard { skipped: 3, in_a_row: 3 });
        assert!(guard.admits(3, 2.0, 1.0).unwrap());
        assert_eq!(guard, Guard { skipped: 3, in_a_row: 0 });
        for _ in 0..9 {
            assert!(!guard.admits(4, f64::NAN, 1.0).unwrap());
        }
        let message = guard.admits(13, f64::NAN, 1.0).unwrap_err().to_string();
        assert!(message.contains("10 steps in a row") && message.contains("step 13"), "{message}");
    }
}
