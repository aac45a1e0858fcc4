//! Several processes that train one model: who they are ([`World`]) and how they add up ([`Collective`]).
//!
//! Training is written for any world; [`Single`] is the world of one.

use anyhow::Result;

use crate::ops::ViewMut;

/// This process's place among all that train the same model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct World {
    /// From 0.
    pub rank: usize,
    /// Number of processes.
    pub size: usize,
}

impl World {
    /// The world of one.
    pub const SINGLE: Self = Self { rank: 0, size: 1 };

    /// Whether this process writes checkpoints and talks to the user.
    pub fn is_main(self) -> bool {
        self.rank == 0
    }
}

/// Sums over all processes. Every process must make the same calls in the same order.
pub trait Collective: Send {
    /// Who this process is.
    fn world(&self) -> World;

    /// Each element becomes its sum over all processes.
    fn sum(&self, values: ViewMut<f32>) -> Result<()>;

    /// The same for a few f64: losses, counts, flags.
    fn sum_scalars(&self, values: &mut [f64]) -> Result<()>;
}

/// The world of one: sums are what they were.
#[derive(Clone, Copy, Debug)]
pub struct Single;

impl Collective for Single {
    fn world(&self) -> World {
        World::SINGLE
    }

    fn sum(&self, _values: ViewMut<f32>) -> Result<()> {
        Ok(())
    }

    fn sum_scalars(&self, _values: &mut [f64]) -> Result<()> {
        Ok(())
    }
}
