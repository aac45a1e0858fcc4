//! Where this process computes: what the user has chosen, made of what the machine has.

use anyhow::Result;

use crate::error::input;
use crate::figures::bytes;
use crate::gpu::cards::{self, Card};
use crate::gpu::{Dtype, Gpu, cuda};
use crate::metrics::printer::Printer;
use crate::model::gpu::memory_estimate;
use crate::recipe::{Backend, DeviceChoice, Resolved};

/// Why candle and a GPU do not go together.
pub(crate) const CANDLE_ON_CPU: &str =
    "the backend candle computes on the CPU only; choose the backend native, or the device cpu or auto";

/// Where this process computes; clones are the same place.
#[derive(Clone)]
pub enum Placement {
    /// This machine's cores.
    Cpu,
    /// A GPU.
    Gpu(Gpu),
}

impl Placement {
    /// Opens the device of a choice. `auto` takes the first GPU, and the CPU where there is none, where it will not open
    /// (which is told) and for candle.
    ///
    /// # Errors
    /// A GPU was asked for by name and is not to be had, or not with this backend.
    pub fn open(choice: DeviceChoice, backend: Backend, printer: &Printer) -> Result<Self> {
        match (choice, backend) {
            (DeviceChoice::Cuda(_), Backend::Candle) => Err(input(format!("device {choice}: {CANDLE_ON_CPU}"))),
            (DeviceChoice::Cuda(index), Backend::Native) => match cuda::open(index) {
                Ok(gpu) => Ok(Self::Gpu(gpu)),
                Err(error) => Err(input(format!("{error:#} Or choose the device cpu or auto."))),
            },
            (DeviceChoice::Cpu, _) | (DeviceChoice::Auto, Backend::Candle) => Ok(Self::Cpu),
            (DeviceChoice::Auto, Backend::Native) => Ok(match cuda::count() {
                // Nobody expects a GPU to work where there is nothing of CUDA.
                Err(_) if !cuda::is_expected() => Self::Cpu,
                Ok(0) => Self::Cpu,
                count => match count.and_then(|_| cuda::open(0)) {
                    Ok(gpu) => Self::Gpu(gpu),
                    Err(error) => {
                        printer.warn(&format!("the GPU cannot be used, and the CPU computes instead: {error:#}"));
                        Self::Cpu
                    }
                },
            }),
        }
    }

    /// Opens the device that a recipe's model is trained on. `auto` means the CPU where the first GPU has too little free
    /// memory, which is told.
    ///
    /// # Errors
    /// As [`Placement::open`].
    pub fn for_training(resolved: &Resolved, printer: &Printer) -> Result<Self> {
        let (choice, train) = (resolved.device(), &resolved.recipe.train);
        let placement = Self::open(choice, resolved.recipe.model.backend, printer)?;
        let Self::Gpu(gpu) = &placement else { return Ok(placement) };
        let needed = memory_estimate(&resolved.arch, train.micro_batch, resolved.row_len, train.recompute).total();
        let [free, _] = gpu.memory()?;
        if choice == DeviceChoice::Auto && needed > free as u128 {
            printer.warn(&format!(
                "the run needs {} of memory and the {} has {} free: the CPU computes instead (train.recompute, or a smaller \
                 train.micro_batch, takes less; --device cuda tries all the same)",
                bytes(needed),
                gpu.name(),
                bytes(free as u128)
            ));
            return Ok(Self::Cpu);
        }
        Ok(placement)
    }

    /// The card's name, or `cpu`: part of what determines a run's bits.
    pub fn name(&self) -> String {
        match self {
            Self::Cpu => "cpu".to_owned(),
            Self::Gpu(gpu) => gpu.name(),
        }
    }

    /// The card whose limits are known. Those of cards that [`cards`] does not list, and of the CPU, are not.
    pub fn card(&self) -> Option<&'static Card> {
        match self {
            Self::Cpu => None,
            Self::Gpu(gpu) => cards::find(&gpu.name()),
        }
    }

    /// 10¹² floating-point operations per second that it can do at most in products of a number format, if that is known.
    pub fn peak_tflops(&self, dtype: Dtype) -> Option<f64> {
        self.card().map(|card| card.tflops(dtype))
    }
}

/// Whether a choice means a GPU, on this machine if it is left to the machine; opens nothing.
pub fn may_be_gpu(choice: DeviceChoice, backend: Backend) -> bool {
    match choice {
        DeviceChoice::Cpu => false,
        DeviceChoice::Cuda(_) => true,
        DeviceChoice::Auto => backend == Backend::Native && cuda::count().is_ok_and(|count| count > 0),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::error::exit_code;
    use crate::gpu::emulator;

    #[test]
    fn only_a_listed_card_has_a_peak() {
        assert_eq!(Placement::Cpu.peak_tflops(Dtype::F32), None);
        for gpu in emulator::gpus().into_iter().flatten() {
            assert_eq!(Placement::Gpu(gpu).peak_tflops(Dtype::Bf16), None);
        }
    }

    #[test]
    fn candle_computes_on_the_cpu() {
        let printer = Printer::new(true);
        let error = Placement::open(DeviceChoice::Cuda(1), Backend::Candle, &printer).err().unwrap();
        assert_eq!(exit_code(&error), 2);
        assert!(error.to_string().starts_with("device cuda:1: the backend candle"), "{error}");
        for choice in [DeviceChoice::Auto, DeviceChoice::Cpu] {
            assert_eq!(Placement::open(choice, Backend::Candle, &printer).unwrap().name(), "cpu");
        }
    }
}
