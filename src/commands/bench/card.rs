//! What a GPU can do, as ceilings for what is measured on it: a large copy, large matrix products, attention, and the
//! products of a model's training step one by one, by the algorithm that cuBLASLt takes by itself and by the best of the few
//! that it names next.
//!
//! Times are medians by the device's clock, one run right behind the other, so that operands that fit into a cache are there;
//! operands are random, because zeros are computed faster.

use anyhow::Result;
use half::bf16;
use serde_json::{Value, json};

use super::model::training_step_on_paper;
use super::speed::check_interrupt;
use crate::cli::bench::BenchCardArgs;
use crate::error::input;
use crate::gpu::profile::Operation;
use crate::gpu::{Buffer, Dtype, Element, Gpu, Operand, Product, attention};
use crate::metrics::printer::Printer;
use crate::metrics::table::table;
use crate::model::arch::Arch;
use crate::ops::random;
use crate::placement::Placement;
use crate::recipe::Backend;

const REPEATS: usize = 15;

/// How large what shows the ceilings is.
struct Large {
    /// Bytes of a copy: many times what a cache holds.
    copy_bytes: usize,
    /// Rows and columns of products of bf16.
    bf16: usize,
    /// And of f32.
    f32: usize,
}

const LARGE: Large = Large { copy_bytes: 1 << 30, bf16: 8192, f32: 4096 };

/// Runs the command.
pub(super) fn run(args: &BenchCardArgs, printer: &Printer) -> Result<()> {
    let arch = args.shape.arch()?;
    let Placement::Gpu(gpu) = Placement::open(args.device, Backend::Native, printer)? else {
        return Err(input(format!("--device {}: give a GPU, such as cuda:0", args.device)));
    };
    let figures = measure(&gpu, &arch, args, &LARGE)?;
    printer.result(&if args.json { figures.to_string() } else { text(&figures) })
}

fn measure(gpu: &Gpu, arch: &Arch, args: &BenchCardArgs, large: &Large) -> Result<Value> {
    let copied = copy(gpu, large.copy_bytes)?;
    check_interrupt()?;
    let [bf16, f32] = [large_product::<bf16>(gpu, large.bf16)?, large_product::<f32>(gpu, large.f32)?];
    check_interrupt()?;
    let attention = attention(gpu, arch, args.shape.batch, args.shape.seq)?;
    let mut products: Vec<Value> = Vec::new();
    for product in products_of(arch, args.shape.batch, args.shape.seq)? {
        check_interrupt()?;
        products.push(by_each_algorithm(gpu, product, args.algorithms)?);
    }
    Ok(json!({
        "card": gpu.name(), "copy_gb_per_s": copied, "product_bf16_tflops": bf16, "product_f32_tflops": f32,
        "attention": attention, "products": products,
    }))
}

/// 10⁹ bytes read and written per second.
fn copy(gpu: &Gpu, bytes: usize) -> Result<f64> {
    let (from, mut to) = (random_buffer::<f32>(gpu, bytes / 4)?, gpu.zeros::<f32>(bytes / 4)?);
    let seconds = gpu.time(REPEATS, |gpu| gpu.copy(to.view_mut(), from.view()))?;
    Ok(2.0 * bytes as f64 / seconds / 1e9)
}

/// 10¹² operations per second of a square product.
fn large_product<T: Element>(gpu: &Gpu, size: usize) -> Result<f64> {
    let [a, b] = [random_buffer::<T>(gpu, size * size)?, random_buffer::<T>(gpu, size * size)?];
    let mut c = gpu.zeros::<T>(size * size)?;
    let operand = |address| Operand { address, dtype: T::DTYPE, transposed: false };
    let product = Product {
        sizes: [size; 3],
        a: operand(a.view().address()),
        b: operand(b.view().address()),
        beta: 0.0,
        c: (c.view_mut().address(), T::DTYPE),
        bias: None,
        epilogue: None,
    };
    let seconds = gpu.time(REPEATS, |gpu| gpu.multiply(product))?;
    Ok(2.0 * (size as f64).powi(3) / seconds / 1e12)
}

fn attention(gpu: &Gpu, arch: &Arch, batch: usize, seq: usize) -> Result<Value> {
    let shape = arch.attention_shape(batch, seq, 0);
    let n = batch * seq;
    let (qkv, dy) = (random_buffer::<bf16>(gpu, n * shape.qkv_width())?, random_buffer(gpu, n * shape.y_width())?);
    let mut y = gpu.zeros::<bf16>(n * shape.y_width())?;
    let [mut log_sum_exp, mut delta] = [gpu.zeros::<f32>(n * shape.h)?, gpu.zeros::<f32>(n * shape.h)?];
    let mut dqkv = gpu.zeros::<bf16>(n * shape.qkv_width())?;
    let forward = gpu.time(REPEATS, |gpu| {
        attention::forward(gpu, shape, y.view_mut(), log_sum_exp.view_mut(), qkv.view(), None);
    })?;
    let backward = gpu.time(REPEATS, |gpu| {
        let (dqkv, delta, lse) = (dqkv.view_mut(), delta.view_mut(), log_sum_exp.view());
        attention::backward(gpu, shape, dqkv, delta, dy.view(), qkv.view(), y.view(), lse, None);
    })?;
    Ok(json!({
        "batch": batch, "heads": shape.h, "seq": seq, "head_size": shape.d,
        "forward_tflops": attention::forward_flops(shape) as f64 / forward / 1e12,
        "backward_tflops": attention::backward_flops(shape) as f64 / backward / 1e12,
    }))
}

/// Each kind of matrix product of a training step, once.
fn products_of(arch: &Arch, batch: usize, seq: usize) -> Result<Vec<Product>> {
    let mut products: Vec<Product> = Vec::new();
    for product in training_step_on_paper(arch, batch, seq)?.into_iter().filter_map(|operation| operation.product) {
        let kind = |product: &Product| Product {
            a: nowhere(product.a),
            b: nowhere(product.b),
            c: (0, product.c.1),
            bias: product.bias.map(|_| 0),
            ..*product
        };
        let product = kind(&product);
        if !products.contains(&product) {
            products.push(product);
        }
    }
    Ok(products)
}

fn nowhere(operand: Operand) -> Operand {
    Operand { address: 0, ..operand }
}

/// Times a product by the algorithms that cuBLASLt offers for it, in its own order.
fn by_each_algorithm(gpu: &Gpu, product: Product, algorithms: usize) -> Result<Value> {
    let [m, n, k] = product.sizes;
    let operand = |len: usize| -> Result<Buffer<bf16>> {
        match product.a.dtype {
            Dtype::Bf16 => random_buffer(gpu, len),
            Dtype::F32 => unreachable!("a training step multiplies bfloat16"),
        }
    };
    let (a, b, bias) = (operand(m * k)?, operand(k * n)?, operand(n)?);
    let mut c = gpu.zeros::<f32>(m * n)?;
    let placed = Product {
        a: Operand { address: a.view().address(), ..product.a },
        b: Operand { address: b.view().address(), ..product.b },
        c: (c.view_mut().address(), product.c.1),
        bias: product.bias.map(|_| bias.view().address()),
        ..product
    };
    // An algorithm that fails costs the others nothing.
    let mut times = Vec::new();
    for rank in 0..algorithms {
        match gpu.choose_algorithm(&placed, rank) {
            Ok(false) => break,
            Ok(true) => times.push(gpu.time(REPEATS, |gpu| gpu.multiply(placed)).ok()),
            Err(_) => times.push(None),
        }
    }
    let timed = times.iter().enumerate().filter_map(|(rank, time)| Some((rank, (*time)?)));
    let best = timed.min_by(|(_, a), (_, b)| a.total_cmp(b));
    let operation = Operation::of_product(product);
    let tflops = |seconds: f64| operation.cost.flops as f64 / seconds / 1e12;
    let first_s = times.first().copied().flatten();
    Ok(json!({
        "name": operation.name, "sizes": product.sizes,
        "first_us": first_s.map(|seconds| seconds * 1e6), "tflops": first_s.map(tflops),
        "best_us": best.map(|(_, seconds)| seconds * 1e6), "best_tflops": best.map(|(_, seconds)| tflops(seconds)),
        "best_rank": best.map(|(rank, _)| rank),
    }))
}

/// Numbers around zero; a million different ones, over and over.
fn random_buffer<T: Element>(gpu: &Gpu, len: usize) -> Result<Buffer<T>> {
    const PERIOD: usize = 1 << 20;
    let number = |i: usize| T::from_f32(random::bits(7, i as u64, 0) as f32 / u32::MAX as f32 - 0.5);
    let numbers: Vec<T> = (0..len.min(PERIOD)).map(number).collect();
    let mut buffer = gpu.zeros::<T>(len)?;
    for start in (0..len).step_by(PERIOD) {
        let end = len.min(start + PERIOD);
        gpu.upload(buffer.view_mut().window(start..end), &numbers[..end - start]);
    }
    Ok(buffer)
}

fn text(figures: &Value) -> String {
    let number = |value: &Value| value.as_f64().map_or("n/a".to_owned(), |value| format!("{value:.1}"));
    let attention = &figures["attention"];
    let rows: Vec<Vec<String>> = figures["products"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|product| {
            let cell = |key: &str| number(&product[key]);
            vec![
                cell("first_us"),
                cell("tflops"),
                cell("best_us"),
                cell("best_tflops"),
                product["best_rank"].to_string(),
                product["name"].as_str().unwrap_or_default().to_owned(),
            ]
        })
        .collect();
    let header = [" µs", " TFLOP/s", " best µs", " TFLOP/s", " rank", "product"];
    format!(
        "{}: copies {} GB/s, products {} TFLOP/s in bf16 and {} in f32\n\
         attention of {} rows of {} tokens, {} heads of {}: forward {} TFLOP/s, backward {}\n{}",
        figures["card"].as_str().unwrap_or_default(),
        number(&figures["copy_gb_per_s"]),
        number(&figures["product_bf16_tflops"]),
        number(&figures["product_f32_tflops"]),
        attention["batch"],
        attention["seq"],
        attention["heads"],
        attention["head_size"],
        number(&attention["forward_tflops"]),
        number(&attention["backward_tflops"]),
        table(&header, &rows)
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::cli::bench::ShapeArgs;
    use crate::gpu::testing;
    use crate::model::family::Family;

    #[test]
    fn figures_are_there_under_the_names_that_readers_look_for() {
        let Some([gpu, _]) = testing::gpus() else { return };
        let (family, mlp_width) = (Family::Gpt2, Some(96));
        let shape = ShapeArgs { family, layers: 2, width: 64, heads: 1, mlp_width, vocab: 300, seq: 16, batch: 2 };
        let arch = shape.arch().unwrap();
        let args = BenchCardArgs { shape, device: crate::recipe::DeviceChoice::Cuda(0), algorithms: 2, json: true };
        let large = Large { copy_bytes: 1 << 16, bf16: 40, f32: 24 };
        let figures = measure(&gpu, &arch, &args, &large).unwrap();
        for key in ["copy_gb_per_s", "product_bf16_tflops", "product_f32_tflops"] {
            assert!(figures[key].as_f64().unwrap() > 0.0, "{key} of {figures}");
        }
        let attention = &figures["attention"];
        assert!(
            [&attention["forward_tflops"], &attention["backward_tflops"]].iter().all(|x| x.as_f64().unwrap() > 0.0)
        );
        let sizes = ["batch", "heads", "seq", "head_size"].map(|key| attention[key].as_u64().unwrap());
        assert_eq!(sizes, [2, 1, 16, 64]);
        // Four layers of a block and the head, each forward, for its input and for its weight.
        let products = figures["products"].as_array().unwrap();
        assert_eq!(products.len(), 15, "{figures}");
        for product in products {
            assert!(product["first_us"].as_f64().unwrap() > 0.0 && product["best_rank"] == 0, "{product}");
            assert_eq!(product["first_us"], product["best_us"]);
        }
        let text = text(&figures);
        assert!(text.contains("product 32 x 192 x 64 nt, bf16 = bf16") && text.lines().count() == 2 + 1 + 15, "{text}");
    }
}
