//! How much is done in which time, and how text is read for that.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::time::{ClockId, clock_gettime};

use crate::data::packing::Packing;
use crate::data::tokenizer::Tokenizer;
use crate::data::{Ahead, Reading};
use crate::error::Failure;
use crate::interrupt;

/// What is short is done again until so much processor time is spent.
const MIN_CPU: Duration = Duration::from_secs(2);

/// Text is read as by one rank of a run that reads it in its own order.
pub(super) fn reading() -> Result<Reading> {
    Ok(Reading {
        tokenizer: Arc::new(Tokenizer::gpt2()?),
        packing: Packing { max_document_tokens: Some(1_024), shuffle_seed: None, interleave: 1 },
        ahead: Ahead { readers: 1, bytes: 1 << 20 },
        tokenizer_threads: 1,
        stages: Arc::default(),
    })
}

/// How much was done in which time.
pub(super) struct Speed {
    pub(super) amount: u64,
    /// On all cores together.
    cpu: Duration,
    /// On the clock.
    wall: Duration,
}

impl Speed {
    /// Of a work that is done once, and says how much it was.
    pub(super) fn once(work: impl FnOnce() -> Result<u64>) -> Result<Self> {
        check_interrupt()?;
        let (cpu, wall) = (cpu_time(), Instant::now());
        let amount = work()?;
        Ok(Self { amount, cpu: cpu_time().saturating_sub(cpu), wall: wall.elapsed() })
    }

    /// Of a work that can be done again and again. The first time, when memory is taken and caches are filled, does not count.
    pub(super) fn measure(mut work: impl FnMut() -> Result<u64>) -> Result<Self> {
        work()?;
        let mut speed = Self { amount: 0, cpu: Duration::ZERO, wall: Duration::ZERO };
        while speed.cpu < MIN_CPU {
            let Self { amount, cpu, wall } = Self::once(&mut work)?;
            speed.amount += amount;
            speed.cpu += cpu;
            speed.wall += wall;
        }
        Ok(speed)
    }

    /// In a second of processor time.
    pub(super) fn per_core(&self) -> f64 {
        self.amount as f64 / self.cpu.as_secs_f64()
    }

    /// In a second on the clock.
    pub(super) fn per_second(&self) -> f64 {
        self.amount as f64 / self.wall.as_secs_f64()
    }
}

/// The processor time that this process has taken so far.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

/// Ends the command if the user wants it.
pub(super) fn check_interrupt() -> Result<()> {
    if interrupt::requested() {
        return Err(Failure::Interrupted("stopped before all was measured".to_owned()).into());
    }
    Ok(())
}
