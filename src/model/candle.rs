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

use super::arch::{Activation, Arch, NormKind, Pairing, Position, Residual, Rotary};
use super::layout::Layout;
use super::{DropoutSeed, LossAndGradients, Rows, check_tokens};
use crate::ops::random::{self, Mask};

/// The candle backend on the CPU.
pub struct CandleDecoder {
    arch: Arch,
    layout: Layout,
    rotary_len: usize,
}

impl CandleDecoder {
    /// A decoder of that architecture; parameters come with each call.
    pub fn new(arch: &Arch) -> Self {
        Self { arch: arch.clone(), layout: Layout::of(arch), rotary_len: 0 }
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
        let weights = weights.collect::<Result<_>>()?;
        Ok(Graph { arch: &self.arch, weights, dtype: T::DTYPE, purpose, rotary_len: self.rotary_len })
    }

    /// [`LossAndGradients::loss_and_gradients`] in either precision.
    fn accumulate<T: WithDType>(
        &mut self,
        params: &[T],
        gradients: &mut [T],
        rows: Rows,
        scale: T,
        dropout: Option<DropoutSeed>,
    ) -> Result<T> {
        check_tokens(&self.arch, rows)?;
        ensure!(rows.row_len >= 2, "a row of one token has nothing to predict");
        ensure!(gradients.len() == params.len(), "{} gradients for {} parameters", gradients.len(), params.len());
        self.rotary_len = self.arch.rotary_len(rows.row_len, self.rotary_len);
        let graph = self.graph(params, Purpose::Train(dropout))?;
        let loss = graph.losses_bt(&token_tensor(rows)?)?.mean_all()?;
        let computed = loss.backward()?;
        for param in self.layout.params().iter().filter(|param| param.is_used()) {
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
        self.rotary_len = self.arch.rotary_len(row_len, self.rotary_len);
        let graph = self.graph(params, Purpose::Score)?;
        // Row by row: the logits of one row are large enough.
        let row_loss =
            |row| Ok(graph.losses_bt(&token_tensor(Rows::new(row, 1, row_len))?)?.mean_all()?.to_scalar()?);
        tokens.chunks_exact(row_len).map(row_loss).collect()
    }

    fn logits(&mut self, params: &[f32], rows: Rows) -> Result<Vec<f32>> {
        check_tokens(&self.arch, rows)?;
        self.rotary_len = self.arch.rotary_len(rows.row_len, self.rotary_len);
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
    /// Row length that rotary frequencies are for.
    rotary_len: usize,
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
        let arch = self.arch;
        let mut x_btc = self.embed(tokens_bt)?;
        if arch.embedding_norm {
            x_btc = self.norm(&x_btc, "embed.norm")?;
        }
        x_btc = self.dropout(x_btc, random::EMBEDDING_SITE)?;
        for block in 0..arch.layers {
            let norm = |x: &Tensor, which: &str| self.norm(x, &format!("blocks.{block}.{which}"));
            let attention = |x: &Tensor| self.dropout(self.attention(x, block)?, random::attention_branch_site(block));
            let mlp = |x: &Tensor| self.dropout(self.mlp(x, block)?, random::mlp_branch_site(block));
            x_btc = match arch.residual {
                Residual::Serial => {
                    let middle = (&x_btc + attention(&norm(&x_btc, "norm1")?)?)?;
                    (&middle + mlp(&norm(&middle, "norm2")?)?)?
                }
                Residual::Parallel => {
                    let (normed1, normed2) = (norm(&x_btc, "norm1")?, norm(&x_btc, "norm2")?);
                    ((x_btc + attention(&normed1)?)? + mlp(&normed2)?)?
                }
                Residual::ParallelOneNorm => {
                    let normed = norm(&x_btc, "norm1")?;
                    ((x_btc + attention(&normed)?)? + mlp(&normed)?)?
                }
                Residual::PostNorm => {
                    let middle = norm(&(&x_btc + attention(&x_btc)?)?, "norm1")?;
                    norm(&(&middle + mlp(&middle)?)?, "norm2")?
                }
            };
        }
        if arch.final_norm() {
            x_btc = self.norm(&x_btc, "norm")?;
        }
        let head_vc = self.weight(if arch.tied_head { "embed.token" } else { "head.weight" })?;
        let bias_v = if arch.head_bias { Some(self.weight("head.bias")?.clone()) } else { None };
        Ok(Linear::new(head_vc.clone(), bias_v).forward(&x_btc)?)
    }

    /// Token embedding, scaled, and learned positions.
    fn embed(&self, tokens_bt: &Tensor) -> Result<Tensor> {
        let token_vc = self.weight("embed.token")?;
        let mut x_btc = Embedding::new(token_vc.clone(), self.arch.width).forward(tokens_bt)?;
        if let Some(frozen) = self.arch.frozen_id {
            // The frozen id's vectors come from the same numbers, cut off from their variable.
            let is_frozen = tokens_bt.eq(frozen)?.to_dtype(self.dtype)?.unsqueeze(2)?;
            let is_free = (1.0 - &is_frozen)?;
            let cut_btc = Embedding::new(token_vc.detach(), self.arch.width).forward(tokens_bt)?;
            x_btc = (x_btc.broadcast_mul(&is_free)? + cut_btc.broadcast_mul(&is_frozen)?)?;
        }
        x_btc = (x_btc * f64::from(self.arch.embedding_scale))?;
        if let Position::Learned { offset } = self.arch.position {
            let position_tc = self.weight("embed.position")?.narrow(0, offset, tokens_bt.dim(1)?)?;
            x_btc = x_btc.broadcast_add(&position_tc)?;
        }
        Ok(x_btc)
    }

    /// LayerNorm with the biased variance, as PyTorch's, or the norm by the root mean square.
    fn norm(&self, x_btc: &Tensor, name: &str) -> Result<Tensor> {
        let centred = match self.arch.norm {
            NormKind::Layer => x_btc.broadcast_sub(&x_btc.mean_keepdim(D::Minus1)?)?,
            NormKind::Rms | NormKind::RmsOnePlus => x_btc.clone(),
        };
        let mean_square = centred.sqr()?.mean_keepdim(D::Minus1)?;
        let normed = centred.broadcast_div(&(mean_square + f64::from(self.arch.norm_eps))?.sqrt()?)?;
        let mut gain_c = self.weight(&format!("{name}.gain"))?.clone();
        if self.arch.norm == NormKind::RmsOnePlus {
            gain_c = (gain_c + 1.0)?;
        }
        let scaled = normed.broadcast_mul(&gain_c)?;
        match self.arch.norm_bias() {
            true => Ok(scaled.broadcast_add(self.weight(&format!("{name}.bias"))?)?),
            false => Ok(scaled),
        }
    }

    /// Multi-head attention; several query heads may share a head of keys and values.
    fn attention(&self, x_btc: &Tensor, block: usize) -> Result<Tensor> {
        let arch = self.arch;
        let (b, t, _) = x_btc.dims3()?;
        let (h, kv, d) = (arch.heads, arch.kv_heads, arch.head_size);
        let name = format!("blocks.{block}.attention");
        let qkv = self.linear(x_btc, &format!("{name}.qkv"), arch.qkv_bias)?.reshape((b, t, h + 2 * kv, d))?;
        let part_bhtd = |first: usize, heads: usize| -> Result<Tensor> {
            Ok(qkv.narrow(2, first, heads)?.transpose(1, 2)?.contiguous()?)
        };
        // (b, kv, d) becomes (b, h, d): each head repeated for its group.
        let repeat = |x: Tensor| -> Result<Tensor> {
            let grouped = x.unsqueeze(2)?.broadcast_as((b, kv, h / kv, t, d))?;
            Ok(grouped.contiguous()?.reshape((b, h, t, d))?)
        };
        let q_bhtd = self.rotate(&part_bhtd(0, h)?)?;
        let k_bhtd = repeat(self.rotate(&part_bhtd(h, kv)?)?)?;
        let v_bhtd = repeat(part_bhtd(h + kv, kv)?)?;
        let mut scores_bhtt = (q_bhtd.matmul(&k_bhtd.transpose(2, 3)?)? * f64::from(arch.attention_scale(block)))?;
        if let Some(bias) = arch.key_bias(t) {
            let bias_h1t = Tensor::from_vec(bias, (h, 1, t), &Device::Cpu)?.to_dtype(self.dtype)?;
            scores_bhtt = scores_bhtt.broadcast_add(&bias_h1t)?;
        }
        if arch.causal {
            scores_bhtt = scores_bhtt.broadcast_add(&self.causal_mask_tt(t)?)?;
        }
        let probabilities_bhtt = softmax(&scores_bhtt, D::Minus1)?;
        let probabilities_bhtt = self.dropout(probabilities_bhtt, random::attention_site(block))?;
        let mixed = probabilities_bhtt.matmul(&v_bhtd)?.transpose(1, 2)?.reshape((b, t, h * d))?;
        self.linear(&mixed, &format!("{name}.out"), arch.out_bias)
    }

    /// Rotary embedding of (b, heads, t, d), if the model has one.
    fn rotate(&self, x_bhtd: &Tensor) -> Result<Tensor> {
        let Position::Rotary(Rotary { size, pairing, .. }) = self.arch.position else { return Ok(x_bhtd.clone()) };
        let (b, h, t, d) = x_bhtd.dims4()?;
        let (frequencies, divisor) = self.arch.rotary_frequencies(self.rotary_len).context("it is rotary")?;
        let angles = (0..t).flat_map(|position| {
            let position = position as f32 / divisor;
            frequencies.iter().map(move |frequency| f64::from(position * frequency))
        });
        let angles = Tensor::from_iter(angles, &Device::Cpu)?.reshape((t, size / 2))?;
        // Rounded to f32 as in the native backend and the reference, also where the rest is f64.
        let rounded = |x: Tensor| -> Result<Tensor> { Ok(x.to_dtype(DType::F32)?.to_dtype(self.dtype)?) };
        let (cos, sin) = (rounded(angles.cos()?)?, rounded(angles.sin()?)?);
        let turned = x_bhtd.narrow(3, 0, size)?;
        let (first, second) = match pairing {
            Pairing::Halves => (turned.narrow(3, 0, size / 2)?, turned.narrow(3, size / 2, size / 2)?),
            Pairing::Interleaved => {
                let pairs = turned.contiguous()?.reshape((b, h, t, size / 2, 2))?;
                (pairs.narrow(4, 0, 1)?.squeeze(4)?, pairs.narrow(4, 1, 1)?.squeeze(4)?)
            }
        };
        let turned_first = (first.broadcast_mul(&cos)? - second.broadcast_mul(&sin)?)?;
        let turned_second = (second.broadcast_mul(&cos)? + first.broadcast_mul(&sin)?)?;
        let turned = match pairing {
            Pairing::Halves => Tensor::cat(&[turned_first, turned_second], 3)?,
            Pairing::Interleaved => Tensor::stack(&[turned_first, turned_second], 4)?.reshape((b, h, t, size))?,
        };
        match d - size {
            0 => Ok(turned),
            rest => Ok(Tensor::cat(&[turned, x_bhtd.narrow(3, size, rest)?], 3)?),
        }
    }

    /// 0 where a query may see a key, minus infinity where it may not.
    fn causal_mask_tt(&self, t: usize) -> Result<Tensor> {
        let window = self.arch.window.unwrap_or(usize::MAX);
        let is_seen = move |q: usize, k: usize| k <= q && q - k < window;
        let mask = (0..t).flat_map(|q| (0..t).map(move |k| if is_seen(q, k) { 0.0 } else { f32::NEG_INFINITY }));
        Ok(Tensor::from_iter(mask, &Device::Cpu)?.reshape((t, t))?.to_dtype(self.dtype)?)
    }

    fn mlp(&self, x_btc: &Tensor, block: usize) -> Result<Tensor> {
        let arch = self.arch;
        let up = self.linear(x_btc, &format!("blocks.{block}.mlp.up"), arch.mlp_bias)?;
        let activated = match arch.gated {
            true => {
                let (gate, up) = (up.narrow(2, 0, arch.mlp_width)?, up.narrow(2, arch.mlp_width, arch.mlp_width)?);
                (activate(&gate, arch.activation)? * up)?
            }
            false => activate(&up, arch.activation)?,
        };
        self.linear(&activated, &format!("blocks.{block}.mlp.down"), arch.mlp_bias)
    }

    fn linear(&self, x: &Tensor, name: &str, has_bias: bool) -> Result<Tensor> {
        let weight = self.weight(&format!("{name}.weight"))?.clone();
        let bias = if has_bias { Some(self.weight(&format!("{name}.bias"))?.clone()) } else { None };
        Ok(Linear::new(weight, bias).forward(&x.contiguous()?)?)
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
        // x / (1 + exp(-x)) = 0.5 x (1 + tanh(x / 2)), which does not overflow.
        Activation::Silu => (x * 0.5)?.tanh()?,
        Activation::Relu => return Ok(x.relu()?),
        Activation::Relu2 => return Ok(x.relu()?.sqr()?),
    };
    Ok(((x * 0.5)? * (gate + 1.0)?)?)
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::model::arch::RopeScaling;
    use crate::model::golden_training::{ADAMW_IN_F32, REFERENCE_MINER_IN_F32, on_cpu};
    use crate::model::{golden_tests, golden_training};

    /// `d loss = gradient . direction` in f64, one random direction per parameter, every option of the architecture.
    #[test]
    fn gradients_are_the_derivatives_of_the_loss() {
        let base = Arch { mlp_width: 10, ..Arch::gpt2(11, 7, 6, 2, 2) };
        let drop = Some(DropoutSeed { rate: 0.2, seed: 5 });
        let rotary =
            Rotary { size: 2, pairing: Pairing::Interleaved, base: 10.0, scaling: RopeScaling::None, bounded: false };
        let position = Position::Rotary(Rotary { size: 4, pairing: Pairing::Halves, ..rotary });
        let grouped = Arch {
            heads: 4,
            kv_heads: 2,
            head_size: 4,
            gated: true,
            norm: NormKind::Rms,
            activation: Activation::Silu,
            position,
            qkv_bias: false,
            out_bias: false,
            mlp_bias: false,
            head_bias: true,
            ..base.clone()
        };
        let cases = [
            (base.clone(), None),
            (base.clone(), drop),
            (Arch { activation: Activation::GeluErf, tied_head: false, ..base.clone() }, None),
            (
                Arch {
                    activation: Activation::Relu,
                    scale_by_layer: true,
                    heads: 3,
                    kv_heads: 3,
                    head_size: 2,
                    ..base.clone()
                },
                None,
            ),
            (Arch { scale_by_head_size: false, tied_head: false, norm_eps: 0.1, ..base.clone() }, drop),
            (Arch { residual: Residual::Parallel, position: Position::Rotary(rotary), ..grouped.clone() }, drop),
            (Arch { residual: Residual::ParallelOneNorm, norm: NormKind::RmsOnePlus, ..grouped.clone() }, None),
            (
                Arch {
                    residual: Residual::PostNorm,
                    embedding_norm: true,
                    activation: Activation::Relu2,
                    ..base.clone()
                },
                drop,
            ),
            (Arch { position: Position::Alibi { in_bf16: false }, causal: false, ..base.clone() }, None),
            (Arch { position: Position::Learned { offset: 2 }, window: Some(2), embedding_scale: 3.0, ..base }, None),
            (grouped, None),
        ];
        let (num_rows, row_len, step, scale) = (3, 5, 1e-5, 0.5);
        for (arch, dropout) in cases {
            let layout = Layout::of(&arch);
            let number = |key, i| f64::from(random::uniform(3, key, i)) - 0.5;
            let params: Vec<f64> = (0..layout.len() as u64).map(|i| 1.5 * number(0, i)).collect();
            let tokens: Vec<u32> = (0..num_rows * row_len).map(|i| (i * i % arch.vocab_size) as u32).collect();
            let run = |params: &[f64]| {
                let mut gradients = vec![1.0; params.len()];
                let loss = CandleDecoder::new(&arch)
                    .accumulate(params, &mut gradients, Rows::new(&tokens, num_rows, row_len), scale, dropout)
                    .unwrap();
                (loss, gradients)
            };
            let (loss, gradients) = run(&params);
            assert!(loss.is_finite());
            for param in layout.params() {
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
            self.0.rotary_len = self.0.arch.rotary_len(rows.row_len, self.0.rotary_len);
            let graph = self.0.graph(&widen(params), Purpose::Score)?;
            let losses_bt = graph.losses_bt(&token_tensor(rows)?)?;
            Ok(losses_bt.mean(D::Minus1)?.to_dtype(DType::F32)?.to_vec1()?)
        }

        fn logits(&mut self, params: &[f32], rows: Rows) -> Result<Vec<f32>> {
            self.0.rotary_len = self.0.arch.rotary_len(rows.row_len, self.0.rotary_len);
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
        golden_training::check_adamw(ADAMW_IN_F32, on_cpu(CandleDecoder::new));
    }

    #[test]
    fn golden_reference_miner_in_candle() {
        golden_training::check_reference_miner(REFERENCE_MINER_IN_F32, on_cpu(CandleDecoder::new));
    }

    #[test]
    fn golden_models_in_candle() {
        golden_tests::check_backend(|arch| Box::new(CandleDecoder::new(arch)));
    }
}
