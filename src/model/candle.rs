//! The decoder as a definition: candle tensors, candle's autograd, nothing clever.
//!
//! It reads like the formulas, runs in f32 and (for tests) f64, and is what the native backend is held equal to.
//! Only operations whose gradient candle really computes are used: candle-nn's LayerNorm, `softmax_last_dim`, `rope`
//! and `sdpa` silently cut it; finite differences in the tests below prove what is here.
//!
//! Names carry their shape: b rows, t tokens per row, c width, h heads, d head size, v vocabulary; matrices are
//! (out, in). Dropout masks are those of `ops/random.rs`.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use candle_core::{D, DType, Device, Tensor, Var, WithDType};
use candle_nn::ops::{log_softmax, softmax};
use candle_nn::{Embedding, Linear, Module};

use super::arch::{Activation, Arch};
use super::layout::Layout;
use super::{DropoutSeed, LossAndGradients, Rows, check_tokens};
use crate::ops::random::{self, Mask};

/// The candle backend on the CPU.
pub struct CandleDecoder {
    arch: Arch,
    layout: Layout,
}

impl CandleDecoder {
    /// A decoder of that architecture; parameters come with each call.
    pub fn new(arch: &Arch) -> Self {
        Self { arch: arch.clone(), layout: Layout::of(arch) }
    }

    fn graph<'a, T: WithDType>(&'a self, params: &[T], purpose: Purpose) -> Result<Graph<'a>> {
        let expected = self.layout.len();
        ensure!(params.len() == expected, "{} parameters given, the model has {expected}", params.len());
        let weights = self.layout.params().iter().map(|param| {
            let weight = Tensor::from_slice(&params[param.range.clone()], param.shape.as_slice(), &Device::Cpu)?;
            Ok((
                param.name.as_str(),
                if purpose.is_training() { Var::from_tensor(&weight)?.into_inner() } else { weight },
            ))
        });
        Ok(Graph { arch: &self.arch, weights: weights.collect::<Result<_>>()?, dtype: T::DTYPE, purpose })
    }

    /// [`LossAndGradients::loss_and_gradients`] in either precision.
    fn accumulate<T: WithDType>(
        &self,
        params: &[T],
        gradients: &mut [T],
        rows: Rows,
        scale: T,
        dropout: Option<DropoutSeed>,
    ) -> Result<T> {
        check_tokens(&self.arch, rows)?;
        ensure!(rows.row_len >= 2, "a row of one token has nothing to predict");
        ensure!(gradients.len() == params.len(), "{} gradients for {} parameters", gradients.len(), params.len());
        let graph = self.graph(params, Purpose::Train(dropout))?;
        let loss = graph.losses_bt(&token_tensor(rows)?)?.mean_all()?;
        let computed = loss.backward()?;
        for param in self.layout.params() {
            let gradient =
                computed.get(graph.weight(&param.name)?).context("a parameter without influence on the loss")?;
            let gradient = gradient.flatten_all()?.to_vec1::<T>()?;
            for (sum, value) in gradients[param.range.clone()].iter_mut().zip(gradient) {
                *sum += scale * value;
            }
        }
        Ok(loss.to_scalar()?)
    }
}

impl LossAndGradients for CandleDecoder {
    fn loss_and_gradients(
        &mut self,
        params: &[f32],
        gradients: &mut [f32],
        rows: Rows,
        scale: f32,
        dropout: Option<DropoutSeed>,
    ) -> Result<f32> {
        self.accumulate(params, gradients, rows, scale, dropout)
    }

    fn row_losses(&mut self, params: &[f32], rows: Rows) -> Result<Vec<f32>> {
        check_tokens(&self.arch, rows)?;
        let Rows { tokens, num_rows, row_len } = rows;
        if row_len < 2 {
            return Ok(vec![f32::NAN; num_rows]);
        }
        let graph = self.graph(params, Purpose::Score)?;
        // Row by row: the logits of one row are large enough.
        let row_loss =
            |row| Ok(graph.losses_bt(&token_tensor(Rows::new(row, 1, row_len))?)?.mean_all()?.to_scalar()?);
        tokens.chunks_exact(row_len).map(row_loss).collect()
    }

    fn logits(&mut self, params: &[f32], rows: Rows) -> Result<Vec<f32>> {
        check_tokens(&self.arch, rows)?;
        let logits_btv = self.graph(params, Purpose::Score)?.logits_btv(&token_tensor(rows)?)?;
        Ok(logits_btv.flatten_all()?.to_vec1()?)
    }
}

fn token_tensor(rows: Rows) -> Result<Tensor> {
    Ok(Tensor::from_slice(rows.tokens, (rows.num_rows, rows.row_len), &Device::Cpu)?)
}

/// What a forward pass is for.
#[derive(Clone, Copy)]
enum Purpose {
    /// The weights are variables, so that candle keeps what the backward pass needs.
    Train(Option<DropoutSeed>),
    /// Nothing is kept.
    Score,
}

impl Purpose {
    fn is_training(self) -> bool {
        matches!(self, Self::Train(_))
    }
}

/// One forward pass.
struct Graph<'a> {
    arch: &'a Arch,
    weights: HashMap<&'a str, Tensor>,
    dtype: DType,
    purpose: Purpose,
}

impl Graph<'_> {
    fn weight(&self, name: &str) -> Result<&Tensor> {
        self.weights.get(name).with_context(|| format!("the layout has no parameter {name}"))
    }

    /// Cross-entropy of every position but the last of each row: (b, t - 1).
    fn losses_bt(&self, tokens_bt: &Tensor) -> Result<Tensor> {
        let num_targets = tokens_bt.dim(1)? - 1;
        let logits_btv = self.logits_btv(tokens_bt)?.narrow(1, 0, num_targets)?;
        let targets_bt1 = tokens_bt.narrow(1, 1, num_targets)?.contiguous()?.unsqueeze(2)?;
        let log_probabilities_btv = log_softmax(&logits_btv, D::Minus1)?.contiguous()?;
        Ok(log_probabilities_btv.gather(&targets_bt1, D::Minus1)?.squeeze(2)?.neg()?)
    }

    fn logits_btv(&self, tokens_bt: &Tensor) -> Result<Tensor> {
        let embedding = Embedding::new(self.weight("embed.token")?.clone(), self.arch.width);
        let token_embedding_btc = embedding.forward(tokens_bt)?;
        let position_embedding_tc = self.weight("embed.position")?.narrow(0, 0, tokens_bt.dim(1)?)?;
        let mut x_btc = token_embedding_btc.broadcast_add(&position_embedding_tc)?;
        x_btc = self.dropout(x_btc, random::EMBEDDING_SITE)?;
        for block in 0..self.arch.layers {
            let normed_btc = self.norm(&x_btc, &format!("blocks.{block}.norm1"))?;
            let branch_btc = self.attention(&normed_btc, block)?;
            x_btc = (x_btc + self.dropout(branch_btc, random::attention_branch_site(block))?)?;
            let normed_btc = self.norm(&x_btc, &format!("blocks.{block}.norm2"))?;
            let branch_btc = self.mlp(&normed_btc, block)?;
            x_btc = (x_btc + self.dropout(branch_btc, random::mlp_branch_site(block))?)?;
        }
        let head_vc = self.weight(if self.arch.tied_head { "embed.token" } else { "head.weight" })?;
        Ok(Linear::new(head_vc.clone(), None).forward(&self.norm(&x_btc, "norm")?)?)
    }

    /// LayerNorm with the biased variance, as PyTorch's.
    fn norm(&self, x_btc: &Tensor, name: &str) -> Result<Tensor> {
        let centred = x_btc.broadcast_sub(&x_btc.mean_keepdim(D::Minus1)?)?;
        let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
        let normed = centred.broadcast_div(&(variance + f64::from(self.arch.norm_eps))?.sqrt()?)?;
        let (gain_c, bias_c) = (self.weight(&format!("{name}.gain"))?, self.weight(&format!("{name}.bias"))?);
        Ok(normed.broadcast_mul(gain_c)?.broadcast_add(bias_c)?)
    }

    /// Multi-head attention in which a position sees itself and earlier ones.
    fn attention(&self, x_btc: &Tensor, block: usize) -> Result<Tensor> {
        let (b, t, c) = x_btc.dims3()?;
        let (h, d) = (self.arch.heads, self.arch.head_size());
        let qkv = self.linear(x_btc, &format!("blocks.{block}.attention.qkv"))?.reshape((b, t, 3, h, d))?;
        let part_bhtd =
            |part: usize| -> Result<Tensor> { Ok(qkv.narrow(2, part, 1)?.squeeze(2)?.transpose(1, 2)?.contiguous()?) };
        let (q_bhtd, k_bhtd, v_bhtd) = (part_bhtd(0)?, part_bhtd(1)?, part_bhtd(2)?);
        let scores_bhtt = (q_bhtd.matmul(&k_bhtd.transpose(2, 3)?)? * f64::from(self.arch.attention_scale(block)))?;
        let scores_bhtt = scores_bhtt.broadcast_add(&self.causal_mask_tt(t)?)?;
        let probabilities_bhtt = softmax(&scores_bhtt, D::Minus1)?;
        let probabilities_bhtt = self.dropout(probabilities_bhtt, random::attention_site(block))?;
        let mixed_btc = probabilities_bhtt.matmul(&v_bhtd)?.transpose(1, 2)?.reshape((b, t, c))?;
        self.linear(&mixed_btc, &format!("blocks.{block}.attention.out"))
    }

    /// 0 where a query may see a key, minus infinity where it may not.
    fn causal_mask_tt(&self, t: usize) -> Result<Tensor> {
        let mask = (0..t).flat_map(|q| (0..t).map(move |k| if k <= q { 0.0 } else { f32::NEG_INFINITY }));
        Ok(Tensor::from_iter(mask, &Device::Cpu)?.reshape((t, t))?.to_dtype(self.dtype)?)
    }

    fn mlp(&self, x_btc: &Tensor, block: usize) -> Result<Tensor> {
        let up = self.linear(x_btc, &format!("blocks.{block}.mlp.up"))?;
        self.linear(&activate(&up, self.arch.activation)?, &format!("blocks.{block}.mlp.down"))
    }

    fn linear(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let weight = self.weight(&format!("{name}.weight"))?.clone();
        let bias = self.weight(&format!("{name}.bias"))?.clone();
        Ok(Linear::new(weight, Some(bias)).forward(x)?)
    }

    fn dropout(&self, x: Tensor, site: u64) -> Result<Tensor> {
        let Purpose::Train(Some(DropoutSeed { rate, seed })) = self.purpose else { return Ok(x) };
        let mask = Mask::new(seed, site, rate);
        let scales = (0..x.elem_count() as u64).map(|index| mask.scale_at(index, 0));
        let scales = Tensor::from_iter(scales, &Device::Cpu)?.reshape(x.shape())?.to_dtype(self.dtype)?;
        Ok((x * scales)?)
    }
}

fn activate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    let gate = match activation {
        Activation::GeluTanh => {
            let cubic = (x + (x.sqr()? * x)? * 0.044715)?;
            (cubic * (2.0 / std::f64::consts::PI).sqrt())?.tanh()?
        }
        Activation::GeluErf => (x * std::f64::consts::FRAC_1_SQRT_2)?.erf()?,
        Activation::Relu => return Ok(x.relu()?),
    };
    Ok(((x * 0.5)? * (gate + 1.0)?)?)
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::model::{golden_tests, golden_training};

    /// `d loss = gradient . direction` in f64, one random direction per parameter, every option of the architecture.
    #[test]
    fn gradients_are_the_derivatives_of_the_loss() {
        let base = Arch { mlp_width: 10, ..Arch::gpt2(11, 7, 6, 2, 2) };
        let drop = Some(DropoutSeed { rate: 0.2, seed: 5 });
        let cases = [
            (base.clone(), None),
            (base.clone(), drop),
            (Arch { activation: Activation::GeluErf, tied_head: false, ..base.clone() }, None),
            (Arch { activation: Activation::Relu, scale_by_layer: true, heads: 3, ..base.clone() }, None),
            (Arch { scale_by_head_size: false, tied_head: false, norm_eps: 0.1, ..base }, drop),
        ];
        let (num_rows, row_len, step, scale) = (3, 5, 1e-5, 0.5);
        for (arch, dropout) in cases {
            let decoder = CandleDecoder::new(&arch);
            let number = |key, i| f64::from(random::uniform(3, key, i)) - 0.5;
            let params: Vec<f64> = (0..decoder.layout.len() as u64).map(|i| 1.5 * number(0, i)).collect();
            let tokens: Vec<u32> = (0..num_rows * row_len).map(|i| (i * i % arch.vocab_size) as u32).collect();
            let run = |params: &[f64]| {
                let mut gradients = vec![1.0; params.len()];
                let loss = decoder
                    .accumulate(params, &mut gradients, Rows::new(&tokens, num_rows, row_len), scale, dropout)
                    .unwrap();
                (loss, gradients)
            };
            let (loss, gradients) = run(&params);
            assert!(loss.is_finite());
            for param in decoder.layout.params() {
                let direction = |i: usize| number(1, i as u64);
                let shifted = |amount: f64| {
                    let mut params = params.clone();
                    param.range.clone().for_each(|i| params[i] += amount * direction(i));
                    run(&params).0
                };
                let numeric = scale * (shifted(step) - shifted(-step)) / (2.0 * step);
                let analytic: f64 = param.range.clone().map(|i| (gradients[i] - 1.0) * direction(i)).sum();
                let size: f64 = param.range.clone().map(|i| (gradients[i] - 1.0).powi(2)).sum::<f64>().sqrt();
                // Attention is blind to the keys' bias, one third of the qkv bias; no whole parameter is without effect.
                assert!(size > 1e-4, "{}: gradient {size}", param.name);
                assert!((numeric - analytic).abs() <= 1e-7 * size.max(0.01), "{}: {numeric} {analytic}", param.name);
            }
        }
    }

    /// The same in f64, for the measure of what f32 costs.
    pub(crate) struct DoubleDecoder(pub(crate) CandleDecoder);

    fn widen(values: &[f32]) -> Vec<f64> {
        values.iter().map(|&value| value.into()).collect()
    }

    impl LossAndGradients for DoubleDecoder {
        fn loss_and_gradients(
            &mut self,
            params: &[f32],
            gradients: &mut [f32],
            rows: Rows,
            scale: f32,
            dropout: Option<DropoutSeed>,
        ) -> Result<f32> {
            let (params, mut sums) = (widen(params), widen(gradients));
            let loss = self.0.accumulate(&params, &mut sums, rows, scale.into(), dropout)?;
            gradients.iter_mut().zip(sums).for_each(|(gradient, sum)| *gradient = sum as f32);
            Ok(loss as f32)
        }

        fn row_losses(&mut self, params: &[f32], rows: Rows) -> Result<Vec<f32>> {
            let graph = self.0.graph(&widen(params), Purpose::Score)?;
            let losses_bt = graph.losses_bt(&token_tensor(rows)?)?;
            Ok(losses_bt.mean(D::Minus1)?.to_dtype(DType::F32)?.to_vec1()?)
        }

        fn logits(&mut self, params: &[f32], rows: Rows) -> Result<Vec<f32>> {
            let graph = self.0.graph(&widen(params), Purpose::Score)?;
            let logits_btv = graph.logits_btv(&token_tensor(rows)?)?;
            Ok(logits_btv.flatten_all()?.to_dtype(DType::F32)?.to_vec1()?)
        }
    }

    #[test]
    fn single_precision_is_close_to_double_on_random_models() {
        golden_tests::check_equal(
            |arch| Box::new(CandleDecoder::new(arch)),
            |arch| Box::new(DoubleDecoder(CandleDecoder::new(arch))),
        );
    }

    #[test]
    fn golden_adamw_training_in_candle() {
        golden_training::check_adamw(|arch| Box::new(CandleDecoder::new(arch)));
    }

    #[test]
    fn golden_reference_miner_in_candle() {
        golden_training::check_reference_miner(|arch| Box::new(CandleDecoder::new(arch)));
    }

    #[test]
    fn golden_models_in_candle() {
        golden_tests::check_backend(|arch| Box::new(CandleDecoder::new(arch)));
    }
}
