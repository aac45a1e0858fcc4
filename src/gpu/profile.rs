//! What a GPU did, operation by operation: how long each took, and its two numbers, the arithmetic it does and the fewest bytes
//! it can move. The larger of the times that these take at a card's peaks is the floor: nothing runs much faster than that.
//!
//! Each operation is followed by a mark in the queue; from the mark before it to its own is its time. That is the time the
//! device worked on it, and what it lay idle before: a few microseconds from one kernel to the next while the host is
//! ahead, the wait for what was uploaded beside the queue, and all that the host does where it has waited for a result,
//! which is listed as [`HOST`]. Without a profile an operation costs nothing for this but looking at a flag.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Result;

use super::cards::Card;
use super::{Driver, Dtype, Product};

/// What the device's idle time is listed as while the host works on what it has downloaded.
pub const HOST: &str = "host";

/// The two numbers of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Floating-point operations.
    pub flops: u64,
    /// The format of their operands.
    pub dtype: Dtype,
    /// Bytes: each input read once, each output written once.
    pub bytes: u64,
}

impl Cost {
    /// An operation that only moves bytes.
    pub fn moving(bytes: u64) -> Self {
        Self { flops: 0, dtype: Dtype::F32, bytes }
    }

    /// That of a matrix product, with the argument of an epilogue.
    pub fn of(product: &Product) -> Self {
        let Product { sizes: [m, n, k], a, beta, c: (_, destination), bias, epilogue, .. } = *product;
        let matrices = 1 + usize::from(beta != 0.0) + usize::from(epilogue.is_some());
        let bias = if bias.is_some() { n * a.dtype.bytes() } else { 0 };
        let bytes = (m * k + k * n) * a.dtype.bytes() + matrices * m * n * destination.bytes() + bias;
        Self { flops: 2 * (m * n * k) as u64, dtype: a.dtype, bytes: bytes as u64 }
    }

    /// The least seconds it takes on a card.
    pub fn floor_seconds(&self, card: &Card) -> f64 {
        (self.flops as f64 / card.tflops(self.dtype) / 1e12).max(self.bytes as f64 / card.memory_gb_per_s / 1e9)
    }
}

/// Something that was done.
#[derive(Clone, Debug, PartialEq)]
pub struct Operation {
    /// The kernel's name, or the product's sizes, layout and formats.
    pub name: String,
    /// What it takes at least.
    pub cost: Cost,
    /// Which product it is, if it is one.
    pub product: Option<Product>,
    /// How long it took.
    pub seconds: f64,
}

impl Operation {
    pub(super) fn of(name: &str, cost: Cost) -> Self {
        Self { name: name.to_owned(), cost, product: None, seconds: 0.0 }
    }

    /// A matrix product that is yet to be timed.
    pub fn of_product(product: Product) -> Self {
        let Product { sizes: [m, n, k], a, b, beta, c: (_, destination), .. } = product;
        let letter = |transposed| if transposed { 't' } else { 'n' };
        let (layout, sign) = ([a, b].map(|operand| letter(operand.transposed)), if beta == 0.0 { "=" } else { "+=" });
        let [from, to] = [a.dtype, destination].map(Dtype::suffix);
        let name = format!("product {m} x {n} x {k} {}{}, {to} {sign} {from}", layout[0], layout[1]);
        Self { name, cost: Cost::of(&product), product: Some(product), seconds: 0.0 }
    }
}

/// What a [`super::Gpu`] writes down while it is asked to.
#[derive(Default)]
pub(super) struct Profile {
    is_on: AtomicBool,
    entries: Mutex<Entries>,
}

#[derive(Default)]
struct Entries {
    /// The mark at the beginning, then one behind each operation.
    marks: Vec<usize>,
    operations: Vec<Operation>,
    host_waited: bool,
}

impl Profile {
    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn begin(&self, driver: &dyn Driver) {
        *self.entries() = Entries { marks: vec![driver.mark()], ..Entries::default() };
        self.is_on.store(true, Ordering::Relaxed);
    }

    pub(super) fn end(&self, driver: &dyn Driver) -> Result<Vec<Operation>> {
        self.is_on.store(false, Ordering::Relaxed);
        let Entries { marks, mut operations, .. } = std::mem::take(&mut *self.entries());
        let result = operations.iter_mut().zip(marks.windows(2)).try_for_each(|(operation, pair)| {
            operation.seconds = driver.seconds_between(pair[0], pair[1])?;
            Ok(())
        });
        driver.forget_marks();
        result.map(|()| operations)
    }

    /// Queues an operation, and notes it where that is wanted.
    pub(super) fn note(&self, driver: &dyn Driver, operation: impl FnOnce() -> Operation, queue: impl FnOnce()) {
        if !self.is_on.load(Ordering::Relaxed) {
            return queue();
        }
        let mut entries = self.entries();
        if std::mem::take(&mut entries.host_waited) {
            entries.push(driver, Operation::of(HOST, Cost::moving(0)));
        }
        queue();
        entries.push(driver, operation());
    }

    /// The host waits for everything: the device has nothing to do until the next operation is queued.
    pub(super) fn host_waits(&self) {
        if self.is_on.load(Ordering::Relaxed) {
            self.entries().host_waited = true;
        }
    }
}

impl Entries {
    fn push(&mut self, driver: &dyn Driver, operation: Operation) {
        self.operations.push(operation);
        self.marks.push(driver.mark());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use half::bf16;

    use super::*;
    use crate::gpu::{cast, linear, testing};

    #[test]
    fn operations_are_listed_in_order_with_their_two_numbers() {
        let Some([gpu, _]) = testing::gpus() else { return };
        let [m, n, k] = [24, 16, 8];
        let (x, weight) = (gpu.zeros::<f32>(m * k).unwrap(), gpu.zeros::<bf16>(n * k).unwrap());
        let (mut narrow, mut y) = (gpu.zeros::<bf16>(m * k).unwrap(), gpu.zeros::<f32>(m * n).unwrap());
        gpu.begin_profile();
        cast::to_bf16(&gpu, narrow.view_mut(), x.view());
        linear::forward(&gpu, [m, n, k], y.view_mut(), narrow.view(), weight.view(), None);
        gpu.to_vec(y.view()).unwrap();
        gpu.zero(y.view_mut());
        let operations = gpu.end_profile().unwrap();
        let names: Vec<&str> = operations.iter().map(|operation| operation.name.as_str()).collect();
        assert_eq!(names, ["cast_f32_to_bf16", "product 24 x 16 x 8 nt, f32 = bf16", HOST, "zero"]);
        let cost: Vec<Cost> = operations.iter().map(|operation| operation.cost).collect();
        let product = Cost { flops: 2 * 24 * 16 * 8, dtype: Dtype::Bf16, bytes: 2 * (24 * 8 + 8 * 16) + 4 * 24 * 16 };
        assert_eq!(cost, [Cost::moving(6 * 24 * 8), product, Cost::moving(0), Cost::moving(4 * 24 * 16)]);
        assert!(operations.iter().all(|operation| operation.seconds >= 0.0) && operations[1].seconds > 0.0);
        assert!(operations[1].product.is_some());
        cast::to_bf16(&gpu, narrow.view_mut(), x.view());
        gpu.begin_profile();
        assert_eq!(gpu.end_profile().unwrap(), []);
    }

    #[test]
    fn the_floor_is_the_larger_of_two_times() {
        let card = Card { name: "a card", dense_bf16_tflops: 100.0, f32_tflops: 10.0, memory_gb_per_s: 1000.0 };
        let cost = |flops, dtype, bytes| Cost { flops, dtype, bytes }.floor_seconds(&card);
        assert_eq!(cost(1_000_000_000_000, Dtype::Bf16, 1_000_000_000), 0.01);
        assert_eq!(cost(1_000_000_000_000, Dtype::F32, 1_000_000_000), 0.1);
        assert_eq!(cost(1_000_000_000, Dtype::F32, 1_000_000_000), 0.001);
    }
}
