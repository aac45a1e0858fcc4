//! What cards can do at most, as NVIDIA prints it: what a measured speed is a share of.
//!
//! A card is known by the exact name that the driver tells. Whatever is not listed here, a slice of a card (MIG) included,
//! has no known peak, and nothing is guessed from a name that looks alike: an H100 is sold with three different peaks.
//!
//! Data sheets like to print what structured sparsity would double; the figures here are the dense ones. Products of bf16
//! are those accumulated in f32, which GeForce cards do at half the speed of the figure that is advertised for f16. Products
//! of f32 are those in full precision, outside the tensor cores, for that is how they are computed here.

use super::Dtype;

/// A card's limits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Card {
    /// As the driver writes it (`cuDeviceGetName`).
    pub name: &'static str,
    /// 10¹² floating-point operations per second in products of bf16, accumulated in f32, without sparsity.
    pub dense_bf16_tflops: f64,
    /// The same in f32, without TF32.
    pub f32_tflops: f64,
    /// 10⁹ bytes per second to and from the card's memory.
    pub memory_gb_per_s: f64,
}

impl Card {
    const fn new(name: &'static str, dense_bf16_tflops: f64, f32_tflops: f64, memory_gb_per_s: f64) -> Self {
        Self { name, dense_bf16_tflops, f32_tflops, memory_gb_per_s }
    }

    /// 10¹² floating-point operations per second in products of a number format.
    pub fn tflops(&self, dtype: Dtype) -> f64 {
        match dtype {
            Dtype::F32 => self.f32_tflops,
            Dtype::Bf16 => self.dense_bf16_tflops,
        }
    }
}

/// The card of exactly this name, if its limits are known.
pub fn find(name: &str) -> Option<&'static Card> {
    CARDS.iter().find(|card| card.name == name)
}

/// All names that are known.
pub fn names() -> impl Iterator<Item = &'static str> {
    CARDS.iter().map(|card| card.name)
}

/// Name, dense bf16 and f32 TFLOP/s, GB/s.
static CARDS: &[Card] = &[
    // "NVIDIA H100 Tensor Core GPU Architecture" (white paper), bf16 with f32 accumulation: 989.4 and, PCIe, 756. The rest is
    // of the H100 data sheet and the H100 PCIe product brief (PB-11133).
    Card::new("NVIDIA H100 80GB HBM3", 989.4, 67.0, 3350.0),
    Card::new("NVIDIA H100 PCIe", 756.0, 51.0, 2000.0),
    // H100 NVL data sheet: 1,671 with sparsity.
    Card::new("NVIDIA H100 NVL", 835.5, 60.0, 3900.0),
    // H200 data sheet: 1,979 with sparsity, which is the H100's 2 x 989.4, for it is the same chip; NVL 1,671.
    Card::new("NVIDIA H200", 989.4, 67.0, 4800.0),
    Card::new("NVIDIA H200 NVL", 835.5, 60.0, 4800.0),
    // GH200 Grace Hopper Superchip data sheet: the same chip again, with 96 GB of HBM3 or 144 GB of HBM3e.
    Card::new("NVIDIA GH200 480GB", 989.4, 67.0, 4000.0),
    Card::new("NVIDIA GH200 144G HBM3e", 989.4, 67.0, 4900.0),
    // Blackwell data sheet (HGX B200, GB200 NVL72), figures of one GPU: 4.5 and 5 PFLOP/s with sparsity.
    Card::new("NVIDIA B200", 2250.0, 75.0, 7700.0),
    Card::new("NVIDIA GB200", 2500.0, 80.0, 8000.0),
    // A100 data sheet, which prints dense figures.
    Card::new("NVIDIA A100-SXM4-40GB", 312.0, 19.5, 1555.0),
    Card::new("NVIDIA A100-SXM4-80GB", 312.0, 19.5, 2039.0),
    Card::new("NVIDIA A100-PCIE-40GB", 312.0, 19.5, 1555.0),
    Card::new("NVIDIA A100 80GB PCIe", 312.0, 19.5, 1935.0),
    // A30, A40 and A10 data sheets, which print both figures.
    Card::new("NVIDIA A30", 165.0, 10.3, 933.0),
    Card::new("NVIDIA A40", 149.7, 37.4, 696.0),
    Card::new("NVIDIA A10", 125.0, 31.2, 600.0),
    // "NVIDIA Ampere GA102 GPU Architecture" (white paper), version 2: 154.8 / 309.6 with sparsity.
    Card::new("NVIDIA RTX A6000", 154.8, 38.7, 768.0),
    // L4 data sheet: 242 with sparsity. L40 and L40S data sheets, which print both figures: 181.05 | 362.1 and, as it is
    // printed, 362.05 | 733.
    Card::new("NVIDIA L4", 121.0, 30.3, 300.0),
    Card::new("NVIDIA L40", 181.05, 90.5, 864.0),
    Card::new("NVIDIA L40S", 362.05, 91.6, 864.0),
    // "NVIDIA RTX Blackwell PRO GPU Architecture" (white paper), table 4: bf16 with f32 accumulation.
    Card::new("NVIDIA RTX 6000 Ada Generation", 364.2, 91.1, 960.0),
    Card::new("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 503.8, 126.0, 1792.0),
    // "NVIDIA RTX Blackwell GPU Architecture" (white paper), table 3: 71.2 / 142.4, 165.2 / 330.4 and 209.5 / 419 with
    // sparsity, all bf16 with f32 accumulation.
    Card::new("NVIDIA GeForce RTX 3090", 71.2, 35.6, 936.0),
    Card::new("NVIDIA GeForce RTX 4090", 165.2, 82.6, 1008.0),
    Card::new("NVIDIA GeForce RTX 5090", 209.5, 104.8, 1792.0),
];

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_card_is_found_by_its_exact_name_alone() {
        let card = find("NVIDIA H100 80GB HBM3").unwrap();
        assert_eq!((card.tflops(Dtype::Bf16), card.tflops(Dtype::F32), card.memory_gb_per_s), (989.4, 67.0, 3350.0));
        for name in ["NVIDIA H100", "nvidia h100 80gb hbm3", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "emulator", "cpu", ""]
        {
            assert_eq!(find(name), None, "{name}");
        }
    }

    #[test]
    fn no_name_stands_twice() {
        for card in CARDS {
            assert!(std::ptr::eq(find(card.name).unwrap(), card), "{}", card.name);
        }
    }

    /// Twice a tensor core's rate, with sparsity or with f16 accumulation on a GeForce, is the error to fear. How many
    /// products of bf16 a chip does to one of f32 is part of its design, and a doubled figure shows there.
    #[test]
    fn no_figure_is_that_with_sparsity() {
        for card in CARDS {
            let ratio = card.dense_bf16_tflops / card.f32_tflops;
            let expected = match card.name {
                name if name.contains("GeForce") || name == "NVIDIA L40" => 2.0,
                name if name.contains("A100") || name == "NVIDIA A30" => 16.0,
                name if name.contains("B200") => 30.0,
                name if name.contains("H100") || name.contains("H200") => 14.5,
                _ => 4.0,
            };
            assert!((ratio / expected - 1.0).abs() < 0.06, "{}: {ratio} of {expected}", card.name);
        }
    }
}
