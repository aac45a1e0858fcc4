//! The rate limit of a chain: how long a hotkey has to wait for its next commitment, and waiting for it.

use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};

use crate::chain::Chain;
use crate::error::{Failure, failure};
use crate::figures::{count, duration};
use crate::interrupt;
use crate::metrics::printer::Printer;

/// How long a hotkey has to wait for its next commitment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    /// The first block that takes it.
    pub until_block: u64,
    /// Blocks from now.
    pub num_blocks: u64,
}

impl Wait {
    /// How long the chain's rate limit makes a hotkey wait at a block; `None`: not at all.
    pub fn at(chain: &dyn Chain, hotkey: &str, block: u64) -> Result<Option<Self>> {
        let until_block = chain.next_commit_block(hotkey)?;
        Ok((until_block > block).then(|| Self { until_block, num_blocks: until_block - block }))
    }

    /// In words.
    pub fn sentence(&self, chain: &dyn Chain, hotkey: &str) -> String {
        format!(
            "{} takes the next commitment of {hotkey} at block {}, in about {}.",
            chain.describe(),
            count(self.until_block),
            duration(self.num_blocks as f64 * chain.seconds_per_block())
        )
    }
}

/// How long the chain's rate limit makes a hotkey wait from now on; `None`: not at all.
pub fn wait_for_rate_limit(chain: &dyn Chain, hotkey: &str) -> Result<Option<Wait>> {
    Wait::at(chain, hotkey, chain.block()?)
}

/// Waits until the rate limit is over.
pub fn sleep_until_allowed(chain: &dyn Chain, hotkey: &str, printer: &Printer) -> Result<()> {
    let Some(whole) = wait_for_rate_limit(chain, hotkey)? else { return Ok(()) };
    printer.note(&whole.sentence(chain, hotkey));
    let style = ProgressStyle::with_template("waiting {bar:30} {msg}").expect("the template is whole");
    let bar = printer.bar(whole.num_blocks).inspect(|bar| bar.set_style(style));
    let mut nap = Duration::ZERO;
    let interrupted = || Failure::Interrupted("interrupted while waiting; nothing was committed".to_owned());
    loop {
        sleep_interruptibly(nap);
        if interrupt::requested() {
            return Err(interrupted().into());
        }
        let wait = match wait_for_rate_limit(chain, hotkey) {
            Ok(Some(wait)) => wait,
            Ok(None) => break,
            // A node that is gone for a while ends no wait of an hour.
            Err(error) if matches!(failure(&error), Some(Failure::Unreachable(_))) => {
                printer.warn(&format!("still waiting: {error:#}"));
                nap = LONGEST_NAP;
                continue;
            }
            Err(error) if matches!(failure(&error), Some(Failure::Interrupted(_))) => return Err(interrupted().into()),
            Err(error) => return Err(error),
        };
        let seconds = wait.num_blocks as f64 * chain.seconds_per_block();
        if let Some(bar) = &bar {
            bar.set_position(whole.num_blocks.saturating_sub(wait.num_blocks));
            bar.set_message(format!("{} blocks to go, about {}", count(wait.num_blocks), duration(seconds)));
        }
        // Half of what is left, and in the end block by block.
        nap = Duration::from_secs_f64((seconds / 2.0).max(chain.seconds_per_block()).min(LONGEST_NAP.as_secs_f64()));
    }
    bar.inspect(ProgressBar::finish_and_clear);
    Ok(())
}

/// A chain that waits is asked again so often.
const LONGEST_NAP: Duration = Duration::from_secs(60);

/// Ends early where an orderly end is asked for.
fn sleep_interruptibly(nap: Duration) {
    let until = Instant::now() + nap;
    while !interrupt::requested() && Instant::now() < until {
        std::thread::sleep(until.saturating_duration_since(Instant::now()).min(Duration::from_millis(100)));
    }
}
